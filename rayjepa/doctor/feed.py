"""`rayjepa doctor feed RUN`: what held a run's steps back, from its own metrics, and which knob to turn."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayjepa.bench.feed_verdict import FED, Feeding, Verdict, verdict
from rayjepa.config import RunConfig
from rayjepa.doctor.finding import Finding, error, ok, warning
from rayjepa.report.numbers import number, plural, share
from rayjepa.report.reading import is_run, read_settings
from rayjepa.train.history import read_history

Line = Mapping[str, Any]

STARVED = 0.5
"""Share of the steps' time from which on waiting for clips is an error: devices idle more than they work."""
OPTIONAL = {
    "transfer_ms": "data/transfer_ms",
    "blocks_per_s": "data/blocks_per_s",
    "decode_ms": "data/decode_ms",
    "decode_cpu_ms": "data/decode_cpu_ms",
    "read_ms": "data/read_ms",
    "read_mb": "data/read_mb",
    "busy_share": "data/busy_share",
}
"""What a run's lines may say beside waits and times: by field of a Feeding."""


def feed_findings(run_dir: Path) -> dict[str, list[Finding]]:
    """The whole run, its last interval, and how waits went, each as findings.

    Raises:  ValueError if the folder holds no run; RuntimeError if its metrics cannot be read.
    """
    if not is_run(run_dir):
        raise ValueError(f"{run_dir} holds no run; give the folder of one (`rayjepa runs` lists those in a folder)")
    lines, run = read_history(run_dir).of("step"), read_settings(run_dir).run
    if not lines:
        remedy = "wait for its first report (report.every_steps), or look at the run's state with `rayjepa runs`"
        return {"whole run": [warning("steps", "no step has been reported yet", remedy)]}
    steady = without_fill(lines)
    most = None if run is None else run.cluster.most_decoders
    spans = {"whole run": steady, "last interval": lines[-1:]}
    found = {name: _said(replace(fed_by(span), most_actors=most), run) for name, span in spans.items()}
    if len(steady) >= 3:
        found["trend"] = [_trend(steady)]
    return found


def without_fill(lines: Sequence[Line]) -> list[Line]:
    """The lines without the first of each attempt, in which the pipeline fills and the device warms up.

    All of them, where that would leave none.
    """
    kept = [line for before, line in zip([None, *lines], lines, strict=False) if before and _same(before, line)]
    return kept or list(lines)


def _same(before: Line, line: Line) -> bool:
    return before.get("attempt") == line.get("attempt")


def fed_by(lines: Sequence[Line]) -> Feeding:
    """The means over some lines, each as long as its steps took; what not all of them say is not said."""
    steps = [line.get("steps", 1) for line in lines]
    spans_ms = [n * line["time/step_ms"] for n, line in zip(steps, lines, strict=True)]

    def mean(key: str, weights: Sequence[int | float]) -> float:
        return float(sum(w * line[key] for w, line in zip(weights, lines, strict=True)) / sum(weights))

    said = {field: key for field, key in OPTIONAL.items() if all(key in line for line in lines)}
    by_time = ("blocks_per_s", "busy_share")
    means: dict[str, Any] = {field: mean(key, spans_ms if field in by_time else steps) for field, key in said.items()}
    return Feeding(
        steps=sum(steps),
        step_ms=mean("time/step_ms", steps),
        wait_ms=mean("data/wait_ms", steps),
        clips_per_s=mean("rate/clips_per_s", spans_ms),
        **means,
    )


def _said(fed: Feeding, run: RunConfig | None) -> list[Finding]:
    """The verdict first, then the figures that it is from."""
    said = verdict(fed, run)
    figures = [
        f"{number(fed.wait_ms)} of a step's {number(fed.step_ms)} ms, over {plural(fed.steps, 'step')}; "
        f"{number(fed.clips_per_s)} clips/s",
    ]
    lines = [_bound(said, fed), ok("wait", figures[0])]
    lines.append(ok("decode", _decode(fed, run)))
    if fed.transfer_ms:  # 0 where there is no stream
        rate = f", {number(fed.blocks_per_s)} blocks/s" if fed.blocks_per_s is not None else ""
        lines.append(ok("stream", f"{number(fed.transfer_ms)} ms a step from the object store into tensors{rate}"))
    return lines


def _bound(said: Verdict, fed: Feeding) -> Finding:
    remedy = "; or ".join(said.remedies)
    if fed.wait_share < FED:
        return ok("bound", said.found)
    return (error if fed.wait_share > STARVED else warning)("bound", said.found, remedy)


def _decode(fed: Feeding, run: RunConfig | None) -> str:
    if fed.decode_ms is None:
        if run is not None and run.cluster.workers == 0:
            return "in the training process itself, between two steps (cluster.workers=0)"
        return "not in these metrics: they are of an older version, which said waits and times of steps only"
    parts = [f"{number(fed.decode_ms)} ms a clip"]
    if fed.decode_cpu_ms is not None:
        parts.append(f"{number(fed.decode_cpu_ms)} ms of it CPU")
    if fed.read_ms is not None:
        mb = f" ({number(fed.read_mb)} MB)" if fed.read_mb else ""
        parts.append(f"{number(fed.read_ms)} ms of it storage{mb}")
    if fed.actors is not None and fed.busy_share is not None:
        parts.append(f"{fed.actors:.1f} decode actors, busy {share(fed.busy_share)} of the time")
    return ", ".join(parts)


def _trend(lines: Sequence[Line]) -> Finding:
    """Waits by thirds of the run."""
    cut = [round(len(lines) * k / 3) for k in range(4)]
    shares = [fed_by(lines[a:b]).wait_share for a, b in itertools.pairwise(cut)]
    said = ", ".join(share(value) for value in shares)
    found = f"waits by thirds of the run: {said} of the steps' time"
    if shares[2] > max(FED, 2 * shares[0]):
        remedy = "something got slower: storage, other users of the decoders' cores, or fewer decode actors than before"
        return warning("trend", f"{found}; rising", remedy)
    return ok("trend", found + ("; falling" if shares[0] > max(FED, 2 * shares[2]) else "; steady"))
