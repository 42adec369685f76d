"""README.md beside exported weights: what they are, what they were trained on, and what is known of their health."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rayjepa import __version__
from rayjepa.config import resolve
from rayjepa.data import manifest
from rayjepa.interop.weights import Weights, Which
from rayjepa.train.history import read_history
from rayjepa.train.restart import read_state, restart_point

Form = Literal["hf", "meta", "torch"]

READ = ("step", "clips", "held_out")
"""What a line of health says beside its gauges."""
LICENCE = "fill-in"
"""No licence of this name exists, so that the hub refuses the card until somebody has chosen one."""


def facts_of(source: Path) -> dict[str, Any]:
    """What the run of a run folder or checkpoint folder says of its weights; empty for any other source."""
    folder = source if (source / "state.json").is_file() else None
    if folder is None and (source / "attempts").is_dir():
        folder = restart_point(source)
    if folder is None:
        return {}
    state, run = read_state(folder), resolve(str(folder / "run.yaml"), {})
    facts: dict[str, Any] = {
        "run": run.name,
        "steps": state.finished,
        "samples": state.finished * run.train.clips,
        "seed": run.seed,
        "fingerprint": state.fingerprint,
        "versions": state.versions,
    }
    run_dir = folder.parent.parent
    if (run_dir / "manifest.parquet").is_file():
        known = manifest.head(run_dir / "manifest.parquet")
        facts["data"] = known.summary if known.fingerprint else manifest.read(run_dir / "manifest.parquet").summary()
    if (run_dir / "metrics").is_dir():
        facts["health"] = _health(run_dir, finished=state.finished)
    return facts


def write_card(weights: Weights, folder: Path, *, form: Form, which: Which | None, notes: Sequence[str]) -> Path:
    """Write README.md into `folder`."""
    path = folder / "README.md"
    path.write_text("\n".join(_lines(weights, form, which, notes)) + "\n")
    return path


def _health(run_dir: Path, *, finished: int) -> dict[str, Any]:
    """The newest examination of the target on held-out clips that is no newer than the weights."""
    lines = [line for line in read_history(run_dir).of("health") if line["step"] <= finished]
    if not lines:
        return {}
    newest = max(lines, key=lambda line: line["step"])
    return {name: value for name, value in newest.items() if name.startswith("collapse/") or name in READ}


def _lines(weights: Weights, form: Form, which: Which | None, notes: Sequence[str]) -> list[str]:
    model, clip, facts = weights.model, weights.clip, weights.facts
    held = weights.said(which) if which else "the context encoder as `encoder`, its moving average as `target_encoder`"
    return [
        "---",
        f"license: {LICENCE}",
        *(["library_name: transformers"] if form == "hf" else []),
        "tags: [video, self-supervised, jepa, rayjepa]",
        "---",
        "",
        f"# {facts.get('run') or 'Encoder'}",
        "",
        f"Exported by rayjepa {__version__}. **Licence: to be filled in by whoever publishes this**; it has to agree",
        "with that of the training data.",
        "",
        f"- Weights: {held}; from {_public(weights.origin)}",
        f"- Encoder: width {model.width}, depth {model.depth}, {model.heads} heads, patch {model.patch_px} px, tubelet "
        f"{model.tubelet} frame(s), position {model.position}"
        + (f" ({model.rope_pairing} angles)" if model.position == "rope" else ""),
        f"- Clips: {clip.frames} frame(s) of {clip.size_px} px"
        + (f" at {clip.fps:g} frames per second" if clip.frames > 1 else ""),
        *[f"- {note}" for note in (*weights.notes, *notes)],
        "",
        *_use(form),
        "",
        "## Training",
        "",
        *(_training(facts) or ["Not known to the exporter: fill in data, samples and steps."]),
    ]


def _public(origin: str) -> str:
    """An origin without the folders of this machine."""
    return re.sub(r"[^\s(]*/", "", origin)


def _use(form: Form) -> list[str]:
    match form:
        case "hf":
            return [
                "Load it with `transformers.AutoModel.from_pretrained(folder)` and its processor, or with",
                "`rayjepa.load(folder)`, which takes decoded frames as they are.",
            ]
        case "meta":
            return ["Load it as a checkpoint of Meta's repositories, or with `rayjepa.load(file)`."]
        case "torch":
            return [
                "Load it with `torch.export.load('encoder.pt2').module()`; encoder.json states its input and output."
            ]


def _training(facts: Mapping[str, Any]) -> list[str]:
    if not facts:
        return []
    lines = [f"- {facts['samples']:,} samples in {facts['steps']:,} steps, seed {facts['seed']}"]
    lines += [f"- Data: fingerprint {facts['fingerprint']}"]
    lines += [f"  - {line.partition('; first: ')[0]}" for line in str(facts.get("data", "")).splitlines()]
    lines += [f"- Versions: {', '.join(f'{name} {number}' for name, number in facts['versions'].items())}"]
    health = facts.get("health") or {}
    if "collapse/rankme" in health:
        floor, ceiling = health.get("collapse/rankme_floor"), health.get("collapse/rankme_ceiling")
        clips = "held-out clips" if health.get("held_out") else "clips of training videos (none was held out)"
        lines.append(
            f"- RankMe of the target on {health.get('clips')} {clips} after step {health['step']}: "
            f"{health['collapse/rankme']:.2f}"
            + (f"; a random encoder's (the floor) {floor:.2f}" if floor is not None else "")
            + (f"; highest possible {ceiling:.0f}" if ceiling is not None else "")
        )
    lines.append("- RankMe tells a collapse from a healthy representation; it is no measure of quality.")
    return lines
