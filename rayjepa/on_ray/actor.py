"""The actor that decodes. Free of torch: there are many, and each would load it for nothing."""

import json
import threading
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayjepa.config import RunConfig
from rayjepa.data.blocks import Blocks, Timing
from rayjepa.data.clip import Failure
from rayjepa.data.decoder import Decoded
from rayjepa.data.decoders import Decoders
from rayjepa.data.eras import open_tape

Columns = dict[str, Any]


class DecodeActor:
    """Numbers of blocks in, decoded clips out; owns a decoder and its child for life, or several.

    Called by two threads: one decodes, and has the decoder to itself, while Ray takes away what the other has decoded,
    and what that one wants next is fetched from remote storage.
    """

    def __init__(self, run: RunConfig, manifest_path: str, start: int, first: int = 0) -> None:
        self.tape = open_tape(run, Path(manifest_path), first=first, start=start)
        self.decoders = Decoders(run).__enter__()
        self.blocks = Blocks.of(run, start=start, first=first)
        self._turn = threading.Lock()
        self._since = time.monotonic()
        self._name = float(uuid.uuid4().int >> 75)  # 53 bits, which a float64 holds

    def __call__(self, rows: Columns) -> Columns:
        """Decode the block of number `id`.

        Shapes:  id (1,) -> index (N,), attempt (N,) int64, pixels (N, nbytes) uint8, layout (N, 5) int32, harm (N,)
                 int32, failures (N,) JSON text, timing (N, 6): a Timing, of what was spent an Nth each. N clips of m
                 micro-batches; of streams with clips of several sizes, nbytes is the largest in the block.
        """
        samples = self.blocks.samples(number_of(rows))
        wanted = [[self.tape.spec(int(i)) for i in micro_batch] for micro_batch in samples]
        for specs in wanted:  # of remote storage, while the block before is decoded
            self.decoders.expect(specs)
        with self._turn:
            began = time.monotonic()
            idle_s = began - self._since
            decoded = [self.decoders.clips(specs, self.tape.spec) for specs in wanted]
            self._since = time.monotonic()
        timing = Timing(
            decode_s=self._since - began,
            idle_s=idle_s,
            cpu_s=sum(part.cpu_s for part in decoded),
            read_s=sum(part.read_s for part in decoded),
            read_bytes=float(sum(part.read_bytes for part in decoded)),
            actor=self._name,
        )
        return block_of_clips(samples, decoded, timing)


def number_of(rows: Columns) -> int:
    """The number of the block that a row of the stream asks for."""
    (number,) = rows["id"]
    return int(number)


def block_of_clips(samples: NDArray[np.int64], decoded: list[Decoded], timing: Timing) -> Columns:
    """The columns of a block; see DecodeActor."""
    index = samples.ravel()
    return {
        "index": index,
        "attempt": np.array([spec.attempt for part in decoded for spec in part.specs], np.int64),
        "pixels": _joined([part.pixels for part in decoded]),
        "layout": np.concatenate([part.layout for part in decoded]),
        "harm": np.concatenate([part.harm for part in decoded]),
        "failures": _texts(index, [failure for part in decoded for failure in part.failures]),
        "timing": np.tile([*(spent / len(index) for spent in timing[:-1]), timing.actor], (len(index), 1)),
    }


def _joined(parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """All clips in rows as long as the longest; one micro-batch is not copied."""
    if len(parts) == 1:
        return parts[0]
    joined = np.empty((sum(map(len, parts)), max(part.shape[1] for part in parts)), np.uint8)
    at = 0
    for part in parts:
        joined[at : at + len(part), : part.shape[1]] = part
        joined[at : at + len(part), part.shape[1] :] = 0
        at += len(part)
    return joined


def _texts(index: NDArray[np.int64], failures: list[Failure]) -> NDArray[np.object_]:
    by_sample: dict[int, list[dict[str, Any]]] = {}
    for failure in failures:
        by_sample.setdefault(failure.index, []).append(asdict(failure))
    return np.array([json.dumps(by_sample[int(i)]) if int(i) in by_sample else "" for i in index], object)
