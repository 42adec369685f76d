"""Sources at URLs give the rows that they would give here, whatever storage does, or a sentence that says why not."""

import io
import itertools
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from footage import make_video
from storage import Storage, fixture_bucket, fixture_moto_url

from rayjepa.cli import main
from rayjepa.config import DataConfig
from rayjepa.data import manifest
from rayjepa.data.columns import SCHEMA
from rayjepa.data.index.indexing import index
from rayjepa.data.index.sources import list_videos
from rayjepa.data.manifest import Manifest
from rayjepa.data.storage import faults
from rayjepa.data.storage.faults import NotThere, Refused

__all__ = ["fixture_bucket", "fixture_moto_url"]
CFG = DataConfig(frames=4, fps=8.0, size_px=32, retries=0)
SAME = [name for name in SCHEMA.names if name not in ("uri", "shard", "modified")]
NUMBERS = itertools.count()


@pytest.fixture(scope="module", name="contents")
def fixture_contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of all forms, by name; they name each other."""
    folder = tmp_path_factory.mktemp("footage")
    films = [make_video(folder / f"{k}.mp4", frames=12 + k).read_bytes() for k in range(4)]
    tar, cells, packed = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        for k, film in enumerate(films):
            member = tarfile.TarInfo(f"in/{k} ü.mp4")
            member.size = len(film)
            file.addfile(member, io.BytesIO(film))
    pq.write_table(pa.table({"video": films, "n": range(4)}), cells, compression="none")
    pq.write_table(pa.table({"video": films, "n": range(4)}), packed, compression="zstd", row_group_size=3)
    return {
        "set/a b.mp4": films[0], "set/später/#1 50%.mp4": films[1], "set/später/none.mp4": b"no video",
        "set/notes.txt": b"no list of videos", "set/.hidden/x.mp4": b"x",
        "set/labels.csv": "file,kind\na b.mp4,first\nspäter/#1 50%.mp4,second\n".encode(),
        "list.txt": "set/a b.mp4\nset/gone.mp4\nset/später/#1 50%.mp4\n".encode(),
        "list.csv": "set/a b.mp4 5\nset/später/#1 50%.mp4 6\n".encode(),
        "s.tar": tar.getvalue(), "s.parquet": cells.getvalue(), "z.parquet": packed.getvalue(),
    }  # fmt: skip


@pytest.fixture(name="here")
def fixture_here(contents: dict[str, bytes], tmp_path: Path) -> Path:
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.fixture(name="memory")
def fixture_memory(contents: dict[str, bytes]) -> Iterator[str]:
    """The same files as objects of this process; no other has them, and none needs them."""
    filesystem = fsspec.filesystem("memory")
    root = f"root{next(NUMBERS)}"
    for name, content in contents.items():
        filesystem.pipe(f"/{root}/{name}", content)
    yield f"memory://{root}"
    filesystem.rm(f"/{root}", recursive=True)


def same(found: Manifest, wanted: Manifest, root: str, here: Path) -> None:
    """Both hold the same, but for the folder that it lies in."""
    uris = [uri.replace(root, str(here)) for uri in found.column("uri").to_pylist()]
    assert uris == wanted.column("uri").to_pylist()
    labels = [name for name in wanted.table.column_names if name.startswith("label_")]
    assert found.table.select([*SAME, *labels]).to_pylist() == wanted.table.select([*SAME, *labels]).to_pylist()


def test_each_form_of_source_is_the_same_at_a_url(memory: str, here: Path) -> None:
    forms = ["set", "set/**/*.mp4", "list.csv", "s.tar", "s.parquet", "z.parquet"]
    made = []
    for root in (memory, str(here)):
        sources = [*(f"x={root}/{form}" for form in forms[1:]), f"{root}/set"]
        with pytest.warns(UserWarning, match=r"5 repeated line\(s\) or file\(s\) left out"):
            made.append(index(*sources, cfg=CFG, processes=1))
    found, wanted = made
    assert len(found) == 3 + 3 * 4
    same(found, wanted, memory, here)


def test_a_list_at_a_url_may_name_what_is_gone(memory: str) -> None:
    table = list_videos(f"{memory}/list.txt").table
    assert table.column("uri").to_pylist()[1] == f"{memory}/set/gone.mp4"
    assert [size is None for size in table.column("bytes").to_pylist()] == [False, True, False]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.mp4", "absent.mp4: no such object"),
        ("set/*.avi", r"none with a video extension .*; found \.\w+ \(\d\)|holds no file"),
        ("set/notes.txt", None),
    ],
)
def test_a_url_without_videos_is_one_sentence(memory: str, source: str, message: str | None) -> None:
    if message is None:  # a list of one line, which names nothing that is there
        assert list_videos(f"{memory}/{source}").table.column("bytes").to_pylist() == [None]
        return
    with pytest.raises((ValueError, NotThere), match=message):
        list_videos(f"{memory}/{source}")


# ---------------------------------------------------------------- S3


@pytest.fixture(name="stored")
def fixture_stored(bucket: tuple[Storage, Any], contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Storage:
    """All files in the bucket `videos`."""
    storage, client = bucket
    for name, content in contents.items():
        client.put_object(Bucket="videos", Key=name, Body=content)
    monkeypatch.setattr(faults, "FIRST_PAUSE_S", 0.01)
    return storage


@pytest.mark.slow
def test_each_form_of_source_is_the_same_in_a_bucket_that_throttles(stored: Storage, here: Path) -> None:
    stored.every = 4
    for form in ("set", "set/**/*.mp4", "list.csv", "s.tar", "s.parquet", "z.parquet"):
        found, wanted = (index(f"{root}/{form}", cfg=CFG, processes=2) for root in ("s3://videos", here))
        same(found, wanted, "s3://videos", here)
    assert len(stored.requests) > 20


@pytest.mark.slow
def test_only_what_has_changed_in_a_bucket_is_read(
    stored: Storage, bucket: tuple[Storage, Any], contents: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "m.parquet"
    words = ["index", "s3://videos/set", "s3://videos/s.tar", "-o", str(out), "data.retries=0"]
    assert main(words) == 0
    stored.requests.clear()
    assert main(words) == 0
    read = [path for method, path, _ in stored.requests if (method == "GET" and ".mp4" in path) or ".tar" in path]
    assert [path for path in read if "HEAD" not in path and "tar" not in path] == []
    bucket[1].put_object(Bucket="videos", Key="set/a b.mp4", Body=contents["set/später/#1 50%.mp4"])
    before = manifest.read(out)
    assert main(words) == 0
    after = manifest.read(out)
    changed = [a != b for a, b in zip(before.column("hash").to_pylist(), after.column("hash").to_pylist(), strict=True)]
    assert changed == [True] + [False] * (len(after) - 1)


@pytest.mark.slow
def test_a_missing_bucket_wrong_credentials_and_an_empty_prefix_are_one_sentence(
    stored: Storage, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def said(source: str) -> tuple[int, list[str]]:
        status = main(["index", source, "-o", str(tmp_path / "m.parquet")])
        return status, capsys.readouterr().err.strip().splitlines()

    status, [line] = said("s3://no-such-bucket/videos")
    assert (status, "there is no bucket 'no-such-bucket'" in line) == (1, True)
    status, [line] = said("s3://videos/nothing/")
    assert status in (1, 2)
    assert "s3://videos/nothing" in line
    stored.denied = True
    with pytest.raises(Refused, match="access denied"):
        list_videos("s3://videos/set/")
    status, [line] = said("s3://videos/set")
    assert (status, "access denied" in line) == (1, True)


@pytest.mark.slow
def test_videos_of_a_bucket_and_of_shards_are_made_anew_as_those_of_files_are(
    stored: Storage, here: Path, tmp_path: Path
) -> None:
    for form in ("set", "s.tar", "z.parquet"):
        made = []
        for root in ("s3://videos", here):
            out = tmp_path / "made" / f"{len(made)} {form}"
            words = ["--x264-preset", "ultrafast", "--clips", "1", "cluster.workers=0", "data.retries=0"]
            assert main(["transcode", f"{root}/{form}", "--out", str(out), *words]) == 0
            made.append(manifest.read(out / "manifest.parquet"))
        assert made[0].usable.sum() == (2 if form == "set" else 4)
        for name in ("status", "frames", "bytes", "duration_s"):
            assert made[0].column(name) == made[1].column(name), name
