"""Gradients averaged over ranks while backward still runs."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Averager:
    """Keeps the gradients of `parameters` in flat buckets, which are sent one by one as backward fills them.

    Buckets are cut from the order given, once and for all, so that a resumed run adds in the order of one that ran
    through. They are sent last first, as backward fills them, whatever a rank has ready: collectives meet in the same
    order on all ranks, and what becomes of a gradient does not hang on when its bucket is sent. A parameter that may be
    without a gradient belongs to the front, where only the end of backward waits for it.
    Source:  DistributedDataParallel (arXiv:2006.15704) sends gradients so; it cuts buckets anew after the first step.
    """

    def __init__(self, parameters: Sequence[Tensor], *, world: int, bucket: int) -> None:
        self.world = world
        self.early = 0
        """Buckets that the last step had sent before its backward was over."""
        self._flats: list[Tensor] = []
        self._members: list[list[tuple[Tensor, Tensor]]] = []
        """Of each bucket its parameters, and where their gradients lie."""
        self._place: dict[Tensor, int] = {}
        self._missing: list[int] = []
        """Gradients that each bucket waits for; empty but in the last backward of a step."""
        self._sent: list[Any] = []
        for members in _cut(parameters, bucket):
            flat = torch.zeros(sum(p.numel() for p in members), dtype=members[0].dtype, device=members[0].device)
            parts = flat.split([p.numel() for p in members])
            self._flats.append(flat)
            self._members.append([(p, part.view_as(p)) for p, part in zip(members, parts, strict=True)])
            for parameter in members:
                self._place[parameter] = len(self._flats) - 1
                parameter.register_post_accumulate_grad_hook(self._added)
        self.clear()

    def expect_last(self) -> None:
        """The next backward is the step's last: what it completes is sent at once."""
        self._missing = [len(members) for members in self._members]

    def finish(self) -> None:
        """Send what is left, wait for all, and turn sums into means."""
        self._missing, self.early = [], len(self._sent)
        while len(self._sent) < len(self._flats):
            self._send()
        for work in self._sent:
            work.wait()
        self._sent = []
        for flat in self._flats:
            flat.div_(self.world)

    def clear(self) -> None:
        """Begin a step's sums at 0."""
        torch._foreach_zero_(self._flats)  # pyright: ignore[reportPrivateImportUsage]
        for members in self._members:
            for parameter, gradient in members:
                parameter.grad = gradient

    def _added(self, parameter: Tensor) -> None:
        if not self._missing:
            return
        self._missing[self._place[parameter]] -= 1
        while len(self._sent) < len(self._flats) and not self._missing[-1 - len(self._sent)]:
            self._send()

    def _send(self) -> None:
        self._sent.append(dist.all_reduce(self._flats[-1 - len(self._sent)], async_op=True))


def _cut(parameters: Sequence[Tensor], size: int) -> list[list[Tensor]]:
    """Parameters in their order, in buckets of at least `size` elements but for the last."""
    buckets: list[list[Tensor]] = [[]]
    for parameter in parameters:
        if sum(p.numel() for p in buckets[-1]) >= size:
            buckets.append([])
        buckets[-1].append(parameter)
    return buckets
