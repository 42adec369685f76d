"""An index looks once at each video: again only at what has changed, and after a kill at what was not finished."""

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from indexed import CFG, Index, column, fixture_decoder, fixture_folder, fixture_footage, fixture_indexed

from rayjepa.cli import main
from rayjepa.config import DataConfig
from rayjepa.data import manifest
from rayjepa.data.columns import SCHEMA
from rayjepa.data.index.duplicates import repeated
from rayjepa.data.index.indexing import held_out
from rayjepa.data.index.parts import parts_of
from rayjepa.data.index.probing import Look

__all__ = ["fixture_decoder", "fixture_folder", "fixture_footage", "fixture_indexed"]


# ---------------------------------------------------------------- what a row says


def test_a_row_knows_size_time_and_hash_of_its_file(indexed: Index, folder: Path, tmp_path: Path) -> None:
    made, _ = indexed(f"mine={folder}", out=tmp_path / "m.parquet")
    for row in made.videos.table.to_pylist():
        path = Path(row["uri"])
        assert row["bytes"] == path.stat().st_size
        assert row["modified"] == str(path.stat().st_mtime_ns)
        assert row["source"] == "mine"
        good = row["status"] == "ok"
        assert row["hash"] == (hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() if good else None)
    assert manifest.read(tmp_path / "m.parquet") == made.videos
    assert not (tmp_path / ".m.parquet.parts").exists()


def test_videos_in_shards_are_what_they_are_as_files(indexed: Index, footage: list[Path], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for video in footage:
            tar.add(video, arcname=f"in it/{video.name}")
    cells = pa.table({"video": [video.read_bytes() for video in footage], "n": [5, 6, 7]})
    pq.write_table(cells, tmp_path / "plain.parquet", compression="none")
    pq.write_table(cells, tmp_path / "packed.parquet", compression="zstd")
    (tmp_path / "list.txt").write_text("\n".join(map(str, footage)))
    names = [n for n in SCHEMA.names if n not in ("uri", "shard", "offset", "cell", "modified", "split")]
    wanted = indexed(tmp_path / "list.txt", out=tmp_path / "m.parquet")[0].videos.table.select(names)
    for shard in ("s.tar", "plain.parquet", "packed.parquet"):
        made, _ = indexed(tmp_path / shard, out=tmp_path / f"of {shard}.parquet")
        assert made.videos.table.select(names) == wanted, shard
    assert made.videos.column("label_n").to_pylist() == [5, 6, 7]


# ---------------------------------------------------------------- once more


def test_only_new_and_changed_files_are_opened(
    indexed: Index, folder: Path, footage: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "m.parquet"
    first, seen = indexed(folder, out=out)
    assert (first.change, seen) == (None, ["0.mp4", "1.mp4", "2.mp4", "none.mp4"])
    status = (folder / "0.mp4").stat()
    (folder / "0.mp4").write_bytes(bytes(status.st_size))  # with size and time as before: who opened it would see
    os.utime(folder / "0.mp4", ns=(status.st_atime_ns, status.st_mtime_ns))
    (folder / "1.mp4").write_bytes(footage[2].read_bytes())
    (folder / "2.mp4").unlink()
    (folder / "3.mp4").write_bytes(footage[1].read_bytes())
    second, seen = indexed(folder, out=out)
    assert seen == ["1.mp4", "3.mp4"]
    assert str(second.change) == "2 kept, 1 new, 1 changed, 1 gone"
    assert column(second, "frames") == {"0.mp4": 12, "1.mp4": 14, "3.mp4": 13, "none.mp4": None}
    assert indexed(folder, out=out)[1] == []
    third, seen = indexed(folder, out=out, fresh=True)
    assert seen == ["0.mp4", "1.mp4", "3.mp4", "none.mp4"]
    assert column(third, "status") == {"0.mp4": "bad", "1.mp4": "ok", "3.mp4": "ok", "none.mp4": "bad"}


def test_what_could_not_be_read_is_tried_again_and_what_is_bad_is_not(
    indexed: Index, footage: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "0.mp4").write_bytes(footage[0].read_bytes())
    (tmp_path / "none.mp4").write_bytes(b"no video")
    (tmp_path / "list.txt").write_text("0.mp4\nnone.mp4\nlater.mp4\n")
    out = tmp_path / "m.parquet"
    assert column(indexed(tmp_path / "list.txt", out=out)[0], "reason")["later.mp4"] == "file not found"
    assert indexed(tmp_path / "list.txt", out=out)[1] == ["later.mp4"]
    (tmp_path / "later.mp4").write_bytes(footage[1].read_bytes())
    made, seen = indexed(tmp_path / "list.txt", out=out)
    assert seen == ["later.mp4"]
    assert column(made, "status") == {"0.mp4": "ok", "none.mp4": "bad", "later.mp4": "ok"}


def test_more_is_looked_for_only_where_it_is_not_known(indexed: Index, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    indexed(folder, out=out, look=Look(cfg=CFG, hashes=False))
    assert indexed(folder, out=out)[1] == ["0.mp4", "1.mp4", "2.mp4"]
    assert indexed(folder, out=out, look=Look(cfg=CFG, verify="full"))[1] == ["0.mp4", "1.mp4", "2.mp4"]
    made, seen = indexed(folder, out=out, look=Look(cfg=CFG, hashes=False))
    assert seen == []
    assert None not in list(column(made, "hash").values())[:3]


def test_a_shard_that_has_not_changed_is_not_opened(indexed: Index, footage: list[Path], tmp_path: Path) -> None:
    shard, out = tmp_path / "s.parquet", tmp_path / "m.parquet"
    pq.write_table(pa.table({"video": [v.read_bytes() for v in footage], "n": [5, 6, 7]}), shard)
    first, _ = indexed(f"k={shard.parent}", out=out)
    status = shard.stat()
    shard.write_bytes(bytes(status.st_size))
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    again, seen = indexed(f"k={shard.parent}", out=out)
    assert (again.videos, seen) == (first.videos, [])
    os.utime(shard)
    with (
        pytest.warns(UserWarning, match="cannot be read after 0 video"),
        pytest.raises(ValueError, match="and no video in any"),
    ):
        indexed(f"k={shard.parent}", out=out)
    assert manifest.read(out) == first.videos  # an index that fails leaves what was there


def test_a_video_keeps_its_split_whatever_is_asked_for_later(
    indexed: Index, footage: list[Path], tmp_path: Path
) -> None:
    names = [f"{k:02d}.mp4" for k in range(24)]
    for name in names:
        (tmp_path / name).symlink_to(footage[0])
    out = tmp_path / "m.parquet"
    before, _ = indexed(tmp_path, out=out, look=Look(cfg=DataConfig(**{**vars(CFG), "holdout": 0.0})))
    assert set(column(before, "split").values()) == {"train"}
    (tmp_path / "24.mp4").symlink_to(footage[1])
    wide = Look(cfg=DataConfig(**{**vars(CFG), "holdout": 0.99}))
    after, seen = indexed(tmp_path, out=out, look=wide)
    assert seen == ["24.mp4"]
    assert set(list(column(after, "split").values())[:24]) == {"train"}
    alone = held_out(pa.array([str(tmp_path / name) for name in names], pa.large_string()), usable=25, holdout=0.99)
    assert after.keep_split == alone.to_pylist().count("holdout") > 20


# ---------------------------------------------------------------- twice


def test_files_with_the_same_bytes_are_named_and_dropped_on_request(
    indexed: Index, folder: Path, tmp_path: Path
) -> None:
    (folder / "1 again.mp4").write_bytes((folder / "1.mp4").read_bytes())
    out = tmp_path / "m.parquet"
    made, _ = indexed(folder, out=out)
    text = made.videos.summary()
    assert "1 usable videos have the bytes of one before them" in text
    assert f"first: {folder}/1.mp4 = {folder}/1 again.mp4" in text
    made, seen = indexed(folder, out=out, duplicates="drop")
    assert seen == []
    assert column(made, "reason")["1.mp4"] == f"same bytes as {folder}/1 again.mp4"
    assert "same bytes as another (1)" in made.videos.summary()
    (folder / "1 again.mp4").unlink()
    made, seen = indexed(folder, out=out, duplicates="drop")
    assert (seen, column(made, "status")["1.mp4"], column(made, "reason")["1.mp4"]) == ([], "ok", None)


@given(
    rows=st.lists(st.tuples(st.sampled_from([None, "a", "b" * 32, "c" * 32, "d" * 32]), st.booleans()), max_size=30),
    foreign=st.booleans(),
)
def test_the_rows_found_twice_are_those_that_a_loop_would_find(
    rows: list[tuple[str | None, bool]], foreign: bool
) -> None:
    first: dict[str, int] = {}
    wanted: list[tuple[int, int]] = []
    rows = rows if foreign else [row for row in rows if row[0] != "a"]
    for k, (digest, good) in enumerate(rows):
        if good and digest is not None and first.setdefault(digest, k) != k:
            wanted.append((k, first[digest]))
    table = pa.table(
        {
            "hash": pa.array([digest for digest, _ in rows], pa.string()),
            "status": pa.array(["ok" if good else "bad" for _, good in rows], pa.string()),
        }
    )
    assert list(zip(*(part.tolist() for part in repeated(table)), strict=True)) == wanted


# ---------------------------------------------------------------- interrupted


def test_an_interrupted_index_goes_on_where_it_was(indexed: Index, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"

    def stop(done: int, total: int) -> None:
        if done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        indexed(folder, out=out, progress=stop)
    assert not out.exists()
    made, seen = indexed(folder, out=out)
    assert 0 < len(seen) <= 2
    assert made.videos == indexed(folder, out=tmp_path / "other.parquet")[0].videos
    assert not (tmp_path / ".m.parquet.parts").exists()


def test_two_of_one_output_do_not_mix(indexed: Index, tmp_path: Path, folder: Path) -> None:
    with parts_of(tmp_path / "m.parquet"), pytest.raises(RuntimeError, match="another `rayjepa index` makes"):
        indexed(folder, out=tmp_path / "m.parquet")


def test_a_torn_part_counts_for_nothing(indexed: Index, tmp_path: Path, folder: Path) -> None:
    (tmp_path / ".m.parquet.parts").mkdir()
    (tmp_path / ".m.parquet.parts" / "1.parquet").write_bytes(b"PAR1 torn")
    with pytest.warns(UserWarning, match="cannot be read and counts for nothing"):
        _, seen = indexed(folder, out=tmp_path / "m.parquet")
    assert len(seen) == 4


def test_what_is_no_manifest_is_not_written_over(indexed: Index, tmp_path: Path, folder: Path) -> None:
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match="is not a usable manifest"):
        indexed(folder, out=tmp_path / "mine.parquet")


@pytest.mark.slow
def test_a_killed_index_loses_at_most_one_part(indexed: Index, footage: list[Path], tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "m.parquet"
    videos.mkdir()
    for k in range(1500):
        (videos / f"{k:04d}.mp4").symlink_to(footage[k % 3])
    small = "import sys; from rayjepa.data.index import parts; parts.ROWS = 16"
    script = f"{small}; from rayjepa.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", script, "index", str(videos), "-o", str(out)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(list(tmp_path.glob(".m.parquet.parts/*.parquet"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    whole = sum(pq.read_metadata(path).num_rows for path in tmp_path.glob(".m.parquet.parts/*.parquet"))
    assert not out.exists()
    made, seen = indexed(videos, out=out)
    assert len(seen) == 1500 - whole <= 1500 - 48
    assert made.videos.usable.all()
    assert [Path(uri).name for uri in made.videos.column("uri").to_pylist()] == [f"{k:04d}.mp4" for k in range(1500)]


# ---------------------------------------------------------------- the verb


def test_the_verb_tells_sources_from_keys(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.parquet"
    assert main(["index", f"mine={folder}", "-o", str(out), "data.holdout=0", "data.retries=0", "--no-hash"]) == 0
    assert set(manifest.read(out).column("source").to_pylist()) == {"mine"}
    assert main(["index", str(folder), "-o", str(out), "--duplicates", "drop", "data.retries=0"]) == 0
    said = capsys.readouterr().out
    assert "mine" in said
    assert f"since {out} was written: 1 kept, 0 new, 3 changed, 0 gone" in said
    assert main(["index", "data.holdout=0", "-o", str(out)]) == 2
    assert "no SOURCE: name a folder" in capsys.readouterr().err
    assert main(["index", str(folder), "-o", "s3://bucket/m.parquet"]) == 2
    assert "--out s3:/bucket/m.parquet is a URL; write the manifest to a file here" in capsys.readouterr().err
