"""Bytes that the child asks for while it works on a video: fetched, and told once they are there."""

import time

from rayjepa.data.request import Request
from rayjepa.data.sandbox import Sandbox
from rayjepa.data.storage.reads import Job, Reads


class Answering:
    """One question at a time: the child waits for its answer."""

    def __init__(self, reads: Reads) -> None:
        self.waited_s = 0.0
        """Seconds that the child has waited for answers."""
        self._reads = reads
        self._open: tuple[Request, Job, float] | None = None

    def step(self, child: Sandbox, requests: list[Request]) -> None:
        """Begin what the child asks for of the requests that it has, or tell it what has come of that."""
        question = child.asked() if self._open is None else None
        if question is not None:
            request = requests[child.in_hand]
            assert request.opened is not None, "who asks was sent a video that is not all here"
            self._open = request, self._reads.begin_range(request.opened, question), time.monotonic()
        if self._open is None or not self._open[1].is_done:
            return
        request, job, since = self._open
        self._open = None
        self.waited_s += time.monotonic() - since
        failure = job.failure
        if failure is None:
            child.tell(None, "io")
            return
        request.is_cut_off = True
        child.tell(failure.reason, failure.kind)

    def forget(self) -> None:
        """The child that asked is no more."""
        self._open = None
