"""Clips of videos in remote storage and in shards: equal to those of files, or given up by name, and never a hang."""

import hashlib
import os
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from footage import heavy_video, make_video
from storage import Storage, fixture_plain_storage
from test_decoder import CONFIG, spec_for

from rayjepa.config import DataConfig
from rayjepa.data.clip import ClipSpec, Failure, Place
from rayjepa.data.decoder import Decoded, Decoder
from rayjepa.data.storage import faults
from rayjepa.data.storage.spans import spans

__all__ = ["fixture_plain_storage"]
REMOTE = replace(CONFIG, read_tries=3, read_timeout_s=5.0, retries=1)
RANGES = replace(REMOTE, whole_mib=1.0)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "FIRST_PAUSE_S", 0.01)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [make_video(folder / f"{k}.mp4", frames=24 + k) for k in range(4)]


@pytest.fixture(scope="module", name="heavy")
def fixture_heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return heavy_video(tmp_path_factory.mktemp("heavy") / "film.mp4")


@pytest.fixture(scope="module", name="local")
def fixture_local(videos: list[Path]) -> Decoded:
    with Decoder(CONFIG) as decoder:
        return decoder.clips([spec_for(str(path), k) for k, path in enumerate(videos)], never)


_DECODERS: dict[DataConfig, Decoder] = {}


@contextmanager
def shared(config: DataConfig = REMOTE) -> Generator[Decoder, None, None]:
    """The decoder of that configuration, which all tests here use: each starts a process."""
    if config not in _DECODERS:
        _DECODERS[config] = Decoder(config)
    yield _DECODERS[config]


@pytest.fixture(scope="module", autouse=True)
def _end() -> Iterator[None]:
    yield
    while _DECODERS:
        _DECODERS.popitem()[1].close()


def never(index: int, attempt: int) -> ClipSpec:
    raise AssertionError(f"sample {index} was not to be substituted")


def put(storage: Storage, videos: list[Path]) -> list[ClipSpec]:
    """The videos in a bucket, and a clip of each."""
    specs: list[ClipSpec] = []
    for k, path in enumerate(videos):
        storage.objects[f"bucket/ü {path.name}"] = path.read_bytes()
        uri = f"s3://bucket/ü {path.name}"
        specs.append(replace(spec_for(uri, k), place=Place(uri, path.stat().st_size)))
    return specs


def test_clips_from_storage_equal_local_ones_and_are_counted(
    plain_storage: Storage, videos: list[Path], local: Decoded
) -> None:
    specs = put(plain_storage, videos)
    with shared() as decoder:
        far = decoder.clips(specs, never)
        unknown = decoder.clips([replace(spec, place=None) for spec in specs], never)
    assert np.array_equal(far.pixels, local.pixels)
    assert np.array_equal(unknown.pixels, local.pixels)
    assert far.read_bytes == sum(len(content) for content in plain_storage.objects.values())
    assert far.requests == 2 * len(specs)  # for its size, and for its bytes
    assert far.read_s > 0
    assert (local.read_s, local.read_bytes, local.requests) == (0.0, 0, 0)


def test_clips_from_any_storage_that_fsspec_reads_equal_local_ones(
    plain_storage: Storage, videos: list[Path], local: Decoded
) -> None:
    memory = fsspec.filesystem("memory")
    specs: list[ClipSpec] = []
    for k, path in enumerate(videos):
        memory.pipe(f"/films/{path.name}", path.read_bytes())
        plain_storage.objects[f"films/{path.name}"] = path.read_bytes()
        uri = f"memory://films/{path.name}" if k % 2 else f"{plain_storage.url}/films/{path.name}"
        specs.append(spec_for(uri, k))
    with shared() as decoder:
        assert np.array_equal(decoder.clips(specs, never).pixels, local.pixels)


def test_members_of_shards_equal_files(
    plain_storage: Storage, videos: list[Path], local: Decoded, tmp_path: Path
) -> None:
    shard, places, content = tmp_path / "shard #1.tar", [], b""
    for path in videos:
        content += os.urandom(100)
        places.append(Place(str(shard), path.stat().st_size, len(content)))
        content += path.read_bytes()
    shard.write_bytes(content)
    plain_storage.objects["bucket/shard.tar"] = content
    for whole_mib in (REMOTE.whole_mib, 0.0):  # copied, and read in place
        with shared(replace(REMOTE, whole_mib=whole_mib)) as decoder:
            for file in (str(shard), "s3://bucket/shard.tar"):
                specs = [
                    replace(spec_for(f"{file}#{k}", k), place=place._replace(file=file))
                    for k, place in enumerate(places)
                ]
                assert np.array_equal(decoder.clips(specs, never).pixels, local.pixels)
                assert decoder.probe(specs[1].uri, specs[1].place) == decoder.probe(str(videos[1]))


@pytest.mark.parametrize("column", ["video.bytes", pytest.param("video", marks=pytest.mark.slow)])
def test_compressed_cells_of_parquet_equal_files(
    plain_storage: Storage, videos: list[Path], local: Decoded, tmp_path: Path, column: str
) -> None:
    values = [path.read_bytes() for path in videos]
    cells = pa.array(values if column == "video" else [{"bytes": value, "path": None} for value in values])
    shard = tmp_path / "shard.parquet"
    pyarrow.parquet.write_table(pa.table({"id": range(4), "video": cells}), shard, compression="zstd", row_group_size=2)
    plain_storage.objects["bucket/shard.parquet"] = shard.read_bytes()
    with shared() as decoder:
        for file in (str(shard), "s3://bucket/shard.parquet"):
            specs = [
                replace(spec_for(f"{file}#{k}", k), place=Place(file, len(value), cell=f"{column}/{k}"))
                for k, value in enumerate(values)
            ]
            assert np.array_equal(decoder.clips(specs, never).pixels, local.pixels)
        gone = decoder.hash(file, Place(file, 5, cell=f"{column}/17"))
    assert isinstance(gone, Failure)
    assert (gone.kind, "4 rows" in gone.reason) == ("content", True)


@pytest.mark.parametrize("fault", ["storm", "cut"])
def test_faults_that_pass_change_no_clip(
    plain_storage: Storage, videos: list[Path], local: Decoded, fault: str
) -> None:
    specs = put(plain_storage, videos)
    setattr(plain_storage, fault, 2)
    with shared() as decoder:
        far = decoder.clips(specs, never)
    assert np.array_equal(far.pixels, local.pixels)
    assert not far.failures


def test_a_storm_longer_than_the_tries_is_a_named_failure_and_a_substitute(
    plain_storage: Storage, videos: list[Path]
) -> None:
    specs = put(plain_storage, videos)
    plain_storage.storm = -1
    with shared() as decoder:
        restarts = decoder.restarts
        made = decoder.clips(
            specs[:2], lambda index, attempt: replace(spec_for(str(videos[0]), index), attempt=attempt)
        )
        assert decoder.restarts == restarts
    assert [(f.stage, f.kind) for f in made.failures] == [("open", "io")] * 2
    assert all("503" in f.reason and "3 of 3 tries" in f.reason for f in made.failures)
    assert len(plain_storage.requests) == 2 * REMOTE.read_tries  # retries of a clip do not come on top
    assert [spec.attempt for spec in made.specs] == [1, 1]


@pytest.mark.parametrize("range_alone", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_object_that_was_replaced_or_deleted_since_is_bad_content(
    plain_storage: Storage, videos: list[Path], range_alone: bool
) -> None:
    specs = put(plain_storage, videos)
    plain_storage.objects["bucket/ü 0.mp4"] += b"more"
    del plain_storage.objects["bucket/ü 1.mp4"]
    good = str(videos[3])
    with shared(replace(REMOTE, whole_mib=0.0 if range_alone else 8.0)) as decoder:
        made = decoder.clips(specs, lambda index, attempt: replace(spec_for(good, index), attempt=attempt))
    size = videos[0].stat().st_size
    assert [f.kind for f in made.failures] == ["content"] * 2
    assert f"changed since it was indexed: {size + 4} bytes, the manifest says {size} bytes" in made.failures[0].reason
    assert "no such object; it was deleted or renamed" in made.failures[1].reason


def test_a_local_file_of_another_size_than_the_manifest_says_is_bad_content(videos: list[Path]) -> None:
    path, size = str(videos[0]), videos[0].stat().st_size
    with shared(CONFIG) as decoder:
        for place in (Place(path, size - 1), Place(path, size, offset=1)):
            failure = decoder.probe(path, place)
            assert isinstance(failure, Failure)
            assert failure.kind == "content"
            assert failure.reason.startswith(f"changed since it was indexed: {size} bytes, the manifest says ")
        gone = decoder.probe("/nowhere/film.mp4", Place("/nowhere/film.mp4", 5))
    assert isinstance(gone, Failure)
    assert gone.kind == "io"


def test_of_a_large_video_a_clip_fetches_what_its_manifest_expects_in_one_go(
    plain_storage: Storage, heavy: Path
) -> None:
    size = heavy.stat().st_size
    uri = "s3://bucket/film.mp4"
    plain_storage.objects["bucket/film.mp4"] = heavy.read_bytes()
    with shared(CONFIG) as decoder:
        found = decoder.probe(str(heavy))
        assert not isinstance(found, Failure)
        spec = replace(spec_for(str(heavy)), start_s=2.1)
        near = decoder.clips([spec], never)
    hints = spans(
        head=found.head, tail=found.tail, key_s=found.key_s or (), key_bytes=found.key_bytes or (), nbytes=size,
        start_s=2.1, seconds=0.5,
    )  # fmt: skip
    with shared(RANGES) as decoder:
        told = decoder.clips([replace(spec, uri=uri, place=Place(uri, size, spans=hints))], never)
        untold = decoder.clips([replace(spec, uri=uri, place=Place(uri, size))], never)
        whole = decoder.probe(uri)  # of all its packets
    assert np.array_equal(told.pixels, near.pixels)
    assert np.array_equal(untold.pixels, near.pixels)
    assert whole == found
    assert told.requests == 1 + len(hints)
    assert told.read_bytes == sum(last - first for first, last in hints) < 0.6 * size
    assert untold.read_bytes < size
    assert untold.requests > told.requests


def test_a_range_that_cannot_be_had_while_a_clip_decodes_is_a_named_failure(
    plain_storage: Storage, heavy: Path
) -> None:
    uri, size = "s3://bucket/film.mp4", heavy.stat().st_size
    plain_storage.objects["bucket/film.mp4"] = heavy.read_bytes()
    far = replace(spec_for(uri), place=Place(uri, size, spans=((0, 1000),)), start_s=2.1)
    with shared(RANGES) as decoder:
        decoder.clips([spec_for(str(heavy))], never)
        restarts = decoder.restarts
        answered = plain_storage.answer

        def storm_after_two(method: str, path: str, headers: dict[str, str], body: bytes) -> object:
            if len(plain_storage.requests) > 2:
                return 503, {}, b""
            return answered(method, path, headers, body)

        plain_storage.answer = storm_after_two  # type: ignore[method-assign]
        made = decoder.clips([far], lambda index, attempt: replace(spec_for(str(heavy)), attempt=attempt))
        assert decoder.restarts == restarts
    [failure] = made.failures
    assert (failure.kind, "503" in failure.reason) == ("io", True)


@pytest.mark.slow
def test_storage_that_stands_still_costs_no_more_than_its_tries(plain_storage: Storage, heavy: Path) -> None:
    uri = "s3://bucket/film.mp4"
    plain_storage.objects["bucket/film.mp4"] = heavy.read_bytes()
    far = replace(spec_for(uri), place=Place(uri, heavy.stat().st_size))
    config = replace(REMOTE, whole_mib=1.0, read_timeout_s=0.2, read_tries=2)
    started = time.monotonic()
    with shared(config) as decoder:
        plain_storage.still = 99
        made = decoder.clips([far], lambda index, attempt: replace(spec_for(str(heavy)), attempt=attempt))
    assert time.monotonic() - started < 5
    assert (made.failures[0].kind, "no answer within 0.2 s" in made.failures[0].reason) == ("io", True)


def test_videos_are_fetched_several_at_once_and_ahead_of_their_call(
    plain_storage: Storage, videos: list[Path], local: Decoded
) -> None:
    specs = put(plain_storage, videos)
    with shared() as decoder:
        assert np.array_equal(decoder.clips(specs, never).pixels, local.pixels)
        plain_storage.requests.clear()
        plain_storage.most_at_once, plain_storage.delay_s = 0, 0.1
        threading.Thread(target=decoder.expect, args=(specs,)).start()
        until = time.monotonic() + 10
        while len(plain_storage.requests) < 2 * len(specs) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2)  # for the last answer
        made = decoder.clips(specs, never)
        assert np.array_equal(made.pixels, local.pixels)
    assert plain_storage.most_at_once == len(specs)
    assert len(plain_storage.requests) == 2 * len(specs)
    assert made.read_s < 0.05


def test_clips_of_one_video_in_a_row_are_one_read(plain_storage: Storage, videos: list[Path]) -> None:
    spec = put(plain_storage, videos)[0]
    with shared() as decoder:
        made = decoder.clips([replace(spec, index=k, start_s=0.1 * k) for k in range(5)], never)
    assert made.requests == 2


def test_the_hash_is_that_of_the_bytes_and_needs_no_second_read(plain_storage: Storage, videos: list[Path]) -> None:
    spec = put(plain_storage, videos)[0]
    expected = hashlib.blake2b(videos[0].read_bytes(), digest_size=16).hexdigest()
    with shared() as decoder:
        assert decoder.hash(str(videos[0])) == expected
        assert decoder.hash(spec.uri) == expected
        plain_storage.requests.clear()
        assert decoder.verify(spec.uri, spec.place) == decoder.verify(str(videos[0]))
        decoder.verify(spec.uri, spec.place)
        assert decoder.hash(spec.uri, spec.place) == expected
        assert len(plain_storage.requests) <= 4


@pytest.mark.slow
def test_nothing_stays_open(plain_storage: Storage, videos: list[Path], heavy: Path) -> None:
    specs = put(plain_storage, videos)
    plain_storage.objects["bucket/film.mp4"] = heavy.read_bytes()
    uri = "s3://bucket/film.mp4"
    large = replace(spec_for(uri), place=Place(uri, heavy.stat().st_size))

    def open_memories() -> int:
        names = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.lexists(entry.path)]
        return sum("memfd:video" in name or str(videos[0].parent) in name for name in names)

    before = open_memories()
    with Decoder(RANGES) as decoder:
        for _ in range(3):
            decoder.clips(specs, never)
            decoder.clips([large], never)
            assert open_memories() == before
        decoder.expect(specs)
        decoder.probe(specs[0].uri)
    until = time.monotonic() + 10
    while open_memories() > before and time.monotonic() < until:
        time.sleep(0.02)
    assert open_memories() == before
