"""What sources name: four forms of lists, two of shards, odd names, and files that lie about themselves."""

import gzip
import io
import os
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayjepa.data.index.labels import read_labels
from rayjepa.data.index.shards import members
from rayjepa.data.index.sources import is_manifest, list_videos, named

ODD = ("a b.mp4", 'he said "no".mp4', "50%#1,2.mp4", "später/日本.mp4", "plain.mp4")
VALUES = [np.random.default_rng(k).bytes(1000 + 5000 * k) for k in range(12)]


def touch(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return [str(folder / name) for name in names]


def tar_of(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, value in zip(names, VALUES, strict=False):
            member = tarfile.TarInfo(name)
            member.size = len(value)
            tar.addfile(member, io.BytesIO(value))
    return path


def inside(shard: Path) -> pa.Table:
    return members(str(shard), shard.stat().st_size, "1")


# ---------------------------------------------------------------- lists


def test_the_form_of_v_jepa_splits_at_the_last_space_and_unquotes(tmp_path: Path) -> None:
    uris = touch(tmp_path, *ODD)
    lines = [ODD[0], '"he said ""no"".mp4"', *ODD[2:]]
    (tmp_path / "k400.csv").write_text("".join(f"{line} {k}\r\n" for k, line in enumerate(lines)), newline="")
    table = list_videos(tmp_path / "k400.csv").table
    assert table.column("uri").to_pylist() == uris
    assert table.column("label_label").to_pylist() == [0, 1, 2, 3, 4]
    assert table.column("label_label").type == pa.int64()
    assert table.column("bytes").to_pylist() == [len(name.encode()) for name in ODD]


def test_a_csv_with_a_header_names_files_labels_and_sources(tmp_path: Path) -> None:
    touch(tmp_path, *ODD)
    rows = [f'"{name.replace(chr(34), chr(34) * 2)}",{k / 2},kind {k},from{k % 2}' for k, name in enumerate(ODD)]
    (tmp_path / "l.csv").write_text("\n".join(["Video,score,kind,source", *rows]))
    table = list_videos(tmp_path / "l.csv").table
    assert table.column("uri").to_pylist() == [str(tmp_path / name) for name in ODD]
    assert table.column("source").to_pylist() == ["from0", "from1", "from0", "from1", "from0"]
    assert table.column("label_score").to_pylist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert table.column("label_kind")[4].as_py() == "kind 4"


def test_lists_as_parquet_and_npy_name_the_same_files_in_the_same_order(tmp_path: Path) -> None:
    uris = touch(tmp_path, *ODD)
    pq.write_table(pa.table({"path": list(ODD), "n": range(5), "more": [[1]] * 5}), tmp_path / "l.parquet")
    np.save(tmp_path / "text.npy", np.array(ODD))
    np.save(tmp_path / "bytes.npy", np.array([name.encode() for name in ODD]))
    np.save(tmp_path / "pairs.npy", np.array([(name, str(k)) for k, name in enumerate(ODD)]))
    fields = np.array([(name, k) for k, name in enumerate(ODD)], dtype=[("path", "U40"), ("n", "i4")])
    np.save(tmp_path / "fields.npy", fields)
    for name in ("l.parquet", "text.npy", "bytes.npy", "pairs.npy", "fields.npy"):
        assert list_videos(tmp_path / name).uris == uris, name
    assert list_videos(tmp_path / "l.parquet").table.column("label_n").to_pylist() == [0, 1, 2, 3, 4]
    assert "label_more" not in list_videos(tmp_path / "l.parquet").table.column_names
    assert list_videos(tmp_path / "pairs.npy").table.column("label_label").type == pa.int64()
    assert list_videos(tmp_path / "fields.npy").table.column("label_n").to_pylist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", b"a.mp4,3\n", r"begins with 'a\.mp4,3': it needs lines `path label` .* or commas and a header"),
        ("l.csv", b"my video.mp4\n", "A list of paths alone is a .txt"),
        ("l.csv", b"a.mp4 cat\n", "with a number as label"),
        ("l.csv", b"path,n\na.mp4,1,2\n", "cannot be read as CSV"),
        ("l.csv", b"path,n\n,1\n", "1 of 1 rows have no path"),
        ("l.csv", b"\n\n", "names no file"),
        ("l.csv", b"\xff\xfe a 1", "is not UTF-8 text"),
        ("l.npy", b"nothing", r"is no \.npy file; write it with np\.save"),
        ("l.parquet", b"PAR1", "cannot be read as Parquet"),
        ("s.tar.gz", b"", "is a compressed tar, .*; decompress it first"),
        ("s.TGZ", b"", "is a compressed tar"),
    ],
)
def test_a_list_of_another_form_is_refused_with_the_remedy(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list_videos(tmp_path / name)


def test_a_pickled_array_is_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.array(["a.mp4", None], object))
    with pytest.raises(ValueError, match=r"reading those could run any code; write it with np\.save"):
        list_videos(tmp_path / "l.npy")


@pytest.mark.parametrize("columns", [{"file_name": ["a"]}, {"path": [1]}])
def test_a_parquet_file_of_other_columns_says_what_it_needs(tmp_path: Path, columns: dict[str, list[object]]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    with pytest.raises(ValueError, match=r"one that names the files \(path, uri, file, video\)|is int64 and not text"):
        list_videos(tmp_path / "l.parquet")


def test_a_manifest_is_no_source_and_says_so(tmp_path: Path) -> None:
    table = pa.table({"uri": ["a"], "status": ["ok"]}).replace_schema_metadata({"rayjepa.manifest": "4"})
    pq.write_table(table, tmp_path / "m.parquet")
    assert is_manifest(str(tmp_path / "m.parquet"))
    with pytest.raises(ValueError, match=r"is a manifest, which needs no indexing; use it as data\.videos"):
        list_videos(tmp_path / "m.parquet")
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "l.parquet")
    assert not is_manifest(str(tmp_path / "l.parquet"))
    assert is_manifest(str(tmp_path / "absent.parquet"))  # so that it is missed as one


# ---------------------------------------------------------------- several sources


def test_rows_carry_the_name_of_their_source_and_repeated_files_stay_with_the_first(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "x=y"
    touch(first, "a.mp4", "b.mp4")
    touch(second, "c.mp4")
    (tmp_path / "more.txt").write_text("one/b.mp4\nx=y/c.mp4\n")
    with pytest.warns(UserWarning, match=r"2 repeated line\(s\) or file\(s\) left out, first: .*one/b\.mp4"):
        table = list_videos(f"k400={first}", str(second), f"more={tmp_path / 'more.txt'}").table
    names = [Path(uri).name for uri in table.column("uri").to_pylist()]
    sources = table.column("source").to_pylist()
    assert list(zip(names, sources, strict=True)) == [("a.mp4", "k400"), ("b.mp4", "k400"), ("c.mp4", None)]


def test_a_path_with_an_equals_sign_that_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a=b/x.mp4")
    assert named("a=b") == (None, "a=b")
    assert named("c=d/e=f") == ("c", "d/e=f")
    assert named("s3://bucket/key=value/") == (None, "s3://bucket/key=value/")


# ---------------------------------------------------------------- shards


def test_members_of_a_tar_lie_where_the_listing_says(tmp_path: Path) -> None:
    names = ["a.mp4", "in/" + "long" * 60 + ".mkv", "in/ü#1.jpg", "in/a.json", "._a.mp4", "b.MP4"]
    shard = tar_of(tmp_path / "s.tar", names)
    table = inside(shard)
    data = shard.read_bytes()
    assert table.column("uri").to_pylist() == [f"{shard}#{names[k]}" for k in (0, 1, 2, 5)]
    for row, k in zip(table.to_pylist(), (0, 1, 2, 5), strict=True):
        assert data[row["offset"] : row["offset"] + row["bytes"]] == VALUES[k]
    assert table.column("reason").null_count == 4


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.97])
def test_members_before_the_cut_of_a_tar_are_rows_and_the_rest_is_one_warning(tmp_path: Path, keep: float) -> None:
    whole = tar_of(tmp_path / "s.tar", [f"{k}.mp4" for k in range(12)])
    rows = inside(whole).to_pylist()
    size = int(whole.stat().st_size * keep)
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:size])
    with pytest.warns(
        UserWarning, match=r"1 thing\(s\) to say of 1 shard\(s\), first: .*cut\.tar is cut short: \d+ vid"
    ):
        table = list_videos(tmp_path / "cut.tar").table
    assert len(table) == sum(row["offset"] + row["bytes"] <= size for row in rows) > 0


def test_a_compressed_file_named_tar_says_what_to_do(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "s.tar", ["a.mp4"])
    (tmp_path / "z.tar").write_bytes(gzip.compress(whole.read_bytes()))
    with (
        pytest.warns(UserWarning, match=r"z\.tar is compressed; make it anew as an uncompressed tar"),
        pytest.raises(ValueError, match=r"1 shard\(s\), and no video in any; first: .*z\.tar is compressed"),
    ):
        list_videos(tmp_path / "z.tar")


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_plain_values_of_a_parquet_file_lie_where_the_listing_says(tmp_path: Path, kind: str, dictionary: bool) -> None:
    values = pa.array([*VALUES, None, VALUES[3]], pa.large_binary() if kind == "large_binary" else pa.binary())
    if kind == "struct":
        values = pa.StructArray.from_arrays([values, pa.array(["x"] * 14)], ["bytes", "path"])
    shard = tmp_path / "s.parquet"
    table = pa.table({"video": values, "n": range(14), "words": [["x"]] * 14, "source": ["k"] * 14})
    pq.write_table(table, shard, compression="none", use_dictionary=dictionary, row_group_size=5, data_page_size=20_000)
    with pytest.warns(UserWarning, match="1 of 14 cells of column video.* hold no bytes and were left out"):
        rows = list_videos(shard).table.to_pylist()
    data = shard.read_bytes()
    column = "video.bytes" if kind == "struct" else "video"
    assert [row["uri"] for row in rows] == [f"{shard}#{column}/{k}" for k in (*range(12), 13)]
    assert [data[row["offset"] : row["offset"] + row["bytes"]] for row in rows] == [*VALUES, VALUES[3]]
    assert [row["label_n"] for row in rows] == [*range(12), 13]
    assert {row["source"] for row in rows} == {"k"}
    assert "label_words" not in rows[0]


def test_compressed_values_of_a_parquet_file_are_found_by_their_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"video": VALUES, "other": VALUES}), tmp_path / "s.parquet", row_group_size=5)
    rows = list_videos(tmp_path / "s.parquet").table.to_pylist()
    assert [(row["cell"], row["offset"], row["bytes"]) for row in rows] == [
        (f"video/{k}", None, len(value)) for k, value in enumerate(VALUES)
    ]


def test_a_parquet_file_with_two_columns_of_bytes_must_say_which(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": VALUES, "b": VALUES}), tmp_path / "s.parquet")
    with pytest.raises(ValueError, match="columns a, b all hold bytes; name the one with the videos video or bytes"):
        list_videos(tmp_path / "s.parquet")


def test_a_folder_has_files_and_shards_in_one_order_and_passes_over_other_parquet(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "z.mp4")
    tar_of(tmp_path / "m.tar", ["2.mp4", "1.mp4"])
    pq.write_table(pa.table({"bytes": VALUES[:2], "kind": ["x", "y"]}), tmp_path / "n.parquet")
    pq.write_table(pa.table({"uri": ["a"], "status": ["ok"]}), tmp_path / "o.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = list_videos(tmp_path).table
    ends = [os.path.relpath(uri, tmp_path) for uri in table.column("uri").to_pylist()]
    assert ends == ["a.mp4", "m.tar#2.mp4", "m.tar#1.mp4", "n.parquet#bytes/0", "n.parquet#bytes/1", "z.mp4"]
    assert table.column("label_kind").to_pylist() == [None, None, None, "x", "y", None]


def test_a_list_may_name_shards(tmp_path: Path) -> None:
    tar_of(tmp_path / "s.tar", ["1.mp4", "2.mp4"])
    touch(tmp_path, "a.mp4")
    (tmp_path / "l.txt").write_text("a.mp4\ns.tar\nabsent.tar\n")
    rows = list_videos(tmp_path / "l.txt").table.to_pylist()
    assert [Path(row["uri"]).name for row in rows] == ["a.mp4", "s.tar#1.mp4", "s.tar#2.mp4", "absent.tar"]
    assert rows[-1]["bytes"] is None  # a row, that will be bad: file not found


# ---------------------------------------------------------------- labels


def test_labels_join_by_paths_however_they_are_written(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.mp4", "b c.mp4")
    (tmp_path / "l.csv").write_text(f'file,n\n./sub/../sub/a.mp4,1\n"b c.mp4",2\nfile://{tmp_path}/none.mp4,3\n')
    uris = pa.array([str(tmp_path / "b c.mp4"), str(tmp_path / "sub/a.mp4")], pa.large_string())
    with pytest.warns(UserWarning, match=r"1 row\(s\) name a file that is not indexed"):
        assert read_labels(tmp_path / "l.csv", uris=uris)["label_n"].to_pylist() == [2, 1]
