"""The manifest's twin: the same rows, made once on a node, held in no process's own memory."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from test_tape import manifest, run_of

from rayjepa.bench import manifest_scale
from rayjepa.data.choice import Choice
from rayjepa.data.columns import SCHEMA
from rayjepa.data.eras import open_tape
from rayjepa.data.index.repeats import repeats
from rayjepa.data.lookup import COLUMNS
from rayjepa.data.manifest import GROUP, Manifest, head, read, write
from rayjepa.data.tape import Tape
from rayjepa.data.twin import UNUSED_DAYS, Twin, opened

OPEN = """
import os, signal, sys, threading, time
from pathlib import Path
from rayjepa.data.twin import opened
def die():
    while not list(Path(sys.argv[2]).rglob(".*.half/columns.arrow")):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)
if len(sys.argv) > 3:
    threading.Thread(target=die, daemon=True).start()
twin = opened(sys.argv[1], scratch=sys.argv[2])
print((twin.folder / "columns.arrow").stat().st_ino)
"""


def varied(rows: int) -> Manifest:
    """Rows of all kinds: files, shards, cells, hints, bad ones; of two sources."""
    table = [
        {
            "uri": f"s3://bücket/{i} vidéo.mp4" if i % 5 else f"/shards/{i // 5}.tar#{i}",
            "shard": None if i % 5 else f"/shards/{i // 5}.tar",
            "offset": None if i % 10 else 512 * i,
            "cell": f"video/{i}" if i % 10 == 5 else None,
            "bytes": None if i % 11 == 3 else 1000 + i,
            "duration_s": None if i % 11 == 3 else 2.0 + i % 7,
            "fps": 24.0,
            "frames": 48,
            "seek": None if i % 11 == 3 else ("planned", "linear")[i % 2],
            "split": ("train", "holdout")[i % 9 == 4],
            "status": "bad" if i % 11 == 3 else "ok",
            "reason": "gone" if i % 11 == 3 else None,
            "container": "png_pipe" if i % 13 == 6 else "mov",
            "source": ("a", "b")[i % 3 == 1],
            "stream": "other" if i % 17 == 2 else None,
            "head": 40 if i % 4 == 1 else None,
            "tail": 0 if i % 4 == 1 else None,
            "key_s": [0.0, 1.5] if i % 4 == 1 else None,
            "key_bytes": [40, 700] if i % 4 == 1 else None,
        }
        for i in range(rows)
    ]
    return Manifest(pa.Table.from_pylist(table, schema=SCHEMA))


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    write(varied(300), tmp_path / "m.parquet")
    return tmp_path / "m.parquet"


def twin_of(parquet: Path) -> Twin:
    twin = opened(parquet, scratch=str(parquet.parent / "scratch"))
    assert isinstance(twin, Twin)
    return twin


def test_a_twin_says_of_each_row_what_the_table_says(parquet: Path) -> None:
    twin, table = twin_of(parquet), read(parquet)
    assert (len(twin), twin.fingerprint, twin.summary()) == (300, table.fingerprint, table.summary())
    for row, values in enumerate(table.table.select(list(COLUMNS)).to_pylist()):
        entry, other = twin.entry(row), table.entry(row)
        usable = values["duration_s"] is not None
        assert usable or np.isnan(entry.duration_s)
        assert entry._replace(duration_s=0.0) == other._replace(duration_s=0.0)
        wanted = {**values, "seek": values["seek"] or "planned", "duration_s": values["duration_s"] if usable else 0.0}
        entry = entry if usable else entry._replace(duration_s=0.0)
        assert dict(zip(COLUMNS, entry, strict=True)) == wanted
    with pytest.raises(IndexError, match="row 300 is not in a manifest of 300 rows"):
        twin.entry(300)


@pytest.mark.parametrize("stream", [None, "other"])
@pytest.mark.parametrize("by_source", [False, True])
def test_a_twin_chooses_the_rows_that_the_table_chooses(parquet: Path, stream: str | None, by_source: bool) -> None:
    twin, table = twin_of(parquet), read(parquet)
    for split in ("train", "holdout"):
        choice = Choice(stream=stream, split=split, images=False, least_s=3.0, by_source=by_source)
        ours, theirs = twin.chosen(choice), table.chosen(choice)
        assert list(ours) == list(theirs)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
        rows = np.sort(np.concatenate(list(ours.values()))).tolist()
        assert rows == [
            i for i, row in enumerate(table.table.to_pylist())
            if row["status"] == "ok" and row["split"] == split and row["stream"] == stream
            and row["container"] == "mov" and row["duration_s"] >= 3
        ]  # fmt: skip
    assert all(isinstance(found, np.memmap) for found in twin.chosen(choice).values())


def test_the_tape_of_a_twin_is_that_of_the_table(parquet: Path) -> None:
    run = run_of(data__scratch=str(parquet.parent / "scratch"))
    ours, theirs = open_tape(run, parquet), Tape(run, read(parquet))
    assert [ours.spec(i, a) for i in range(200) for a in (0, 2)] == [
        theirs.spec(i, a) for i in range(200) for a in (0, 2)
    ]
    assert ours.held_out(40) == theirs.held_out(40)
    places = [spec.place for i in range(200) if (spec := ours.spec(i)).place is not None]
    assert {place.file.endswith(".tar") for place in places} == {True, False}
    assert any(place.spans for place in places)
    assert any(place.cell for place in places)


def test_rows_are_found_across_row_groups(tmp_path: Path) -> None:
    table = manifest([5.0]).table
    write(Manifest(table.take(pa.array(np.zeros(GROUP + 3, np.int64)))), tmp_path / "m.parquet")
    twin = twin_of(tmp_path / "m.parquet")
    assert pyarrow.parquet.ParquetFile(tmp_path / "m.parquet").num_row_groups == 2
    assert twin.entry(GROUP + 2) == twin.entry(0) == twin.entry(GROUP - 1)
    assert twin.chosen(Choice(stream=None, split="train", images=False))[None].tolist() == list(range(GROUP + 3))


def test_two_processes_that_come_at_once_make_one_twin(parquet: Path) -> None:
    words = [sys.executable, "-c", OPEN, str(parquet), str(parquet.parent / "scratch")]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0] for process in both]
    assert answers[0] == answers[1] != ""


def test_what_a_killed_maker_leaves_is_not_taken_for_a_twin(tmp_path: Path) -> None:
    write(varied(60_000), tmp_path / "m.parquet")
    words = [sys.executable, "-c", OPEN, str(tmp_path / "m.parquet"), str(tmp_path / "scratch"), "die"]
    assert subprocess.run(words, check=False, timeout=60).returncode == -signal.SIGKILL
    assert list((tmp_path / "scratch" / "twins").glob(".*.half/columns.arrow"))
    assert twin_of(tmp_path / "m.parquet").entry(59_999).nbytes == 60_999
    assert not list((tmp_path / "scratch" / "twins").glob(".*"))


def test_a_twin_that_is_cut_short_or_older_than_the_machines_start_is_made_again(parquet: Path) -> None:
    folder = twin_of(parquet).folder
    os.truncate(folder / "columns.arrow", 100)
    assert twin_of(parquet).entry(7).nbytes == 1007
    birth = json.loads((folder / "whole.json").read_text())
    (folder / "whole.json").write_text(json.dumps({**birth, "boot": "another"}))
    before = (folder / "columns.arrow").stat().st_ino
    assert twin_of(parquet).entry(7).nbytes == 1007
    assert (folder / "columns.arrow").stat().st_ino != before


def test_rows_that_are_not_those_of_the_fingerprint_are_refused(parquet: Path) -> None:
    table = pyarrow.parquet.read_table(parquet)
    pyarrow.parquet.write_table(table.slice(0, 299), parquet)  # it keeps what the file says of itself
    with pytest.raises(ValueError, match="its rows are not those of its fingerprint: something else than rayjepa"):
        twin_of(parquet)


def test_twins_that_nobody_opened_for_long_go_and_one_in_use_stays(parquet: Path, tmp_path: Path) -> None:
    others = []
    for rows in (5, 6):
        write(varied(rows), tmp_path / f"{rows}.parquet")
        others.append(twin_of(tmp_path / f"{rows}.parquet").folder)
    long_ago = time.time() - UNUSED_DAYS * 86400 - 60
    for folder in others:
        os.utime(folder, (long_ago, long_ago))
    with others[0].with_suffix(".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        twin = twin_of(parquet)
    assert [folder.is_dir() for folder in (*others, twin.folder)] == [True, False, True]


def test_a_scratch_folder_that_others_can_write_is_refused(parquet: Path) -> None:
    folder = parquet.parent / "scratch"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(RuntimeError, match=r"is not a folder that this user alone can write .*data.scratch"):
        twin_of(parquet)


def test_a_manifest_of_an_older_version_is_read_into_memory(tmp_path: Path) -> None:
    old = manifest([5.0] * 3).table.replace_schema_metadata({"rayjepa.manifest": "4"})
    pyarrow.parquet.write_table(old, tmp_path / "m.parquet")
    assert head(tmp_path / "m.parquet").fingerprint is None
    assert isinstance(opened(tmp_path / "m.parquet", scratch=str(tmp_path)), Manifest)


def test_repeated_paths_and_videos_on_both_sides_are_counted() -> None:
    table = manifest([5.0] * 6, holdout={5}).table
    uris = pa.array(["/a", "/b", "/a", "/c", "/b", "/c"], pa.large_string())
    streams = pa.array([None, None, None, None, "other", None])
    table = table.set_column(0, SCHEMA.field("uri"), uris)
    table = table.set_column(SCHEMA.get_field_index("stream"), SCHEMA.field("stream"), streams)
    found = repeats(Manifest(table))
    assert (found.twice, found.first, found.leaks, found.leak) == (2, "/a", 1, "/c")
    assert repeats(manifest([5.0] * 9)).twice == 0


@pytest.mark.slow
def test_private_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    more: dict[int, float] = {}
    for rows in (2_000, 400_000):
        home = tmp_path / str(rows)
        home.mkdir()
        table = manifest([5.0]).table
        write(Manifest(table.take(pa.array(np.zeros(rows, np.int64)))), home / "manifest.parquet")
        run = run_of(data__scratch=str(home / "scratch"), train__steps=1_000_000)
        manifest_scale.apart(manifest_scale.drawn_from, run, home)  # makes the twin
        more[rows] = manifest_scale.apart(manifest_scale.drawn_from, run, home)["private after that, MB more"]
    assert abs(more[400_000] - more[2_000]) < 2  # an array of the rows would be 3 MB
