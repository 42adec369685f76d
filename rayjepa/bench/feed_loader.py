"""The peer of the stream: PyTorch's DataLoader over the same tape, with the same decoder in each of its processes."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from rayjepa.bench.feed import Arrival
from rayjepa.config import RunConfig, prefetch_of
from rayjepa.data.decoders import Decoders
from rayjepa.data.eras import open_tape
from rayjepa.data.tape import Tape

Item = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float]
PATIENCE_S = 300.0
"""A process that decodes may take as long for a micro-batch, start included."""


class MicroBatches(Dataset[Item]):
    """Micro-batch number k of the tape: index, attempt, pixels, layout, and the moment at which it was decoded."""

    def __init__(self, run: RunConfig, manifest_path: Path) -> None:
        self.run, self.path = run, manifest_path
        self._opened: tuple[Tape, Decoders] | None = None

    def __len__(self) -> int:
        return self.run.samples // self.run.micro_batch

    def __getitem__(self, number: int) -> Item:
        if self._opened is None:  # in the process that decodes
            self._opened = open_tape(self.run, self.path), Decoders(self.run).__enter__()
        tape, decoders = self._opened
        size = self.run.micro_batch
        index = torch.arange(number * size, (number + 1) * size)
        decoded = decoders.clips([tape.spec(i) for i in index.tolist()], tape.spec)
        attempt = torch.from_numpy(np.array([spec.attempt for spec in decoded.specs]))
        pixels, layout = torch.from_numpy(decoded.pixels), torch.from_numpy(decoded.layout)
        return index, attempt, pixels, layout, time.time()


def drain(run: RunConfig, manifest_path: Path, *, for_s: float) -> list[Arrival]:
    """What one process gets from `cluster.decoders` others, in the tape's order, in `for_s` seconds of steady state.

    As many micro-batches are asked for ahead as the stream holds ready.
    """
    decoders = run.cluster.decoders
    loader: Any = DataLoader(
        MicroBatches(run, manifest_path),
        batch_size=None,
        num_workers=decoders,
        prefetch_factor=max(2, -(-prefetch_of(run) // decoders)),
        multiprocessing_context="spawn",  # forked, they would inherit Ray's threads in the middle of something
        timeout=PATIENCE_S,
    )
    taken: list[Arrival] = []
    until_s: float | None = None
    before_s = time.time()
    for index, *_, made_s in loader:
        now_s = time.time()
        taken.append(Arrival(clips=len(index), made_s=made_s, arrived_s=now_s, waited_s=now_s - before_s))
        before_s = now_s
        if until_s is None and made_s > taken[0].arrived_s:
            until_s = now_s + for_s
        if until_s is not None and made_s > until_s:
            break
    return taken
