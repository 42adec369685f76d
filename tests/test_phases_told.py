"""Phases in the configuration, on resume, in the plan, on the display and on the page; nothing is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from phased import CLIPS, COOL_STEPS, MAIN_STEPS, STEPS, run_of, saved

from rayjepa.cli.derived import require_one_model
from rayjepa.cli.videos import videos_of
from rayjepa.config import ConfigError, to_yaml
from rayjepa.data import synthetic
from rayjepa.report import list_runs, runs_table
from rayjepa.report.page import page
from rayjepa.train import folder
from rayjepa.train.history import History, begin_attempt


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "main"}, "phases have the names 'main', 'main'; each needs its own"),
        ({"name": " "}, "each needs its own"),
        ({"steps": 0}, "phases[].steps=0 must be at least 1"),
        ({"set": {"model.depth": 3}}, "phases[cool].set: model.depth is the same in all phases"),
        ({"set": {"train": {"clips": 8}}}, "phases[cool].set: train.clips is the same in all phases"),
        ({"set": {"train.steps": 8}}, "phases[cool].set: train.steps is of phase main; this one has"),
        ({"set": {"data.fraems": 8}}, "phases[cool].set: unknown key data.fraems; nearest: data.frames"),
        ({"set": {"train.accumulation": 3}}, "phases[cool].set: train.clips=4 is not a multiple of 1 worker"),
        ({"set": {"data.frames": 7}}, "phases[cool].set: data.frames=7 is neither 1 (images) nor a multiple"),
    ],
)
def test_a_mistake_in_a_phase_names_it(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_of(phases=[{"name": "cool", "steps": 2, "set": {}} | change])
    assert says in str(caught.value)


def test_a_phase_that_needs_other_weights_is_refused() -> None:
    require_one_model(run_of())
    with pytest.raises(ValueError, match=r"phases\[cool\]\.set: .* parameters .* as many mask types"):
        require_one_model(run_of(phases=[{"name": "cool", "steps": 2, "set": {"masks.kind": "tube"}}]))


def test_masks_that_a_later_phase_cannot_draw_end_the_run_before_it_begins(tmp_path: Path) -> None:
    cool = {"name": "cool", "steps": 2, "set": {"data.size_px": 8}}  # one patch
    with pytest.raises(ValueError, match=r"leaves no context on the token grid \(2, 1, 1\)"):
        videos_of(run_of(phases=[cool], data__videos=str(synthetic.make(tmp_path, 2))))


COOL_TEXT = (
    "{name: cool, steps: 2, set: {data.frames: 8, data.size_px: 48, train.accumulation: 2, "
    "optim.warmup_steps: 0, optim.lr: %s}}"
)


@pytest.mark.parametrize(
    ("finished", "change", "says"),
    [
        (3, {"train.steps": 9}, "after 3 steps the phases are main from step 0, cool from step 2; with these changes"),
        (3, {"phases": "[]"}, "phases that are over cannot change"),
        (3, {"phases": "[{name: cool, steps: 2, set: {data.frames: 16}}]"}, "data.frames cannot change on resume once"),
        (4, {"phases": f"[{COOL_TEXT % 1}]"}, "phases[cool].set cannot change: all of the phase's steps are finished"),
        (2, {"train.steps": 1}, "main from step 0, cool from step 1"),
    ],
)
def test_a_resume_may_not_change_a_phase_that_is_behind(
    tmp_path: Path, finished: int, change: dict[str, Any], says: str
) -> None:
    before = to_yaml(run_of())
    (tmp_path / "run.yaml").write_text(before)
    saved(tmp_path, finished)
    with pytest.raises(ConfigError) as caught:
        folder.reopen(tmp_path, change)
    assert says in str(caught.value)
    assert (tmp_path / "run.yaml").read_text() == before


@pytest.mark.parametrize(
    ("finished", "change", "steps"),
    [
        (2, {"train.steps": 9}, 11),  # right at the boundary main may go on
        (2, {"phases": "[{name: other, steps: 4, set: {data.frames: 16}}]"}, 6),
        (3, {"phases": f"[{COOL_TEXT % 1}, {{name: more, steps: 4, set: {{}}}}]"}, 8),
        (4, {"phases": f"[{COOL_TEXT % 5e-4}, {{name: more, steps: 1, set: {{}}}}]"}, 5),
    ],
)
def test_a_resume_may_change_what_lies_ahead(tmp_path: Path, finished: int, change: dict[str, Any], steps: int) -> None:
    (tmp_path / "run.yaml").write_text(to_yaml(run_of()))
    saved(tmp_path, finished)
    run, changed = folder.reopen(tmp_path, change)
    assert run.steps == steps
    assert len(changed) == 1
    assert folder.reopen(tmp_path, {}) == (run, [])


def test_page_and_table_tell_the_phases_apart(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(to_yaml(run_of(name="page")))
    saved(tmp_path, MAIN_STEPS)
    for attempt, steps, phase, rank in ((1, range(MAIN_STEPS), "main", 40.0), (2, range(2, 3), "cool", 8.0)):
        if attempt == 2:
            begin_attempt(tmp_path, owner="me", world=1)
        lines = History(tmp_path, attempt=attempt)
        for step in steps:
            trained = [[step * CLIPS, (step + 1) * CLIPS]]
            lines.append("step", step=step, trained=trained, **{"rate/clips_per_s": rank, "optim/lr": 0.1 * attempt})
        gauges = {"collapse/rankme": rank, "collapse/rankme_floor": rank / 2, "collapse/rankme_ceiling": 96.0}
        lines.append("health", step=steps.stop, phase=phase, clips=9, held_out=True, **gauges)
        lines.close()
    text = page(tmp_path, now=2e9)
    assert "of 4 (75 %); cool 1 of 2" in text
    assert "RankMe 8 of at most 96; random encoder 4" in text
    assert "partial collapse" not in text, "the examinations of two phases were compared"
    assert "Examined at step 3 on 9 held-out clips, in phase cool." in text
    assert 'title="cool begins at step 2"' in text
    assert 'class="attempt"' not in text, "a phase's beginning is shown as a restart"
    assert "8 frames at 8 fps, 48 px" in text
    (summary,) = list_runs(tmp_path)
    assert (summary.phase, summary.steps, summary.clips_per_s) == ("cool 1 of 2", STEPS, 8.0)
    assert "PHASE" in runs_table([summary])


def test_the_plan_adds_up_phases_and_streams(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from rayjepa.cli.budgeted_parts import show_parts
    from rayjepa.cli.plan import budgeted, figures_of
    from rayjepa.train.budget import gpu_named

    streams = [{"name": "video", "weight": 3, "set": {}}, {"name": "image", "weight": 1, "set": {"data.frames": 1}}]
    run = run_of(streams=streams, masks__kind="random")
    found = budgeted(run, gpu=gpu_named("h100"), mfu=0.4, price=2.0)
    assert [(part.phase.name, part.stream.name, part.share) for part in found.parts] == [
        ("main", "video", 0.75),
        ("main", "image", 0.25),
        ("cool", "video", 0.75),
        ("cool", "image", 0.25),
    ]
    for phase, steps in zip(found.phases, (MAIN_STEPS, COOL_STEPS), strict=True):
        assert phase.clips_per_s * phase.hours * 3600 == pytest.approx(steps * CLIPS)
        slow, fast = sorted(part.budget.clips_per_s for part in phase.parts)
        assert slow < phase.clips_per_s < fast
    assert (found.largest.phase.name, found.largest.stream.name) == ("cool", "video")
    assert found.cost == pytest.approx(2.0 * found.hours)
    file = figures_of(run, found)
    assert file["hours"] == pytest.approx(sum(phase["hours"] for phase in file["phases"]))
    show_parts(Console(width=120), run, found)
    assert "cool, video, which needs most" in capsys.readouterr().out


def test_the_display_counts_the_steps_of_the_phase(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from rayjepa.cli.display import display

    caplog.set_level("INFO")
    with display(run_of(), tmp_path) as refresh:
        for state, step, phase in (("training", 1, "main"), ("loading", 2, "cool"), ("saving", 3, "cool")):
            now = {"state": state, "step": step, "phase": phase, "rate/clips_per_s": 2.0}
            (tmp_path / "progress.json").write_text(json.dumps(now))
            refresh()
    first, second, third = (record.getMessage() for record in caplog.records)
    assert "step 1/4  main 1/2" in first
    assert "main ends in 2 s" in first
    assert "step 2/4  cool 0/2" in second
    assert "cool 1/2" in third
    assert "ETA 2 s" in third
