"""The page's tables: attempts, substituted clips, refused steps, configuration, host."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rayjepa.config import Phase, RunConfig, describe
from rayjepa.report.digest import Life
from rayjepa.report.numbers import NOTHING, duration, moment, number, plural, ranges
from rayjepa.report.reading import Settings
from rayjepa.report.totals import by_reason, by_video, text

LISTED = 50
"""Substituted clips, and refused steps, that are listed one by one."""
GROUPS = 20
"""Reasons, and videos, that are listed."""
NAMING = ("name", "out")
"""Settings that only say where the run is: never listed as a difference."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, kinds: str) -> str:
    """A table of escaped cells. `kinds` has a letter per column: n number, t text on one line, l long text, c code."""
    shown = [{"n": "n", "t": "t", "l": "long", "c": "c"}[k] for k in kinds]
    top = "".join(f'<th class="{c}">{escape(h)}</th>' for h, c in zip(head, shown, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{c}">{f"<code>{escape(cell)}</code>" if k == "c" else escape(cell)}</td>'
            for cell, c, k in zip(row, shown, kinds, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def absent(text: str) -> str:
    """A line that says what is not there."""
    return f'<p class="absent">{escape(text)}</p>'


def folded(title: str, inner: str) -> str:
    """A part that opens on a click, or shows its title alone on paper."""
    return f"<details><summary>{escape(title)}</summary>{inner}</details>"


def attempts_table(lives: Sequence[Life], phases: Sequence[Phase] = ()) -> str:
    """Every life of the worker group, with its phase if there are several, what was kept and what was lost."""
    if not lives:
        return absent("No attempt has started yet.")
    rows = [
        (
            f"{life.record.attempt}",
            moment(life.record.unix_s).removesuffix(" UTC"),
            f"{life.record.start:,}",
            *([phase.name] if (phase := phase_after(phases, life.record.start)) else []),
            Path(life.record.checkpoint).name if life.record.checkpoint else "none: untrained weights",
            f"{life.record.world:,}",
            life.record.host,
            duration(life.wall_s),
            f"{life.kept:,}",
            f"{life.undone:,}" if life.undone else NOTHING,
            duration(life.lost_s) if life.undone else NOTHING,
        )
        for life in lives
    ]
    head = ("No.", "Started (UTC)", "At step", *(["Phase"] if phases else []))
    more = ("Checkpoint", "Workers", "Host", "Ran", "Kept", "Undone", "Lost work")
    return table((*head, *more), rows, kinds=f"ntn{'t' if phases else ''}tntnnnn")


def phase_after(phases: Sequence[Phase], finished: int) -> Phase | None:
    """The phase of the step that follows, or the last; none of a run without phases."""
    return next((phase for phase in phases if finished < phase.stop), phases[-1] if phases else None)


def clips_tables(failures: Sequence[Mapping[str, Any]]) -> str:
    """Substituted clips by reason, by video, then one by one."""
    reasons = by_reason(failures)
    counted = table(
        ("Clips", "Stage", "Kind", "Reason"),
        [(f"{count:,}", *key) for key, count in reasons.most_common(GROUPS)],
        kinds="nttl",
    )
    if len(reasons) > GROUPS:
        counted += absent(f"And {plural(len(reasons) - GROUPS, 'rarer reason')}.")
    videos = by_video(failures)
    worst = [(f"{count:,}", uri) for uri, count in videos.most_common(GROUPS)]
    title = f"By video: {f'the worst {GROUPS} of ' if len(videos) > GROUPS else ''}{plural(len(videos), 'video')}"
    counted += folded(title, table(("Clips", "Video"), worst, kinds="nl"))
    rows = [
        (
            text(f, "uri"),
            number(f.get("index")),
            number(f.get("step")),
            text(f, "stage"),
            text(f, "failure_kind"),
            text(f, "reason"),
            text(f, "substitute"),
        )
        for f in failures[:LISTED]
    ]
    listed = table(("Video", "Sample", "Step", "Stage", "Kind", "Reason", "Substitute"), rows, kinds="lnnttll")
    title = f"The first {LISTED} of {len(failures):,}, one by one" if len(failures) > LISTED else "One by one"
    return counted + folded(title, listed)


def refused_table(refused: Sequence[Mapping[str, Any]]) -> str:
    """Steps that were computed and not applied."""
    rows = [
        (number(r.get("step")), number(r.get("attempt")), text(r, "reason"), _spans(r.get("samples")))
        for r in refused[:LISTED]
    ]
    more = absent(f"The first {LISTED} of {len(refused):,}.") if len(refused) > LISTED else ""
    return table(("Step", "Attempt", "Reason", "Samples passed over"), rows, kinds="nnlt") + more


def settings_tables(settings: Settings) -> str:
    """What differs from the defaults, then every knob."""
    if settings.run is None:
        raw = folded("run.yaml as it is", f"<pre><code>{escape(settings.raw)}</code></pre>") if settings.raw else ""
        return absent(settings.problem + ".") + raw
    known = [(knob, _at(settings.run, knob.key)) for knob in describe()]
    changed = [
        (k.key, _plain(v), _plain(k.default), k.help) for k, v in known if v != k.default and k.key not in NAMING
    ]
    every = [(k.key, _plain(v), k.help) for k, v in known]
    head = ("Key", "This run", "Default", "Meaning")
    first = table(head, changed, kinds="cccl") if changed else absent("All settings are the defaults.")
    whole = folded(f"All {len(every)} settings", table(("Key", "Value", "Meaning"), every, kinds="ccl"))
    return "<p>What differs from the defaults:</p>" + first + whole


def facts_table(facts: Mapping[str, Any], *, names: tuple[str, str] = ("Fact", "Value")) -> str:
    """A flat two-column table of whatever a mapping holds."""
    rows = [(key, number(v) if isinstance(v, float) else _plain(v)) for key, v in _flat(facts)]
    return table(names, rows, kinds="cc")


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _at(run: RunConfig, key: str) -> object:
    found: object = run
    for part in key.split("."):
        found = getattr(found, part)
    return found


def _plain(value: object) -> str:
    """A setting as one writes it in YAML; a nested section by its type's own words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_plain(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_plain(held)}" for key, held in value.items()) + "}"
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is not None:
        return "{" + ", ".join(f"{name}: {_plain(getattr(value, name))}" for name in fields) + "}"
    return str(value)


def _spans(found: object) -> str:
    if not isinstance(found, list) or not all(isinstance(s, list) and len(s) == 2 for s in found):
        return NOTHING
    return ranges(found, most=4)
