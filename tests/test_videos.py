"""What a run's words name as its videos: one manifest, or several that are put together."""

import logging
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from test_tape import manifest

from rayjepa.cli.videos import videos_of
from rayjepa.config import RunConfig, resolve, streams_of
from rayjepa.data.columns import SCHEMA
from rayjepa.data.manifest import Manifest, write
from rayjepa.data.tape import Tape
from rayjepa.data.twin import Twin


def run_of(home: Path, **knobs: object) -> RunConfig:
    own = {"data.scratch": str(home / "scratch"), "data.cache": str(home / "cache"), "data.synthetic_videos": 1}
    return resolve("tiny", own | {key.replace("__", "."): value for key, value in knobs.items()})


def with_uris(uris: list[str], *, holdout: tuple[int, ...] = ()) -> Manifest:
    table = manifest([5.0] * len(uris), holdout=holdout).table
    return Manifest(table.set_column(0, SCHEMA.field("uri"), pa.array(uris, pa.large_string())))


def test_sources_bring_their_videos_and_name_them(tmp_path: Path) -> None:
    for name, count in (("a", 2), ("b", 1)):
        write(with_uris([f"/{name}/{i}" for i in range(count)]), tmp_path / f"{name}.parquet")
    sources = [{"name": name, "weight": 1, "videos": str(tmp_path / f"{name}.parquet")} for name in ("a", "b")]
    run = run_of(tmp_path, data__sources=sources, train__steps=32)
    videos = videos_of(run)
    assert isinstance(videos, Manifest)
    assert videos.column("source").to_pylist() == ["a", "a", "b"]
    assert videos.column("stream").null_count == 3  # the run's
    assert Counter(Tape(run, videos).spec(i).video == 2 for i in range(128)) == {True: 64, False: 64}
    assert not (tmp_path / "cache").exists()  # no synthetic videos are wanted


def test_a_stream_with_sources_of_its_own_has_them_alone(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(with_uris([f"/{name}/1", f"/{name}/2"]), tmp_path / f"{name}.parquet")
    own = [{"name": "b", "weight": 1, "videos": str(tmp_path / "b.parquet")}]
    streams = [
        {"name": "one", "weight": 1, "set": {}},
        {"name": "two", "weight": 1, "set": {"data.sources": own, "data.videos": None}},
        {"name": "three", "weight": 2, "set": {"data.videos": str(tmp_path / "c.parquet")}},
    ]
    sources = [{"name": "a", "weight": 1, "videos": str(tmp_path / "a.parquet")}]
    run = run_of(tmp_path, streams=streams, data__sources=sources, cluster__workers=1)
    assert [stream.source for stream in streams_of(run)] == [None, "two", "three"]
    videos = videos_of(run)
    table = {(row["uri"][1], row["stream"], row["source"]) for row in videos.table.to_pylist()}  # type: ignore[union-attr]
    assert table == {("a", None, "a"), ("b", "two", "b"), ("c", "three", None)}
    specs = [Tape(run, videos).spec(i) for i in range(16)]
    assert {(spec.stream, spec.uri[1]) for spec in specs} == {("one", "a"), ("two", "b"), ("three", "c")}


def test_one_manifest_is_mapped_and_not_read(tmp_path: Path) -> None:
    write(manifest([5.0] * 3), tmp_path / "m.parquet")
    assert isinstance(videos_of(run_of(tmp_path, data__videos=str(tmp_path / "m.parquet"))), Twin)


def test_a_path_that_comes_twice_is_said_and_one_on_both_sides_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(tmp_path, data__videos=str(tmp_path / "m.parquet"))
    write(with_uris(["/a", "/b", "/a"]), tmp_path / "m.parquet")
    with caplog.at_level(logging.WARNING):
        videos_of(run)
    assert "1 row(s) repeat the path of another, first: /a; each is drawn once a pass" in caplog.text
    write(with_uris(["/a", "/b", "/a"], holdout=(2,)), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=r"1 path\(s\) of the manifest are trained on in one row and held out in an"):
        videos_of(run)
