"""The verb `fuzz-decode`: damaged copies of videos through the stream, and what became of them."""

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayjepa.config import resolve
from rayjepa.data.clip import ClipSpec, Window
from rayjepa.data.decoder import Decoder

if TYPE_CHECKING:
    from rayjepa.on_ray.fuzz import Fuzzed

SETTINGS = {
    "data.frames": 8,
    "data.size_px": 64,
    "data.retries": 0,  # each child that dies names the video that did it
    "data.substitutes": 64,  # most of the videos are bad
    "train.clips": 8,
    "cluster.decoders": 2,
}
"""What differs from the tiny preset; all else is as in a run."""


def fuzz_decode(
    overrides: Mapping[str, object], *, files: int, seed: int, keep: Path | None, again: Path | None, out: Path | None
) -> int:
    """Print what became of damaged copies; the status is 1 if one was lost, or a clip came out of order."""
    run = resolve("tiny", {**SETTINGS, **overrides})
    if again is not None:
        return _once_more(again, run.data)
    if files < 1:
        raise ValueError(f"--files {files} must be at least 1")
    if run.cluster.workers == 0:
        raise ValueError("cluster.workers=0 has no stream to send files through; fuzz-decode needs at least 1")
    from rayjepa.on_ray.cluster import cluster

    load = os.getloadavg()[0]
    with cluster(run):
        from rayjepa.on_ray.fuzz import fuzz_stream

        result = fuzz_stream(run, files=files, seed=seed, keep=keep, say=lambda line: print(line, file=sys.stderr))
    print(text(result, keep=keep))
    print(f"{len(os.sched_getaffinity(0))} cores, load {load:.1f} before and {os.getloadavg()[0]:.1f} after")
    if out is not None:
        out.write_text(json.dumps(figures(result), indent=1))
    return 1 if result.lost else 0


def text(result: "Fuzzed", *, keep: Path | None) -> str:
    """The result for a person: each cell has copies that were trained clean / concealed / quarantined."""
    damages = list(dict.fromkeys(damage for _, damage, _ in result.fates))
    cells = Counter[tuple[str, str, str]]()
    for (form, damage, fate), count in result.fates.items():
        for place in ((form, damage), (form, "all"), ("all", damage), ("all", "all")):
            cells[*place, fate] += count
    forms = [*dict.fromkeys(form for form, _, _ in sorted(result.fates)), "all"]
    lines = [
        f"{result.copies} damaged copies of seed {result.seed} among {result.clips} clips, {result.seconds:.0f} s",
        "copies trained clean / with frames concealed / quarantined:",
        f"{'':12}" + "".join(f"{damage:>17}" for damage in [*damages, "all"]),
    ]
    for form in forms:
        shown = ("/".join(str(cells[form, d, f]) for f in ("clean", "concealed", "quarantined")) for d in damages)
        total = "/".join(str(cells[form, "all", f]) for f in ("clean", "concealed", "quarantined"))
        lines.append(f"{form:12}" + "".join(f"{cell:>17}" for cell in [*shown, total]))
    quarantined = ", ".join(f"{n} {kind} in {stage}" for (stage, kind), n in result.failures.most_common())
    killers = Counter((k["name"], k["reason"], k["kind"]) for k in result.killers)
    seconds, slow = result.slowest
    lines += [
        f"quarantined: {quarantined or 'none'}",
        f"children replaced, dead ones and after read errors: {result.restarts}; ended at every try:"
        + ("" if result.killers else " none"),
        *(f"  {name}: {reason} ({kind}), {n} x{_remedy(name, keep)}" for (name, reason, kind), n in killers.items()),
        f"slowest micro-batch: {seconds:.2f} s, of {', '.join(slow)}",
        f"most memory: {result.actor_mib:.0f} MiB in an actor, {result.child_mib:.0f} MiB in a child",
        *(f"LOST: {line}" for line in result.lost),
    ]
    return "\n".join(lines)


def figures(result: "Fuzzed") -> dict[str, Any]:
    """The result as JSON has it."""
    fates = [{"format": f, "damage": d, "fate": fate, "copies": n} for (f, d, fate), n in result.fates.items()]
    failures = [{"stage": stage, "kind": kind, "copies": n} for (stage, kind), n in result.failures.items()]
    plain = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    return plain | {"fates": fates, "failures": failures}


def _remedy(name: str, keep: Path | None) -> str:
    """How to see it again."""
    return f"; rayjepa fuzz-decode --again {keep / name}" if keep else "; --keep DIR keeps such files"


def _once_more(path: Path, cfg: Any) -> int:
    """Decode the clip that a kept file died of, and say how that went; the status is 1 if it failed."""
    record = path.with_name(f"{path.name}.json")
    if not record.is_file():
        raise ValueError(f"{path} was not kept by `rayjepa fuzz-decode --keep`: there is no {record.name} beside it")
    told = json.loads(record.read_text())["spec"]
    shown = told["window"]
    window = Window(**{**shown, "scale": tuple(shown["scale"]), "aspect": tuple(shown["aspect"])})
    spec = ClipSpec(**{**told, "uri": str(path.resolve()), "attempt": 0, "window": window})
    cfg = dataclasses.replace(cfg, frames=spec.frames, size_px=spec.window.size_px, pixels=spec.pixels, substitutes=1)
    with Decoder(cfg) as decoder:
        try:
            done = decoder.clips([spec], lambda _, attempt: dataclasses.replace(spec, attempt=attempt))
        except RuntimeError as error:
            print(error)
            return 1
    print(f"decoded: {done.frames} frames, {int(done.harm[0])} missing or refused, {done.cpu_s:.3f} s of CPU")
    return 0
