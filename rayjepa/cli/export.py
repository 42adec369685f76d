"""The verb `export`: weights of a run for other libraries."""

import dataclasses
from pathlib import Path
from typing import assert_never

from rayjepa.interop.card import Form, facts_of, write_card
from rayjepa.interop.torch_export import Input
from rayjepa.interop.weights import Which, new_folder, read_weights


def export(source: Path, out: Path, *, form: Form, which: Which | None, mask_token: int | None, takes: Input) -> int:
    """Write the weights at `source` to `out` in another form, with a card; the moving average unless told otherwise."""
    weights = read_weights(source)
    weights = dataclasses.replace(weights, facts=weights.facts or facts_of(source.expanduser()))
    new_folder(out)
    try:
        match form:
            case "hf":
                from rayjepa.interop import publish

                notes = publish.write(weights, out, which=which or "target", mask_token=mask_token)
            case "meta":
                from rayjepa.interop import meta

                _, notes = meta.write(weights, out, which=which, mask_token=mask_token)
            case "torch":
                from rayjepa.interop import torch_export

                torch_export.write(weights, out, which=which or "target", takes=takes)
                notes = []
            case _ as unreachable:
                assert_never(unreachable)
    except ValueError:
        out.rmdir()  # nothing is written before the form is found to have room for these weights
        raise
    written = which if form == "meta" else which or "target"
    card = write_card(weights, out, form=form, which=written, notes=notes)
    for note in (*weights.notes, *notes):
        print(f"note: {note}")
    print(f"wrote {', '.join(sorted(path.name for path in out.iterdir()))} to {out}")
    print(f"before you publish it, choose a licence in {card}")
    return 0
