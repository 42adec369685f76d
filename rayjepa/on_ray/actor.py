"""The actor that decodes. Free of torch: there are many, and each would load it for nothing."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayjepa.config import RunConfig
from rayjepa.data import manifest
from rayjepa.data.decoders import Decoders
from rayjepa.data.tape import Tape

Columns = dict[str, Any]


class DecodeActor:
    """Numbers of micro-batches in, decoded clips out; owns a decoder and its child for life, or several.

    A micro-batch is of one stream; another may have clips of another size.
    """

    def __init__(self, run: RunConfig, manifest_path: str, start: int, first: int = 0) -> None:
        self.tape = Tape(run, manifest.read(manifest_path), first=first)
        self.decoders = Decoders(run).__enter__()
        self.start, self.size = start, run.micro_batch

    def __call__(self, rows: Columns) -> Columns:
        """Decode the micro-batch numbered `id` from the stream's start.

        Shapes:  id (1,) -> index (B,), attempt (B,) int64, pixels (B, nbytes) uint8, layout (B, 5) int32,
                 harm (B,) int32, failures (B,) JSON text.
        """
        index = ids_of(rows, start=self.start, size=self.size)
        decoded = self.decoders.clips([self.tape.spec(int(i)) for i in index], self.tape.spec)
        failures: dict[int, list[dict[str, Any]]] = {}
        for failure in decoded.failures:
            failures.setdefault(failure.index, []).append(asdict(failure))
        return {
            "index": index,
            "attempt": np.array([s.attempt for s in decoded.specs], np.int64),
            "pixels": decoded.pixels,
            "layout": decoded.layout,
            "harm": decoded.harm,
            "failures": np.array([json.dumps(failures[int(i)]) if int(i) in failures else "" for i in index], object),
        }


def ids_of(rows: Columns, *, start: int, size: int) -> NDArray[np.int64]:
    """Sample indices of one block of the stream: its one row `id` counts micro-batches of `size` from `start`."""
    (number,) = rows["id"]
    first = start + int(number) * size
    return np.arange(first, first + size, dtype=np.int64)
