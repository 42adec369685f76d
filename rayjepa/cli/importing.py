"""The verb `import`: weights from elsewhere as a folder of ours."""

import dataclasses
from pathlib import Path

from rayjepa.interop.card import facts_of
from rayjepa.interop.weights import Given, Which, read_weights, write_weights


def import_weights(source: Path, out: Path, *, which: Which | None, predictor: bool, given: Given) -> int:
    """Read weights, say what was not certain of them, and write them to `out`."""
    weights = read_weights(source, given=given)
    weights = dataclasses.replace(weights, facts=weights.facts or facts_of(source.expanduser()))
    if which is not None:
        weights = weights.only(which)
    if not predictor:
        weights = dataclasses.replace(weights, predictor=None, predictor_state=None)
    write_weights(weights, out)
    model, count = weights.model, sum(tensor.numel() for tensor in weights.encoder.values())
    print(
        f"{weights.origin}: encoder of width {model.width}, depth {model.depth}, {model.heads} heads, {count:,} numbers"
    )
    for note in weights.notes:
        print(f"note: {note}")
    parts = ["encoder"] + ["target"] * (weights.target is not None) + ["predictor"] * (weights.predictor is not None)
    print(f"wrote {out}: {', '.join(parts)}")
    print(f"begin a run with it: rayjepa pretrain --preset {out / 'model.yaml'} model.init={out} …")
    return 0
