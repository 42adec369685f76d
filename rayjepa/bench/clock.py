"""Where the time of a step goes: parts that may hold others, each counted without what it holds."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

REST = "rest"
"""What lies between the parts."""


class Clock:
    """Marks the device's own stream where a part begins or ends; parts of one measurement sum to the whole.

    On a GPU marks are CUDA events, so that nothing waits before `stop`; elsewhere they are the time of day and the CPU
    time of this process.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self._open: list[str] = []
        """Names of the parts that have begun, the innermost last; empty outside of a measurement."""
        self._marks: list[tuple[str, Any, float]] = []
        """The part that begins or goes on, the moment, CPU seconds of this process."""

    def start(self) -> None:
        """Begin a measurement; what a GPU still has to do is waited for."""
        if self.is_cuda:
            torch.cuda.synchronize()
        self._open, self._marks = [REST], []
        self._mark()

    def stop(self) -> tuple[dict[str, float], dict[str, float]]:
        """Seconds of each part met since `start`, and CPU seconds of this process in each, of all threads."""
        self._mark()
        if self.is_cuda:
            torch.cuda.synchronize()
        spent: dict[str, float] = {}
        cpu: dict[str, float] = {}
        for (part, begun, cpu_begun), (_, ended, cpu_ended) in itertools.pairwise(self._marks):
            spent[part] = spent.get(part, 0.0) + self._between(begun, ended)
            cpu[part] = cpu.get(part, 0.0) + cpu_ended - cpu_begun
        self._open, self._marks = [], []
        return spent, cpu

    def enter(self, part: str) -> None:
        """`part` begins, inside the one that is open."""
        if self._open:
            self._open.append(part)
            self._mark()

    def leave(self) -> None:
        """The part that began last ends."""
        if self._open:
            self._open.pop()
            self._mark()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done inside is `name`."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def watch(self, module: nn.Module, part: str) -> None:
        """Every call of `module` is `part`."""
        module.register_forward_pre_hook(lambda *_: self.enter(part))
        module.register_forward_hook(lambda *_: self.leave())

    def watched(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """`function`, every call of which is `part`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return function(*args, **kwargs)

        return timed

    def _mark(self) -> None:
        now: Any = time.perf_counter()
        if self.is_cuda:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self._marks.append((self._open[-1], now, time.process_time()))

    def _between(self, begun: Any, ended: Any) -> float:
        return begun.elapsed_time(ended) / 1000 if self.is_cuda else ended - begun
