"""A manifest that changes while a run goes on: named, refused or accepted, and every sample trained exactly once."""

import logging
import shutil
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pytest
from phased import saved

from rayjepa.cli import main
from rayjepa.config import RunConfig, phases_of, resolve
from rayjepa.data import synthetic
from rayjepa.data.columns import SCHEMA
from rayjepa.data.difference import difference
from rayjepa.data.eras import open_tape, read_eras
from rayjepa.data.index import indexing
from rayjepa.data.manifest import Manifest, read, write
from rayjepa.data.tape import Tape
from rayjepa.train import folder
from rayjepa.train.accepting import accept, require_same
from rayjepa.train.history import coverage, read_history
from rayjepa.train.restart import finished_steps, read_state, restart_point, surviving

CLIPS = 4


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    source = synthetic.make(tmp_path_factory.mktemp("videos"), 8)
    return indexing.index(str(source), cfg=resolve("tiny", {}).data)


def rows(videos: Manifest, places: Collection[int], *, holdout: Collection[int] = ()) -> Manifest:
    """Some rows of `videos`, of which some are held out."""
    table = videos.table.take(pa.array(list(places), pa.int64()))
    split = pa.array(["holdout" if place in holdout else "train" for place in places])
    return Manifest(table.set_column(SCHEMA.get_field_index("split"), SCHEMA.field("split"), split))


def words(home: Path, **knobs: object) -> list[str]:
    """The words of a short run on this process alone."""
    own = {
        "name": "run", "out": home, "cluster.workers": 0, "train.engine": "plain", "train.steps": 4,
        "health.every_steps": 100, "checkpoint.every_steps": 2, "checkpoint.keep": 9,
        "data.scratch": home / "scratch", "data.videos": home / "videos.parquet",
    }  # fmt: skip
    return [f"{key}={value}" for key, value in {**own, **knobs}.items()]


def begun(home: Path, videos: Manifest) -> Path:
    """A run of four steps over `videos`, finished."""
    write(videos, home / "videos.parquet")
    assert main(["pretrain", "--preset", "tiny", *words(home)]) == 0
    return home / "run"


def go_on(run_dir: Path, steps: int, *more: str) -> int:
    return main(["pretrain", "--resume", str(run_dir), f"train.steps={steps}", *more])


def run_of(run_dir: Path) -> RunConfig:
    return resolve(str(run_dir / "run.yaml"), {})


def test_an_accepted_manifest_is_drawn_from_the_next_step_on_whatever_is_resumed(
    tmp_path: Path, videos: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = rows(videos, range(5)), rows(videos, [0, 1, 2, 3, 5, 6, 7], holdout=[7])
    run_dir = begun(tmp_path, old)
    write(new, tmp_path / "new.parquet")
    with caplog.at_level(logging.INFO):
        assert go_on(run_dir, 8, "--accept-manifest", str(tmp_path / "new.parquet")) == 0
    assert "manifest accepted from step 4 on: 3 row(s) added (first: " in caplog.text
    assert "; 1 row(s) gone (" in caplog.text
    assert coverage(run_dir, 8 * CLIPS) == ([], [])
    states = {finished_steps(found): read_state(found).fingerprint for found in surviving(run_dir)}
    assert states == {2: old.fingerprint, 4: old.fingerprint, 6: new.fingerprint, 8: new.fingerprint}
    assert [(line["step"], line["fingerprint"]) for line in read_history(run_dir).of("manifest")] == [
        (0, old.fingerprint),
        (4, new.fingerprint),
    ]
    assert {path.stem for path in (run_dir / "manifests").glob("*.parquet")} == {old.fingerprint, new.fingerprint}
    assert read(run_dir / "manifest.parquet").fingerprint == new.fingerprint

    run = run_of(run_dir)
    tape, one, other = open_tape(run, run_dir / "manifest.parquet"), Tape(run, old), Tape(run, new)
    assert [tape.spec(i) for i in range(32)] == [(one if i < 16 else other).spec(i) for i in range(32)]
    assert tape.held_out(9) == other.held_out(9)

    for checkpoint in list(surviving(run_dir)):  # all that was trained since step 2 is lost, from before the change too
        if finished_steps(checkpoint) > 2:
            shutil.rmtree(checkpoint)
    assert go_on(run_dir, 8) == 0
    assert coverage(run_dir, 8 * CLIPS) == ([], [])
    newest = restart_point(run_dir)
    assert newest is not None
    assert read_state(newest).fingerprint == new.fingerprint
    assert [(line["step"], line["fingerprint"]) for line in read_history(run_dir).of("manifest")] == [
        (0, old.fingerprint),
        (2, old.fingerprint),
        (4, new.fingerprint),
    ]


def stopped(home: Path, videos: Manifest) -> tuple[RunConfig, Path]:
    """A run over `videos` that has a checkpoint after four steps."""
    write(videos, home / "videos.parquet")
    pairs = dict(word.split("=", 1) for word in words(home))
    run_dir, run = folder.create(resolve("tiny", pairs), videos, preset="tiny")
    saved(run_dir, 4)
    return run, run_dir


def test_a_replaced_manifest_is_an_error_that_says_what_differs_and_how_to_accept_it(
    tmp_path: Path, videos: Manifest
) -> None:
    run, run_dir = stopped(tmp_path, rows(videos, range(5)))
    path = run_dir / "manifest.parquet"
    write(rows(videos, range(6)), path)
    with pytest.raises(ValueError, match="is not the manifest that the run was trained with") as error:
        require_same(run, run_dir)
    assert f": 1 row(s) added ({videos.uri(5)}). To train on with it" in str(error.value)
    assert f"--resume {run_dir} --accept-manifest {path}`; or put it back (`cp " in str(error.value)
    with pytest.raises(ValueError, match=r"the run goes on with .*`rayjepa pretrain --resume"):
        open_tape(run, path)
    assert accept(run, run_dir, path) == [f"manifest accepted from step 4 on: 1 row(s) added ({videos.uri(5)})"]
    assert [era.first for era in read_eras(path)] == [0, 4]
    assert require_same(run, run_dir) == []
    assert accept(run, run_dir, path) == [f"{path} is the manifest that the run was trained with: nothing to accept"]


def test_a_video_that_may_have_been_trained_on_is_not_held_out_later(tmp_path: Path, videos: Manifest) -> None:
    run, run_dir = stopped(tmp_path, rows(videos, range(5)))
    moved = tmp_path / "moved.parquet"
    write(rows(videos, range(6), holdout=[1, 2]), moved)
    with pytest.raises(
        ValueError, match=r"holds out 2 video\(s\) that the run may have been trained on, first: "
    ) as error:
        accept(run, run_dir, moved)
    assert videos.uri(1) in str(error.value)
    assert [era.first for era in read_eras(run_dir / "manifest.parquet")] == [0]
    assert require_same(run, run_dir) == []


def test_a_change_of_data_videos_is_said_and_the_run_goes_on_with_its_own(tmp_path: Path, videos: Manifest) -> None:
    run, run_dir = stopped(tmp_path, rows(videos, range(5)))
    write(rows(videos, range(7)), tmp_path / "videos.parquet")
    (line,) = require_same(run, run_dir)
    assert line.startswith(f"{tmp_path / 'videos.parquet'} has changed since the run began, which goes on with its own")


def test_a_run_of_an_older_version_accepts_a_manifest_too(tmp_path: Path, videos: Manifest) -> None:
    old = rows(videos, range(5))
    run, run_dir = stopped(tmp_path, old)
    shutil.rmtree(run_dir / "manifests")
    (state,) = run_dir.glob("checkpoints/*/state.json")
    state.write_text(state.read_text().replace('"fingerprint": ""', f'"fingerprint": "{old.fingerprint}"'))
    assert require_same(run, run_dir) == []
    write(rows(videos, range(6)), tmp_path / "new.parquet")
    accept(run, run_dir, tmp_path / "new.parquet")
    tape = open_tape(run, run_dir / "manifest.parquet")
    assert [tape.spec(i) for i in range(16)] == [Tape(run, old).spec(i) for i in range(16)]


def test_a_renamed_copy_of_a_trained_video_is_known_by_its_bytes(videos: Manifest) -> None:
    other = rows(videos, [3], holdout=[3]).table.to_pylist()
    other[0] |= {"uri": "/elsewhere/renamed.mp4"}
    moved = Manifest(pa.Table.from_pylist(other, schema=SCHEMA))
    changes = difference(rows(videos, range(5)), moved)
    assert changes.to_holdout == (1, "/elsewhere/renamed.mp4")


def test_a_difference_names_rows_columns_and_order(videos: Manifest) -> None:
    old = rows(videos, range(4))
    assert str(difference(old, rows(videos, [1, 0, 2, 3]))) == "the same rows in another order"
    table = old.table.to_pylist()
    table[2] |= {"bytes": 77, "source": "new"}
    changes = difference(old, Manifest(pa.Table.from_pylist(table, schema=SCHEMA)))
    assert str(changes) == (
        f"1 row(s) with another bytes ({videos.uri(2)}: {videos.entry(2).nbytes} -> 77); "
        f"1 row(s) with another source ({videos.uri(2)}: None -> new)"
    )


def test_accept_manifest_goes_with_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--preset", "tiny", "--accept-manifest", "m.parquet"]) == 2
    assert "--accept-manifest goes with --resume" in capsys.readouterr().err


@pytest.mark.slow
def test_a_new_source_is_accepted_for_a_phase_that_weighs_it(tmp_path: Path, videos: Manifest) -> None:
    def named(places: Collection[int]) -> Manifest:
        table = rows(videos, places).table
        names = pa.array(["a" if place < 5 else "b" for place in places])
        return Manifest(table.set_column(SCHEMA.get_field_index("source"), SCHEMA.field("source"), names))

    write(named(range(5)), tmp_path / "videos.parquet")
    weights = "data.sources=[{name: a, weight: 1}]"
    assert main(["pretrain", "--preset", "tiny", *words(tmp_path), weights]) == 0
    run_dir = tmp_path / "run"
    write(named(range(8)), tmp_path / "new.parquet")
    both = "{data.sources: [{name: a, weight: 1}, {name: b, weight: 3}]}"
    more = [f"phases=[{{name: more, steps: 16, set: {both}}}]", "--accept-manifest", str(tmp_path / "new.parquet")]
    assert main(["pretrain", "--resume", str(run_dir), *more]) == 0
    assert coverage(run_dir, 20 * CLIPS) == ([], [])
    _, phase = phases_of(run_of(run_dir))
    tape = open_tape(phase.run, run_dir / "manifest.parquet", first=4 * CLIPS)
    of_b = sum(tape.spec(4 * CLIPS + i).uri in {videos.uri(row) for row in (5, 6, 7)} for i in range(64))
    assert abs(of_b - 48) < 10  # exact by the deck, and these are parts of two
