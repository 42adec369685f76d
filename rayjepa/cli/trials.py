"""Trials of a sweep as people see them: a table that lives while they run, plain lines without a terminal, the end."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from rayjepa.config.sweep import Sweep
from rayjepa.report.numbers import NOTHING, number
from rayjepa.report.reading import read_json
from rayjepa.report.sweep import Row

log = logging.getLogger(__name__)

PLAIN_S = 10.0
"""Without a terminal, a line for each trial that has moved, this often; and one at each change of state."""


def table(rows: Sequence[Row], plan: Sweep, best: Row | None) -> Table:
    """The trials with their knobs, how far they came, and their metric beside its floor and ceiling."""
    from rayjepa.health.scores import score_of

    score = score_of(plan.space.metric)
    caption = f"{score.name}, {plan.space.mode} is better, on held-out clips. Floor: an untrained encoder. "
    found = Table(title=f"{len(rows)} trials", caption=caption + score.caution[0].upper() + score.caution[1:] + ".")
    found.add_column("trial", justify="right")
    for axis in plan.space.axes:
        found.add_column(axis.key, justify="right")
    for name in ("steps", "state", score.name.rpartition("/")[2], "floor", "ceiling", "run", "why"):
        found.add_column(name, justify="left" if name in ("state", "run", "why") else "right", overflow="fold")
    for row in rows:
        first = row.reason.splitlines()[0] if row.reason else ""
        cells = (
            str(row.number),
            *(_knob(row.knobs.get(axis.key, NOTHING)) for axis in plan.space.axes),
            f"{row.reached}/{plan.base.steps}",
            row.state,
            *(NOTHING if v is None else number(v) for v in (row.metric, row.floor, row.ceiling)),
            f"trials/{row.run_dir.name}",
            first if row.state == "failed" else "",
        )
        found.add_row(*cells, style="bold green" if best is not None and row.number == best.number else None)
    return found


def show(found: Table) -> None:
    """Print a table on stdout, as wide as it needs where nobody looks at a terminal."""
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(found)


@contextmanager
def trials_display(plan: Sweep, sweep_dir: Path) -> Iterator[Callable[[], None]]:
    """Give a function that shows how the trials stand; call it a few times a second."""
    console = Console(stderr=True)
    if console.is_terminal and sys.stderr.isatty():
        with Live(console=console, refresh_per_second=2, transient=True) as live:

            def refresh() -> None:
                live.update(_live(plan, standings(plan, sweep_dir)))

            yield refresh
    else:
        yield _Lines(plan, sweep_dir)


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How a trial stands at this moment, from its run folder."""

    name: str
    state: str
    step: int
    metric: float | None
    clips_per_s: float | None


def standings(plan: Sweep, sweep_dir: Path) -> list[Standing]:
    """Every trial that has a folder, in order."""
    folders = sorted(path for path in (sweep_dir / "trials").glob("[0-9]*") if path.is_dir())
    return [_standing(path, plan.space.metric) for path in folders]


def _standing(run_dir: Path, metric: str) -> Standing:
    now, outcome = read_json(run_dir / "progress.json"), read_json(run_dir / "outcome.json")
    state = str(outcome.get("state") or now.get("state") or "starting")
    if state == "stopped" and outcome.get("reason"):
        state = "stopped early"
    return Standing(
        name=run_dir.name,
        state=state,
        step=int(now.get("step", outcome.get("finished", 0))),
        metric=now.get(metric),
        clips_per_s=now.get("rate/clips_per_s"),
    )


class _Lines:
    def __init__(self, plan: Sweep, sweep_dir: Path) -> None:
        self.plan, self.sweep_dir = plan, sweep_dir
        self.said: dict[str, Standing] = {}
        self.last_s = time.monotonic()

    def __call__(self) -> None:
        due = time.monotonic() - self.last_s >= PLAIN_S
        if due:
            self.last_s = time.monotonic()
        for now in standings(self.plan, self.sweep_dir):
            before = self.said.get(now.name)
            if before is None or before.state != now.state or (due and before.step != now.step):
                self.said[now.name] = now
                log.info("trial %s  %s", now.name, "  ".join(_facts(self.plan, now)))


def _facts(plan: Sweep, now: Standing) -> list[str]:
    facts = [now.state, f"step {now.step}/{plan.base.steps}"]
    if now.metric is not None:
        facts.append(f"{plan.space.metric.rpartition('/')[2]} {number(now.metric)}")
    if now.clips_per_s is not None and now.state == "training":
        facts.append(f"{number(now.clips_per_s)} clips/s")
    return facts


def _live(plan: Sweep, now: Sequence[Standing]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for trial in now:
        filled = round(24 * trial.step / max(plan.base.steps, 1))
        bar = f"[cyan]{'━' * filled}[/cyan][dim]{'─' * (24 - filled)}[/dim]"
        grid.add_row(f"trial {trial.name}", bar, *_facts(plan, trial))
    whole = Table.grid()
    whole.add_row(grid)
    whole.add_row(f"[dim]{len(now)} of {plan.space.trials} trials begun[/dim]")
    return whole


def _knob(value: Any) -> str:
    return number(value, digits=4) if isinstance(value, float) else str(value)
