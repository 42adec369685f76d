"""The live line of a run, read from its progress.json; plain lines where there is no terminal."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from rayjepa.config import Phase, RunConfig, phases_of

log = logging.getLogger(__name__)

# Without a terminal a line each this often, and one at each change of state.
PLAIN_S = 10.0


@contextmanager
def display(run: RunConfig, run_dir: Path) -> Iterator[Callable[[], None]]:
    """Give a function that shows the newest progress; call it a few times a second."""
    console = Console(stderr=True)
    if console.is_terminal and sys.stderr.isatty():
        with Live(console=console, refresh_per_second=4, transient=False) as live:
            yield _Picture(run, run_dir, live)
    else:
        yield _Lines(run, run_dir)


class _Picture:
    def __init__(self, run: RunConfig, run_dir: Path, live: Live) -> None:
        self.run, self.run_dir, self.live, self.remark = run, run_dir, live, ""
        self.phases = phases_of(run)

    def __call__(self) -> None:
        now = _read(self.run_dir)
        self.live.update(_table(self.run, self.phases, now))
        if (remark := now.get("ahead", "")) not in ("", self.remark):  # workers that start anew have none yet
            self.remark = remark
            self.live.console.print(self.remark, highlight=False)


class _Lines:
    def __init__(self, run: RunConfig, run_dir: Path) -> None:
        self.run, self.run_dir, self.phases = run, run_dir, phases_of(run)
        self.last_s, self.last_state, self.last_step, self.remark = 0.0, "", -1, ""

    def __call__(self) -> None:
        now = _read(self.run_dir)
        if (remark := now.get("ahead", "")) not in ("", self.remark):
            self.remark = remark
            log.info("%s", self.remark)
        state, step = now.get("state", "starting"), now.get("step", 0)
        due = time.monotonic() - self.last_s >= PLAIN_S and step != self.last_step
        if state != self.last_state or due:
            self.last_s, self.last_state, self.last_step = time.monotonic(), state, step
            log.info("%s", "  ".join(f"{name} {value}" for name, value in _facts(self.run, self.phases, now)))


def _read(run_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((run_dir / "progress.json").read_text())
    except (OSError, ValueError):
        return {}


def _facts(run: RunConfig, phases: Sequence[Phase], now: dict[str, Any]) -> list[tuple[str, str]]:
    """What the line says, as (name, value)."""
    step, end, time_left = now.get("step", 0), run.steps, "ETA"
    facts = [("", now.get("state", "starting")), ("step", f"{step}/{end}")]
    for phase in phases if len(phases) > 1 else ():
        if phase.name == now.get("phase"):
            facts.append((phase.name, f"{step - phase.first}/{phase.stop - phase.first}"))
            end = phase.stop  # the rate of this phase tells nothing of others
            time_left = f"{phase.name} ends in" if end < run.steps else time_left
    if now.get("attempt", 1) > 1:
        facts.append(("attempt", str(now["attempt"])))
    facts.append(("samples", f"{step * run.train.clips:,}"))
    formats = [
        ("clips/s", "rate/clips_per_s", "{:.1f}"),
        ("loss", "loss/latent", "{:.4f}"),
        ("rank", "collapse/rankme", "{:.1f}"),
        ("data wait", "data/wait_share", "{:.0%}"),
    ]
    facts += [(name, form.format(now[key])) for name, key, form in formats if now.get(key) is not None]
    rate = now.get("rate/clips_per_s")
    if rate and step < end:
        facts.append((time_left, _span((end - step) * run.train.clips / rate)))
    if now.get("quarantined"):
        facts.append(("bad clips", str(now["quarantined"])))
    return facts


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


def _table(run: RunConfig, phases: Sequence[Phase], now: dict[str, Any]) -> Table:
    done = now.get("step", 0) / max(run.steps, 1)
    table = Table.grid(padding=(0, 2))
    facts = _facts(run, phases, now)
    table.add_row(*[f"[dim]{name}[/dim]" for name, _ in facts])
    table.add_row(*[f"[bold]{value}[/bold]" for _, value in facts])
    width = 48
    filled = round(done * width)
    table.add_section()
    grid = Table.grid()
    grid.add_row(table)
    grid.add_row(f"[cyan]{'━' * filled}[/cyan][dim]{'─' * (width - filled)}[/dim] {done:.0%}")
    return grid
