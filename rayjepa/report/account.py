"""What happened to the run and its data: attempts, coverage, replaced clips, refused steps, host."""

import platform
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import rayjepa
from rayjepa.report import tables
from rayjepa.report.digest import Digest
from rayjepa.report.numbers import plural, ranges, share
from rayjepa.report.phases import phases_in
from rayjepa.report.reading import Settings, read_json
from rayjepa.report.totals import bad_share
from rayjepa.train.attempts import read_ends
from rayjepa.train.history import coverage
from rayjepa.train.quarantine import NAME
from rayjepa.train.restart import restart_point


def attempts(run_dir: Path, digest: Digest, settings: Settings) -> str:
    """Table of attempts, why the workers of some ended, and whether what survives covers every sample once."""
    ends = "".join(f"<p>{escape(line)}</p>" for line in _ends(run_dir))
    return (
        tables.attempts_table(digest.lives, phases_in(settings))
        + ends
        + f"<p>{_coverage(run_dir, digest, settings)}</p>"
    )


def replaced(digest: Digest, settings: Settings) -> str:
    """Samples for which another video stood in, held-out clips likewise, and the file that has them all."""
    parts = [_replaced(digest, settings)]
    if digest.held_out:
        text = f"Of the held-out clips: {plural(len(digest.held_out), 'failure')}, each filled by another of them."
        parts += [f"<p>{escape(text)}</p>", tables.clips_tables(digest.held_out)]
    if digest.failures or digest.held_out or digest.table.of("failure", undone=True):
        parts.append(f'<p>One row for each failure, undone ones too: <a href="{NAME}">{NAME}</a>.</p>')
    return "".join(parts)


def _replaced(digest: Digest, settings: Settings) -> str:
    """Samples for which another video stood in, with the share at which the run would stop."""
    vain = len(digest.table.of("failure", undone=True))
    more = f" {plural(vain, 'more failure')} in undone steps." if vain else ""
    if not digest.failures:
        calm = "None: every clip of the surviving steps could be decoded." if digest.finished else "None so far."
        return tables.absent(calm + more)
    limit = f" The run stops above {share(settings.run.data.max_bad_share)}." if settings.run else ""
    tries = f"after {plural(len(digest.failures), 'failure')}"
    text = f"{plural(digest.replaced, 'sample')} ({bad_share(digest)}) took another video, {tries}.{limit}{more}"
    return f"<p>{escape(text)}</p>" + tables.clips_tables(digest.failures)


def refused(digest: Digest) -> str:
    """Steps that were computed and not applied, with what that means."""
    if not digest.refused:
        return tables.absent("None.")
    text = "Computed, then stopped before the update: weights, moments, target and schedule stayed as they were."
    return f"<p>{text}</p>" + tables.refused_table(digest.refused)


def host(run_dir: Path, digest: Digest) -> str:
    """Driver, versions, the last readings of every metric, and what could not be read."""
    driver = read_json(run_dir / "driver.json")
    facts: dict[str, Any] = {
        "driver": {"host": driver.get("host"), "process": driver.get("pid"), "command": _words(driver.get("command"))},
        "newest checkpoint": _versions(run_dir),
        "page written with": {"rayjepa": rayjepa.__version__, "python": platform.python_version()},
    }
    inner = tables.facts_table(facts)
    readings = {k: v for line in [*digest.steps[-1:], *digest.health[-1:]] for k, v in line.items() if "/" in k}
    if readings:
        names = ("Metric", "Last reading")
        inner += tables.folded(f"Last reading of {len(readings)} metrics", tables.facts_table(readings, names=names))
    if digest.damage:
        inner += tables.absent(f"Damaged lines of metrics are left out of this page. The first: {digest.damage}.")
    return inner


def _ends(run_dir: Path) -> list[str]:
    """One sentence for each attempt that ended by an error of its ranks; those of one reason together."""
    lines: list[str] = []
    for attempt, reasons in read_ends(run_dir).items():
        by_reason: dict[str, list[str]] = {}
        for rank, reason in reasons.items():
            by_reason.setdefault(reason, []).append(str(rank))
        said = "; ".join(f"rank {', '.join(who)}: {reason}" for reason, who in by_reason.items())
        lines.append(f"Attempt {attempt} ended: {said}.")
    return lines


def _coverage(run_dir: Path, digest: Digest, settings: Settings) -> str:
    """The proof line: whether the surviving history trained every sample so far once."""
    if not digest.finished:
        return "Coverage: nothing is trained yet."
    if settings.run is None:
        return "Coverage: not known, since the clips per step are not."
    end = digest.finished * settings.run.train.clips
    claim = f"Every sample of [0, {end:,}) trained exactly once"
    try:
        missing, repeated = coverage(run_dir, end)
    except (RuntimeError, UnicodeDecodeError) as error:
        return f"{claim}: <b>not known</b>, since a line of metrics is damaged ({escape(str(error))})."
    passed = f"{plural(digest.passed_over, 'sample')} of refused steps, passed over" if digest.passed_over else ""
    if not missing and not repeated:
        return f"{claim}: <b>yes</b>{f', but for {passed}' if passed else ''}."
    spans = (("missing", missing), ("more than once", repeated))
    faults = "; ".join(f"{what} {ranges(found)}" for what, found in spans if found)
    return f"{claim}: <b>no</b>; {faults}{f'; beside {passed}' if passed else ''}."


def _versions(run_dir: Path) -> dict[str, Any] | str:
    """Name of the newest surviving checkpoint and the versions that wrote it."""
    newest = restart_point(run_dir)
    if newest is None:
        return "none"
    return {"folder": newest.name, **read_json(newest / "state.json").get("versions", {})}


def _words(command: object) -> str | None:
    if isinstance(command, Sequence) and not isinstance(command, str):
        return " ".join(str(part) for part in command)
    return None if command is None else str(command)
