"""A run over object storage that throttles, loses and replaces videos, and a kill: every sample is trained once."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from storage import Storage, moto, serving, use
from test_kill import Site, progress, wait_for

from rayjepa.data import synthetic
from rayjepa.train.history import coverage, read_history
from rayjepa.train.restart import restart_point

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS, CLIPS = 40, 8


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    out = tmp_path_factory.mktemp("runs")
    return Site(out, synthetic.make(out / "videos", 24))


@pytest.fixture
def stored(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Storage, Any]]:
    """The videos as objects behind a server that can misbehave, and a client past it."""
    with moto() as url, serving(behind=url) as storage:
        use(monkeypatch, storage.url)
        client = boto3.client("s3", endpoint_url=url)
        client.create_bucket(Bucket="videos")
        for path in sorted(Path(site.videos).glob("*.mp4")):
            client.upload_file(str(path), "videos", f"some clips/{path.name}")
        yield storage, client


def test_a_run_over_a_bucket_in_trouble_trains_every_sample_once(site: Site, stored: tuple[Storage, Any]) -> None:
    storage, client = stored
    run_dir = site.out / "storm"
    sizes = [f"train.steps={STEPS}", f"train.clips={CLIPS}", "checkpoint.every_steps=10", "cluster.decoders=2"]
    near = ["cluster.prefetch=2", "cluster.block=1"]  # so that what changes in mid-run is met
    source = ["data.videos=s3://videos/some clips", f"data.scratch={site.out / 'scratch'}"]
    driver = site.start("--preset", "tiny", f"out={site.out}", "name=storm", *source, *sizes, *near)
    wait_for(lambda: bool(progress(run_dir)) or driver.poll() is not None, "the run did not begin")
    storage.every = 4
    wait_for(lambda: restart_point(run_dir) is not None or driver.poll() is not None, "no checkpoint was written")
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="videos")["Contents"]]
    rows = read_history(run_dir).of("step")
    assert rows, (site.out / "log.txt").read_text()[-3000:]
    client.put_object(Bucket="videos", Key=keys[0], Body=b"something else")
    for key in keys[1:4]:
        client.delete_object(Bucket="videos", Key=key)
    os.kill(progress(run_dir)["pid"], signal.SIGKILL)
    site.end(driver)

    table = read_history(run_dir)
    assert coverage(run_dir, STEPS * CLIPS) == ([], [])
    assert [line["step"] for line in table.of("step")] == list(range(STEPS))
    assert len(table.attempts) == 2
    assert len(storage.requests) > 160, "a fourth of the requests were refused, and there were hardly any"
    failures = table.of("failure")
    gone = {f"s3://videos/{key}" for key in keys[:4]}
    assert failures
    assert {line["uri"] for line in failures} <= gone
    assert all("changed since it was indexed" in f["reason"] for f in failures if f["uri"].endswith(keys[0]))
    assert all(line["data/read_mb"] > 0 for line in table.of("step"))
