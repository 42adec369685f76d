"""What had to be given up in a run, counted: by reason, by video, and in a few lines for a terminal."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rayjepa.report.digest import Digest
from rayjepa.report.numbers import NOTHING, plural, share

PRINTED = 5
"""Reasons that are printed."""


def by_reason(failures: Iterable[Mapping[str, Any]]) -> Counter[tuple[str, str, str]]:
    """How many failures there are of each (stage, kind, reason).

    A reason that names its own video does so no more, so that the same trouble with many videos is one.
    """
    return Counter((text(f, "stage"), text(f, "failure_kind"), _reason(f)) for f in failures)


def by_video(failures: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How many failures each video has."""
    return Counter(text(f, "uri") for f in failures)


def printed(digest: Digest) -> str:
    """Lines for a person: clips that were replaced and why, and what was given up beside them."""
    vain = len(digest.table.of("failure", undone=True))
    lines = [f"replaced: {plural(digest.replaced, 'sample')} after {plural(len(digest.failures), 'failure')}"]
    if digest.replaced:
        lines[0] += f", {bad_share(digest)}"
    if vain:
        lines[0] += f"; {plural(vain, 'more failure')} in undone steps"
    lines += _reasons(digest.failures)
    if digest.held_out:
        lines.append(f"held-out clips: {plural(len(digest.held_out), 'failure')}")
        lines += _reasons(digest.held_out)
    return "\n".join(lines)


def bad_share(digest: Digest) -> str:
    """Replaced samples over all that were drawn; empty before the first."""
    drawn = digest.samples + digest.passed_over
    return f"{share(digest.replaced / drawn)} of samples" if drawn else ""


def text(line: Mapping[str, Any], key: str) -> str:
    """One field of a line as it is shown."""
    found = line.get(key)
    return NOTHING if found is None or found == "" else str(found)


def _reasons(failures: Iterable[Mapping[str, Any]]) -> list[str]:
    groups = by_reason(failures).most_common()
    lines = [f"  {count:,} x {kind} in {stage}: {reason}" for (stage, kind, reason), count in groups[:PRINTED]]
    return lines + ([f"  and {plural(len(groups) - PRINTED, 'rarer reason')}"] if len(groups) > PRINTED else [])


def _reason(failure: Mapping[str, Any]) -> str:
    reason, uri = text(failure, "reason"), str(failure.get("uri") or "")
    return reason.replace(uri, "VIDEO") if uri else reason
