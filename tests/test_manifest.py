"""Sources, index, labels and the Parquet file."""

import itertools
import os
import pickle
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from footage import make_video
from hypothesis import given
from hypothesis import strategies as st

from rayjepa.config import DataConfig
from rayjepa.data import synthetic
from rayjepa.data.columns import SCHEMA
from rayjepa.data.index.indexing import held_out, index
from rayjepa.data.index.sources import list_videos
from rayjepa.data.index.summary import SPLIT_FROM
from rayjepa.data.manifest import Manifest, read, write

CFG = DataConfig(frames=4, fps=8.0, size_px=32)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three synthetic videos with their labels."""
    return synthetic.make(tmp_path_factory.mktemp("cache"), 3, processes=1)


def indexed(source: str | Path, **options: object) -> Manifest:
    return index(source, cfg=CFG, **{"processes": 1, **options})


def table(n: int, **columns: list[object]) -> pa.Table:
    """A manifest's table of n usable videos, without any file."""
    values: dict[str, list[object]] = {
        "uri": [f"/videos/{i:05d}.mp4" for i in range(n)],
        "bytes": [1000 + i for i in range(n)],
        "codec": ["h264"] * n,
        "fps": [24.0] * n,
        "duration_s": [5.0 + i for i in range(n)],
        "frames": [120] * n,
        "seek": ["planned"] * n,
        "split": ["train"] * n,
        "status": ["ok"] * n,
    }
    rows = [dict(zip(values | columns, row, strict=True)) for row in zip(*(values | columns).values(), strict=True)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


# ---------------------------------------------------------------- sources


def test_a_folder_lists_its_visible_videos_recursively_and_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a/z.MKV", "a/notes.txt", ".hidden.mp4", ".git/x.mp4", "c.webm")
    assert list_videos(tmp_path).uris == [str(tmp_path / n) for n in ("a/z.MKV", "b.mp4", "c.webm")]
    assert list_videos(str(tmp_path)).folders == (str(tmp_path),)


def test_a_link_back_up_does_not_repeat_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.mp4")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert list_videos(tmp_path).uris == [str(tmp_path / "a" / "1.mp4")]


def test_a_relative_source_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.mp4")
    monkeypatch.chdir(tmp_path)
    assert list_videos("a").uris == list_videos("a/*.mp4").uris == [str(tmp_path / "a/1.mp4")]


def test_a_glob_takes_only_videos_and_is_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "x/2.mp4", "y/1.avi", "y/1.txt", "3.mp4")
    assert list_videos(f"{tmp_path}/*/*").uris == [str(tmp_path / "x/2.mp4"), str(tmp_path / "y/1.avi")]
    assert len(list_videos(f"{tmp_path}/**/*.mp4").uris) == 2


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "[set]/1.mp4")
    assert len(list_videos(tmp_path / "[set]").uris) == 1


def test_a_list_keeps_its_order_and_is_relative_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\ufeff# which\n\nsub/b.dat\n  a.mp4  \n/abs/c.mp4\n", "utf-8")
    assert list_videos(tmp_path / "list.txt").uris == [f"{tmp_path}/sub/b.dat", f"{tmp_path}/a.mp4", "/abs/c.mp4"]


def test_repeated_lines_are_kept_once_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.mp4\nb.mp4\n./a.mp4\na.mp4\n")
    with pytest.warns(UserWarning, match=r"2 repeated line\(s\) or file\(s\) left out, first: .*a\.mp4"):
        assert [Path(u).name for u in list_videos(tmp_path / "list.txt").uris] == ["a.mp4", "b.mp4"]


def test_names_that_are_not_text_are_left_out_with_a_warning(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")).write_bytes(b"x")
    with pytest.warns(UserWarning, match="1 file name"):
        assert len(list_videos(tmp_path).uris) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent", "no such source: .*absent does not exist; name a folder, a glob"),
        ("empty", "folder .*empty holds no file; name one that holds videos"),
        ("empty/*.mp4", "glob .* holds no file"),
        (
            "pictures",
            r"3 file\(s\), none with a video extension \(3gp .* wmv\), .*; found \.bmp \(2\), no ext.* \(1\)",
        ),
        ("comments.txt", "names no file; it needs one path a line"),
        ("binary.txt", "is not UTF-8 text"),
        ("rows.parquet", "cannot be read as Parquet: .*; name another file"),
    ],
)
def test_a_source_without_videos_is_refused_in_one_sentence(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "pictures/a.bmp", "pictures/b.BMP", "pictures/README", "rows.parquet")
    (tmp_path / "comments.txt").write_text("# nothing\n\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=message):
        list_videos(source if "://" in source else f"{tmp_path}/{source}")


# ---------------------------------------------------------------- index


def test_the_index_of_a_folder_says_what_each_video_is(videos: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = indexed(videos, progress=lambda done, total: seen.append((done, total)))
    rows = manifest.table.to_pylist()
    assert [r["uri"] for r in rows] == [str(videos / f"{i:06d}.mp4") for i in range(3)]
    assert seen[-1] == (3, 3)
    assert seen == sorted(set(seen))
    for i, row in enumerate(rows):
        labels = synthetic.labels_of(0, i)
        assert row["bytes"] == os.path.getsize(row["uri"])
        assert (row["codec"], row["width"], row["height"], row["rotation"]) == ("h264", 96, 96, 0)
        assert (row["status"], row["reason"], row["split"]) == ("ok", None, "train")
        assert row["duration_s"] == pytest.approx(labels.duration_s, abs=1e-3)
        assert row["fps"] == pytest.approx(24, rel=1e-3)
        assert row["label_identity"] == labels.identity
        assert row["label_vx"] == labels.vx


def test_the_number_of_probing_processes_changes_nothing(videos: Path) -> None:
    assert indexed(videos, processes=1) == indexed(videos, processes=3)


def test_one_file_is_a_source(videos: Path) -> None:
    assert len(indexed(videos / "000001.mp4")) == 1


def test_files_that_cannot_be_used_are_rows_with_a_reason(videos: Path, tmp_path: Path) -> None:
    whole = (videos / "000000.mp4").read_bytes()
    (tmp_path / "good.mp4").write_bytes(whole)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    names = ["good.mp4", "empty.mp4", "noise.mp4", "folder.mp4", "pipe.mp4", "absent.mp4"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    manifest = indexed(tmp_path / "list.txt")
    rows = {Path(r["uri"]).name: r for r in manifest.table.to_pylist()}
    assert list(rows) == names
    assert manifest.usable.tolist() == [True] + [False] * 5
    assert rows["empty.mp4"]["reason"] == "empty file"
    assert rows["folder.mp4"]["reason"] == "a folder, not a file"
    assert rows["pipe.mp4"]["reason"] == "not a regular file"
    assert rows["absent.mp4"]["reason"] == "file not found"
    assert rows["noise.mp4"]["reason"]
    assert rows["noise.mp4"]["duration_s"] is None
    text = manifest.summary(CFG)
    assert "6 videos" in text
    assert "1 usable, 5 bad" in text
    assert "file not found (1)" in text
    assert "fewer than 20 usable" in text


def test_a_folder_of_broken_videos_is_refused_with_reasons_and_names(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.mp4").write_bytes(b"")
    first = r".*0.mp4 .*1.mp4 .*2.mp4 \(empty file\)\. "
    message = rf"none of the 5 video\(s\) of .* can be used: empty file \(5\); first: {first}"
    with pytest.raises(ValueError, match=message):
        indexed(tmp_path)


def test_the_index_says_how_clips_are_read_and_nothing_of_what_it_did_not_decode(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", frames=12)
    make_video(tmp_path / "b.ts", frames=12)
    manifest = indexed(tmp_path)
    assert manifest.column("seek").to_pylist() == ["planned", "linear"]
    assert manifest.linear.tolist() == [False, True]
    assert manifest.column("damaged").to_pylist() == [None, None]
    assert manifest.column("origin").to_pylist() == [None, None]
    assert re.search("seeks: +1 usable videos are read from their first packet on", manifest.summary())
    assert "decoded in full" not in manifest.summary()


def test_a_full_verify_finds_what_one_frame_does_not_show(tmp_path: Path) -> None:
    good = make_video(tmp_path / "good.mp4", frames=48, container={"movflags": "+faststart"})
    data = np.frombuffer(good.read_bytes(), np.uint8).copy()
    middle = len(data) // 2
    hurt, ruined = data.copy(), data.copy()
    hurt[middle : middle + 60] = 0
    ruined[middle - len(data) // 6 :] = 0
    (tmp_path / "hurt.mp4").write_bytes(hurt.tobytes())
    (tmp_path / "ruined.mp4").write_bytes(ruined.tobytes())
    names = ["good.mp4", "hurt.mp4", "ruined.mp4"]
    quick, full = (indexed(tmp_path, verify=verify) for verify in ("quick", "full"))
    assert [Path(uri).name for uri in full.column("uri").to_pylist()] == names
    assert quick.usable.tolist() == [True, True, True]
    assert full.usable.tolist() == [True, True, False]
    assert full.column("damaged")[0].as_py() == 0
    assert full.column("damaged")[1].as_py() >= 1
    assert full.column("damaged")[2].as_py() is None
    assert "damaged" in full.column("reason")[2].as_py()
    assert re.search(r"decoded in full: 2 usable videos, \d+ damaged packet\(s\) in 1 of them", full.summary())
    assert full.fingerprint != quick.fingerprint  # a video that fails is drawn no more


# ---------------------------------------------------------------- labels


def test_labels_join_by_file_and_are_null_where_there_is_none(videos: Path, tmp_path: Path) -> None:
    shutil.copy(videos / "000000.mp4", tmp_path / "a.mp4")
    shutil.copy(videos / "000001.mp4", tmp_path / "b.mp4")
    (tmp_path / "labels.csv").write_text("class,file\n7,b.mp4\n")
    assert indexed(tmp_path).column("label_class").to_pylist() == [None, 7]


def test_label_rows_without_a_video_are_counted(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text(f"file,class\n{videos}/000000.mp4,1\ngone.mp4,2\n")
    with pytest.warns(UserWarning, match=r"1 row\(s\) name a file that is not indexed"):
        assert indexed(videos, labels=tmp_path / "more.csv").column("label_class").to_pylist() == [1, None, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read as CSV"),
        ("", "cannot be read as CSV"),
        ("file,class\na,1,2\n", "cannot be read as CSV"),
        ("name,class\na,1\n", "has columns name, class; it needs one named file"),
        ("file,class,class\na,1,2\n", "none twice"),
        ("file,class\na,1\na,2\n", "names .*/a twice; keep one row"),
        ("file,class\nx.mp4,1\n", "names none of the 1 videos; its column file is relative to"),
    ],
)
def test_labels_that_do_not_fit_are_refused(videos: Path, tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "l.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        indexed(videos / "000000.mp4", labels=tmp_path / "l.csv")


def test_a_foreign_labels_file_beside_the_videos_is_left_out_with_a_warning(videos: Path, tmp_path: Path) -> None:
    shutil.copy(videos / "000000.mp4", tmp_path / "a.mp4")
    (tmp_path / "labels.csv").write_text("video,class\na,1\n")
    with pytest.warns(UserWarning, match="No labels are taken"):
        assert indexed(tmp_path).table.column_names == SCHEMA.names


# ---------------------------------------------------------------- split, fingerprint, summary


def test_the_split_of_a_video_depends_on_its_path_alone(videos: Path, tmp_path: Path) -> None:
    for i in range(SPLIT_FROM + 10):
        (tmp_path / f"{i:02d}.mp4").symlink_to(videos / "000000.mp4")
    cfg = DataConfig(frames=4, fps=8.0, size_px=32, holdout=0.3)
    large = index(tmp_path, cfg=cfg, processes=2)
    for i in range(10):
        (tmp_path / f"{i:02d}.mp4").unlink()
    small = index(tmp_path, cfg=cfg, processes=2)
    assert 0 < len(large.holdout_rows) < len(large)  # the folder's own name is hashed too: no share is sure of 30
    assert len(large.train_rows) + len(large.holdout_rows) == len(large)
    assert large.column("split").to_pylist()[10:] == small.column("split").to_pylist()
    (tmp_path / "10.mp4").unlink()
    few = index(tmp_path, cfg=cfg, processes=2)
    assert len(few.holdout_rows) == 0
    assert "health is measured on training videos" in few.summary()


def test_the_share_held_out_is_the_configured_one() -> None:
    column = held_out(pa.array([f"/videos/{i}.mp4" for i in range(2000)]), usable=2000, holdout=0.3)
    assert column.to_pylist().count("holdout") == pytest.approx(600, abs=60)


@given(cuts=st.lists(st.integers(0, 12), max_size=4))
def test_the_fingerprint_does_not_depend_on_how_the_table_is_cut(cuts: list[int]) -> None:
    whole = table(12, bytes=[None, *range(11)])
    bounds = [0, *sorted(cuts), 12]
    parts = [whole.slice(a, b - a) for a, b in itertools.pairwise(bounds)]
    assert Manifest(pa.concat_tables(parts)).fingerprint == Manifest(whole).fingerprint


@pytest.mark.parametrize(
    ("column", "value"),
    [("uri", "/b"), ("bytes", 2), ("duration_s", 2.5), ("frames", 9), ("split", "holdout"), ("status", "bad")],
)
def test_the_fingerprint_changes_with_what_decides_the_tape(column: str, value: object) -> None:
    changed = table(3).to_pylist()
    changed[1][column] = value
    other = pa.Table.from_pylist(changed, schema=SCHEMA)
    assert Manifest(other).fingerprint != Manifest(table(3)).fingerprint


def test_the_fingerprint_changes_with_the_order_of_rows_and_not_with_labels() -> None:
    rows = table(3)
    assert Manifest(rows.take([1, 0, 2])).fingerprint != Manifest(rows).fingerprint
    assert Manifest(rows.append_column("label_a", pa.array([1, 2, 3]))).fingerprint == Manifest(rows).fingerprint
    assert len(Manifest(rows).fingerprint) >= 16


def test_rows_are_selected_by_status_and_split() -> None:
    manifest = Manifest(
        table(
            4,
            status=["ok", "bad", "ok", "ok"],
            split=["train", "train", "holdout", "train"],
            duration_s=[1.0, None, 0.1, 9.0],
        )
    )
    assert (manifest.train_rows.tolist(), manifest.holdout_rows.tolist()) == ([0, 3], [2])
    assert manifest.train_rows.dtype == np.int64
    assert np.isnan(manifest.duration_s[1])
    assert manifest.uri(3) == "/videos/00003.mp4"
    text = manifest.summary(CFG)
    assert re.search("short: +1 usable videos last less than a clip's 0.38 s", text)
    assert re.search("split: +2 train, 1 holdout", text)


# ---------------------------------------------------------------- the file


def test_a_manifest_comes_back_from_its_file_and_from_a_pickle(tmp_path: Path) -> None:
    manifest = Manifest(table(5).append_column("label_a", pa.array([1, None, 3, 4, 5])))
    write(manifest, tmp_path / "new" / "m.parquet")
    for copy in (read(tmp_path / "new" / "m.parquet"), pickle.loads(pickle.dumps(manifest))):
        assert copy == manifest
        assert copy.fingerprint == manifest.fingerprint
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["m.parquet"]


def test_a_failed_write_says_why_and_leaves_the_old_file(tmp_path: Path) -> None:
    touch(tmp_path, "file", "m.parquet/inside")
    for path in (tmp_path / "file" / "m.parquet", tmp_path / "m.parquet"):
        with pytest.raises(OSError, match=r"cannot write manifest .*m\.parquet: .*; name a file in a folder"):
            write(Manifest(table(1)), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "m.parquet"]


def test_what_is_not_a_manifest_is_refused_with_the_columns_at_fault(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    with pytest.raises(ValueError, match=r"no manifest: .* is not a file; make one with `rayjepa index`"):
        read(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"not a usable manifest: .*[Pp]arquet.*; make it again"):
        read(path)
    pq.write_table(pa.table({"uri": pa.array(["/a"], pa.large_string()), "path": ["/a"]}), path)
    with pytest.raises(ValueError, match=r"missing column\(s\) shard, .*bytes, .* and unknown column\(s\) path; "):
        read(path)
    pq.write_table(table(1), path)
    with pytest.raises(ValueError, match="right columns, but no format version"):
        read(path)
    pq.write_table(table(1).replace_schema_metadata({"rayjepa.manifest": "99"}), path)
    with pytest.raises(ValueError, match="format version 99, and this code reads 2, 3 and 4"):
        read(path)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("split", ["train", "test"], "column split holds 'test'; allowed: train, holdout"),
        ("status", ["ok", None], r"1 row\(s\) have no status"),
        ("duration_s", [1.0, None], r"1 row\(s\) have status ok, but no duration_s above 0"),
        ("duration_s", [0.0, float("inf")], r"2 row\(s\) have status ok, but no duration_s"),
        ("fps", [0.0, 1.0], r"1 row\(s\) have status ok, but no fps above 0"),
        ("uri", [None, "/a"], r"1 row\(s\) have no uri"),
        ("seek", ["planned", None], r"1 row\(s\) have no seek"),
        ("seek", ["planned", "exact"], "column seek holds 'exact'; allowed: planned, linear"),
    ],
)
def test_a_table_that_cannot_be_a_manifest_is_refused(column: str, values: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Manifest(table(2, **{column: values}))


def test_a_column_of_another_type_is_refused() -> None:
    rows = table(2)
    at = SCHEMA.get_field_index("frames")
    with pytest.raises(ValueError, match="column frames is string, not int64"):
        Manifest(rows.set_column(at, "frames", pa.array(["1", "2"])))


def test_listing_and_indexing_clean_files_warns_of_nothing(videos: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        indexed(videos)
