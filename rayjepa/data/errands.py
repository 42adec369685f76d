"""Requests in, answers in any order out, whatever becomes of the child that works on them: it is replaced."""

import logging
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Literal

from rayjepa.config import DataConfig
from rayjepa.data.clip import Failure, Limits
from rayjepa.data.memory import Memory
from rayjepa.data.request import MESSAGE_CLIPS, Request
from rayjepa.data.sandbox import ChildDied, Sandbox, poison_of
from rayjepa.data.storage.answering import Answering
from rayjepa.data.storage.reads import Reads
from rayjepa.data.storage.wanted import Opened
from rayjepa.data.video import BadVideo

logger = logging.getLogger(__name__)

Stage = Literal["open", "demux", "decode", "convert", "child"]
Kind = Literal["content", "io", "deadline", "crash"]
Settled = Generator[tuple[Request, dict[str, Any] | Failure], None, None]
"""A clip or question with its answer or final failure."""

BACKOFF_S = 0.1
"""Pause before the first retry; it doubles with each."""
LONGEST_PAUSE_S = 5.0
LONGEST_WAIT_S = 1.0
"""Until it is looked again at what is on its way, if nothing is heard of it."""
ROOM = 256 << 20
"""Address space of a child for batches: two of 85 I420 clips of 16 x 256 x 256."""


class Errands:
    """Sends requests to one child, two at a time, and says what came of each. For one thread."""

    def __init__(self, cfg: DataConfig) -> None:
        self.cfg = cfg
        self.restarts = 0
        """Children that had to be replaced."""
        self.limits = Limits(
            file_bytes=int(cfg.max_file_gib * 2**30),
            frame_pixels=cfg.max_frame_px,
            video_s=cfg.max_video_h * 3600,
            packets=cfg.max_packets,
        )
        self.reads = Reads(cfg)
        self.read_s = 0.0
        """Seconds in which the child had nothing to do, since all that is asked for was on its way."""
        self._whole = int(cfg.whole_mib * 2**20)
        self._answering = Answering(self.reads)
        self._sandbox: Sandbox | None = None
        self._writes = False
        self._room = ROOM
        self._failed_starts = 0
        self._waiting: deque[Request] = deque()
        self._sent: deque[list[Request]] = deque()
        self._done: list[Request] = []  # clips of the batch in hand that are from the child of now

    def close(self) -> None:
        """End the child and forget what it was asked; a later request starts another."""
        self._let_go()
        self._waiting.clear()
        self._sent.clear()
        self._done.clear()
        self.reads.close()
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    @property
    def reading(self) -> tuple[float, int, int]:
        """Seconds waited for bytes, bytes and requests of all that was read from afar or out of shards."""
        fetching = self.reads.fetching
        return self.read_s + self._answering.waited_s, fetching.nbytes + self.reads.copied, fetching.requests

    def expect(self, requests: Iterable[Request]) -> None:
        """Begin to fetch what a later call will ask for. From any thread."""
        self.reads.expect(request.wanted(self._whole) for request in requests)

    def make_room(self, memory: Memory) -> None:
        """Have a child that can map this, and another like it, beside all that it may use for decoding."""
        if 2 * len(memory.mapped) > self._room:
            self.close()
            self._room = 2 * len(memory.mapped)

    def may_write(self) -> None:
        """From now on have a child that may write to the file that it is handed."""
        if not self._writes:
            self.close()
            self._writes = True

    def started(self) -> Sandbox:
        """The child, ready for requests."""
        while not self.child().versions:
            try:
                self.child().start()
            except ChildDied as death:
                list(self._died(death))
        return self.child()

    def add(self, request: Request) -> None:
        """Have one more done; while `results` runs."""
        self._waiting.append(request)

    def results(self, requests: Iterable[Request]) -> Settled:
        """The answer to each question and for each clip alone, or its final failure, in any order.

        What is added meanwhile is done too. A clip can come twice, and the last time counts: a child that dies may have
        written anywhere in the batch, so all that it had decoded of it is decoded again.
        """
        self._done.clear()
        self._waiting.extend(requests)
        try:
            while self._waiting or self._sent:
                yield from self._feed()
                yield from self._receive()
            self._done.clear()
        except BaseException:
            self.close()  # what is in flight must not be taken for a later call's
            raise

    def _feed(self) -> Settled:
        """Send what is due, as far as there is room; yield what cannot be opened and has no try left."""
        child = self.child()
        while self._waiting and child.has_room:
            due: list[Request] = []
            parts: list[dict[str, Any]] = []
            opened: list[Opened] = []
            try:
                for request in self._due():
                    try:
                        file = self.reads.open(request.wanted(self._whole), keep=request.do != "clips")
                    except BadVideo as error:
                        is_final = request.wanted(self._whole).is_far  # it was tried often enough
                        for clip in request.clips():
                            clip.tries = self.cfg.retries if is_final else clip.tries
                            yield from self._failed(clip, error.stage, error.kind, error.reason)
                        continue
                    opened.append(file)
                    due.append(request)
                    request.nbytes = file.nbytes
                    times = request.deadlines(file.nbytes)
                    limits = {"cpu_s": times * self.cfg.decode_cpu_s, "wall_s": times * self.cfg.decode_wall_s}
                    parts.append(request.told(poison_of(request.uri), file.paged) | limits)
                if not due:
                    return
                memory, out = due[-1].memory, due[-1].out
                target = memory.fd if memory else out
                files = [file.fd for file in opened]
                child.send(parts, files if target is None else [*files, target], memory.number if memory else None)
                self._sent.append(due)
            finally:
                for request, file in zip(due, opened, strict=True):
                    if file.remote is not None and self._sent and self._sent[-1] is due:
                        request.opened = file
                    else:
                        file.close()

    def _due(self) -> Iterator[Request]:
        """Take from `_waiting` what one message may hold: a question, or clips enough."""
        now, clips = time.monotonic(), 0
        for _ in range(len(self._waiting)):
            request = self._waiting.popleft()
            if request.not_before > now or not self._is_here(request):
                self._waiting.append(request)
                continue
            clips += len(request.specs)
            yield request
            if request.do != "clips" or clips >= MESSAGE_CLIPS:
                return

    def _receive(self) -> Settled:
        """Wait for one answer, for bytes, or for the end of a pause; yield what is settled by it."""
        pause: float | None = None
        if self._waiting:
            pause = self._pause()
        if not self._sent:
            self.read_s += self.reads.wait(pause or 0.0)
            return
        child = self.child()
        try:
            answer = child.receive(pause if child.has_room else None)
        except ChildDied as death:
            yield from self._died(death)
            return
        self.reads.clear_wake()
        if answer is None:
            self._answering.step(child, self._sent[0])
            return
        self._failed_starts = 0
        requests = self._sent.popleft()
        pairs = list(zip(requests, answer, strict=True))
        if any(r.get("kind") == "io" for request, part in pairs if not request.is_cut_off for r in part["answers"]):
            self._replace()
        for request, part in pairs:
            request.release()
            clips = request.clips()
            for clip, reply in zip(clips, part["answers"], strict=True):
                if reply["ok"]:
                    self._done.append(clip)
                    yield clip, {**reply, "cpu_s": part["cpu_s"] / len(clips)}
                else:
                    clip.tries = self.cfg.retries if request.is_cut_off else clip.tries  # it was tried often enough
                    yield from self._failed(clip, reply["stage"], reply["kind"], reply["reason"])

    def _pause(self) -> float:
        """Seconds until one of those that wait is due, as far as that is known."""
        now = time.monotonic()
        if any(request.not_before <= now and self._is_here(request) for request in self._waiting):
            return 0.0
        return min([LONGEST_WAIT_S, *(r.not_before - now for r in self._waiting if r.not_before > now)])

    def _is_here(self, request: Request) -> bool:
        return self.reads.is_here(request.wanted(self._whole))

    def _let_go(self) -> None:
        """Close what was kept open for the child."""
        self._answering.forget()
        for message in self._sent:
            for request in message:
                request.release()

    def _died(self, death: ChildDied) -> Settled:
        """The request that the child had in hand has killed it; all others go to the next child, uncharged.

        If it was for several clips, each of them is tried alone, uncharged too, so that the culprit is found.
        """
        if death.started:
            culprit = self._sent[0].pop(death.part)
            culprit.release()
            clips = culprit.clips()
            self._bury()
            if len(clips) > 1:
                logger.warning("%s: %s with %d clips in hand; each alone now", clips[0].uri, death.reason, len(clips))
                self._waiting.extendleft(reversed(clips))
            else:
                yield from self._failed(clips[0], "child", death.kind, death.reason)
            return
        self._bury()
        self._failed_starts += 1
        if self._failed_starts > self.cfg.retries:
            raise RuntimeError(
                f"the decoder's child does not start: {death.reason}, {self._failed_starts} times in a row; "
                "its last words are on this process's stderr"
            ) from death

    def _failed(self, request: Request, stage: Stage, kind: Kind, reason: str) -> Settled:
        """Put one clip or question back for another try, or yield its failure if there is none left."""
        if kind != "content" and request.tries < self.cfg.retries:
            pause = min(BACKOFF_S * 2**request.tries, LONGEST_PAUSE_S)
            logger.warning("%s: %s (%s, %s); next try in %.1f s", request.uri, reason, stage, kind, pause)
            request.tries += 1
            request.not_before = time.monotonic() + pause
            self._waiting.append(request)
            return
        index, attempt, video = -1, 0, -1
        for spec in request.specs:
            index, attempt, video = spec.index, spec.attempt, spec.video
        failure = Failure(
            index=index, attempt=attempt, video=video, uri=request.uri, stage=stage, kind=kind, reason=reason
        )
        yield request, failure

    def child(self) -> Sandbox:
        """The child; it may still be starting."""
        if self._sandbox is not None and not self._sent and not self._sandbox.is_alive:
            self._bury()  # it died while idle: no request is to blame
        if self._sandbox is None:
            memory_bytes = int(self.cfg.decode_memory_gib * 2**30) + self._room
            self._sandbox = Sandbox(
                memory_bytes=memory_bytes, limits=self.limits, writes=self._writes, wake=self.reads.wake
            )
        return self._sandbox

    def _bury(self) -> None:
        """As `_replace`, and what it had decoded of the batch waits too: nothing that it wrote is served."""
        done = [*self._done]
        self._replace()
        self._waiting.extend(done)

    def _replace(self) -> None:
        """End the child; its open requests wait for the next one, before all others."""
        assert self._sandbox is not None
        self._let_go()
        self._sandbox.close()
        self._sandbox = None
        self.restarts += 1
        self._waiting.extendleft(reversed([request for message in self._sent for request in message]))
        self._sent.clear()
        self._done.clear()
