"""Against an S3 server in a process of its own: listing, reading, every fault, and a run of clips through them all."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from footage import make_video
from storage import Storage, fixture_bucket, fixture_moto_url
from test_decoder import CONFIG, spec_for

from rayjepa.data.clip import ClipSpec, Place
from rayjepa.data.decoder import Decoder
from rayjepa.data.storage import faults
from rayjepa.data.storage.faults import NotThere, Passing, Refused
from rayjepa.data.storage.remote import found, found_below, read_bytes

__all__ = ["fixture_bucket", "fixture_moto_url"]
pytestmark = pytest.mark.slow

Bucket = tuple[Storage, Any]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "FIRST_PAUSE_S", 0.01)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [make_video(folder / f"{k}.mp4", frames=24 + k) for k in range(12)]


def never(index: int, attempt: int) -> ClipSpec:
    raise AssertionError(f"sample {index} was not to be substituted")


def test_a_bucket_is_listed_over_several_pages_with_names_that_lead_back(bucket: Bucket) -> None:
    storage, client = bucket
    names = [f"a b/ü #{k:04}.mp4" for k in range(1010)] + ["top %20.mp4"]
    for name in names:
        client.put_object(Bucket="videos", Key=name, Body=name.encode())
    listed = list(found_below("s3://videos"))
    assert [f.uri for f in listed] == sorted(f"s3://videos/{name}" for name in names)
    assert len(storage.requests) == 2  # a thousand a page
    assert [read_bytes(f.uri).decode() for f in listed[::500]] == [f.uri[12:] for f in listed[::500]]
    assert len(list(found_below("s3://videos/a b/"))) == 1010
    assert found(listed[3].uri) == listed[3]
    storage.storm = 3
    assert len(list(found_below("s3://videos/a b"))) == 1010


def test_what_s3_refuses_is_one_sentence(bucket: Bucket) -> None:
    storage, _ = bucket
    with pytest.raises(NotThere, match="there is no bucket 'other'"):
        list(found_below("s3://other"))
    with pytest.raises(NotThere, match="there is no bucket 'other'"):
        found("s3://other/film.mp4")
    with pytest.raises(NotThere, match="no such object"):
        found("s3://videos/film.mp4")
    with pytest.raises(NotThere, match="no such object"):
        list(found_below("s3://videos/nowhere"))
    storage.storm = -1
    with pytest.raises(Passing, match=r"SLOW_DOWN.*2 of 2 tries"):
        list(found_below("s3://videos", tries=2))
    storage.storm, storage.denied = 0, True
    with pytest.raises(Refused, match="AWS_ACCESS_KEY_ID"):
        list(found_below("s3://videos"))


@pytest.mark.parametrize("whole_mib", [8.0, 0.0])
def test_clips_are_the_same_through_storms_cut_answers_and_silence(
    bucket: Bucket, videos: list[Path], whole_mib: float
) -> None:
    storage, client = bucket
    near, far = [], []
    for k, path in enumerate(videos):
        client.put_object(Bucket="videos", Key=f"ü {path.name}", Body=path.read_bytes())
        uri = f"s3://videos/ü {path.name}"
        near.append(spec_for(str(path), k))
        far.append(replace(spec_for(uri, k), place=Place(uri, path.stat().st_size)))
    config = replace(CONFIG, whole_mib=whole_mib, read_timeout_s=1.0, read_tries=8)
    with Decoder(CONFIG) as here, Decoder(config) as there:
        expected = here.clips(near, never).pixels
        for fault in ({}, {"every": 3}, {"storm": 6}, {"cut": 5}, {"still": 3}, {"delay_s": 0.05}):
            for name, value in fault.items():
                setattr(storage, name, value)
            made = there.clips(far, never)
            assert np.array_equal(made.pixels, expected), fault
            assert not made.failures
            storage.every = storage.storm = storage.cut = storage.still = 0
            storage.delay_s = 0.0
        assert there.restarts == 0


def test_an_object_replaced_in_place_is_not_served_as_the_old_one(bucket: Bucket, videos: list[Path]) -> None:
    _, client = bucket
    content = videos[0].read_bytes()
    client.put_object(Bucket="videos", Key="film.mp4", Body=content)
    spec = replace(spec_for("s3://videos/film.mp4"), place=Place("s3://videos/film.mp4", len(content)))
    good = str(videos[1])
    with Decoder(CONFIG) as decoder:
        assert not decoder.clips([spec], never).failures
        client.put_object(Bucket="videos", Key="film.mp4", Body=videos[2].read_bytes())
        made = decoder.clips([spec], lambda index, attempt: replace(spec_for(good, index), attempt=attempt))
        assert "changed since it was indexed" in made.failures[0].reason
        client.delete_object(Bucket="videos", Key="film.mp4")
        made = decoder.clips([spec], lambda index, attempt: replace(spec_for(good, index), attempt=attempt))
        assert "no such object" in made.failures[0].reason
