"""Clips for specs, whatever the files do: FFmpeg runs in a child, which is replaced when it dies.

A file whose content is bad is given up at once. After a read error, a deadline or a dead child it is tried again, in a
fresh child, `data.retries` times. What is given up is a Failure, and the sample's next substitute takes its place.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rayjepa.config import DataConfig
from rayjepa.data.clip import ClipSpec, Failure
from rayjepa.data.sandbox import Answer, ChildDied, Sandbox, poison_of
from rayjepa.data.video import BadVideo, Probe, open_file

logger = logging.getLogger(__name__)

Stage = Literal["open", "demux", "decode", "convert", "child"]
Kind = Literal["content", "io", "deadline", "crash"]

BACKOFF_S = 0.1
"""Pause before the first retry; it doubles with each."""
LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The clips of one call.

    Shapes:  pixels (B, nbytes) uint8, row k for the k-th spec asked for.
    """

    pixels: NDArray[np.uint8]
    specs: tuple[ClipSpec, ...]
    """What each row really holds: attempt > that of the spec asked for says that it is a substitute."""
    failures: tuple[Failure, ...]
    """Every attempt that was given up, in order of rows and attempts."""
    cpu_s: float
    """CPU seconds of the child over all answered requests."""
    frames: int
    """Frames that FFmpeg decoded for them."""
    missing: int
    """Frames of the clips that repeat the one before, because their own was damaged."""


@dataclass(slots=True)
class _Job:
    """One thing to get from the child: a clip for a row, or (spec None) a probe."""

    uri: str
    row: int = 0
    spec: ClipSpec | None = None
    tries: int = 0
    not_before: float = 0.0


class Decoder:
    """Owner of one child process: `with Decoder(run.data) as decoder: decoder.clips(specs, tape.spec)`.

    For one thread. An error that leaves a method ends the child; the next call starts another.
    """

    def __init__(self, cfg: DataConfig) -> None:
        self.cfg = cfg
        self.restarts = 0
        """Children that had to be replaced."""
        area = cfg.frames * cfg.size_px**2
        self._slot_bytes = area * 3 if cfg.pixels == "rgb" else area * 3 // 2
        self._sandbox: Sandbox | None = None
        self._failed_starts = 0
        self._waiting: deque[_Job] = deque()
        self._sent: deque[_Job] = deque()

    def __enter__(self) -> "Decoder":
        self._child()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child and forget what it was asked; a later call starts another."""
        self._waiting.clear()
        self._sent.clear()
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    @property
    def child_pid(self) -> int:
        """Process id of the child, for drills and measurements."""
        return self._child().pid

    def clips(self, specs: Sequence[ClipSpec], substitute: Callable[[int, int], ClipSpec]) -> Decoded:
        """A clip for each spec, or for the first of its substitutes `substitute(index, attempt)` that decodes.

        Raises:  RuntimeError if a sample and data.substitutes others in its place all failed, or no child starts;
                 ValueError if the specs ask for clips of different sizes, or larger ones than the configuration.
        """
        pixels = np.empty((len(specs), self._bytes_of_a_clip(specs)), np.uint8)
        accepted = list(specs)
        failures: list[list[Failure]] = [[] for _ in specs]
        answers: list[dict[str, Any]] = []
        jobs = [_Job(spec.uri, row, spec) for row, spec in enumerate(specs)]
        with closing(self._results(jobs)) as results:
            for job, result in results:
                if isinstance(result, Answer):
                    pixels[job.row] = result.memory[: pixels.shape[1]]
                    answers.append(result.body)
                    continue
                failures[job.row].append(result)
                if result.attempt >= self.cfg.substitutes:
                    raise RuntimeError(_all_failed(failures[job.row], self.cfg.substitutes))
                spec = substitute(result.index, result.attempt + 1)
                assert spec.nbytes == pixels.shape[1], f"sample {spec.index}: its substitute is of another size"
                logger.warning("%s; in its place: %s", _line(result), spec.uri)
                accepted[job.row] = spec
                self._waiting.append(_Job(spec.uri, job.row, spec))
        return Decoded(
            pixels=pixels,
            specs=tuple(accepted),
            failures=tuple(failure for row in failures for failure in row),
            cpu_s=sum(answer["cpu_s"] for answer in answers),
            frames=sum(answer["decoded"] for answer in answers),
            missing=sum(answer["missing"] for answer in answers),
        )

    def probe(self, path: str) -> Probe | Failure:
        """What the child sees in the file, or why it sees nothing."""
        [(_, result)] = self._results([_Job(path)])
        if isinstance(result, Failure):
            return result
        fields: dict[str, Any] = result.body["probe"]
        fields["time_base"] = tuple(fields["time_base"])
        return Probe(**fields)

    def _bytes_of_a_clip(self, specs: Sequence[ClipSpec]) -> int:
        sizes = {spec.nbytes for spec in specs}
        if len(sizes) > 1:
            raise ValueError(f"specs of one call ask for clips of {sorted(sizes)} bytes; they must be equal")
        size = sizes.pop() if sizes else 0
        if size > self._slot_bytes:
            raise ValueError(
                f"a clip of {size} bytes exceeds the {self._slot_bytes} of this decoder: its spec and "
                f"data.frames={self.cfg.frames}, data.size_px={self.cfg.size_px}, data.pixels={self.cfg.pixels} differ"
            )
        return size

    def _results(self, jobs: list[_Job]) -> Generator[tuple[_Job, Answer | Failure], None, None]:
        """Each job's clip or final failure, in any order; jobs put into `_waiting` meanwhile are done too."""
        self._waiting.extend(jobs)
        try:
            while self._waiting or self._sent:
                yield from self._feed()
                yield from self._receive()
        except BaseException:
            self.close()  # what is in flight must not be taken for a later call's
            raise

    def _feed(self) -> Generator[tuple[_Job, Failure], None, None]:
        """Send what is due, as far as there is room; yield what cannot be opened and has no try left."""
        child = self._child()
        for _ in range(len(self._waiting)):
            if not child.has_room:
                return
            job = self._waiting.popleft()
            if job.not_before > time.monotonic():
                self._waiting.append(job)
                continue
            try:
                file = open_file(job.uri)
            except BadVideo as error:
                yield from self._failed(job, error.stage, error.kind, error.reason)
                continue
            try:
                child.send(_request(job), file)
            finally:
                os.close(file)
            self._sent.append(job)

    def _receive(self) -> Generator[tuple[_Job, Answer | Failure], None, None]:
        """Wait for one answer, or for the end of a pause; yield what is settled by it."""
        pause = min((job.not_before for job in self._waiting), default=float("inf")) - time.monotonic()
        if not self._sent:
            time.sleep(max(0.0, pause) if self._waiting else 0.0)
            return
        child = self._child()
        try:
            answer = child.receive(max(0.0, pause) if self._waiting and child.has_room else None)
        except ChildDied as death:
            yield from self._died(death)
            return
        if answer is None:
            return
        self._failed_starts = 0
        job = self._sent.popleft()
        if answer.body["ok"]:
            yield job, answer
            return
        stage, kind, reason = (answer.body[key] for key in ("stage", "kind", "reason"))
        if kind == "io":
            self._replace()
        yield from self._failed(job, stage, kind, reason)

    def _died(self, death: ChildDied) -> Generator[tuple[_Job, Failure], None, None]:
        """The oldest open request has killed the child; what queued behind it goes to the next one, uncharged."""
        if death.started:
            culprit = self._sent.popleft()
            self._replace()
            yield from self._failed(culprit, "child", death.kind, death.reason)
            return
        self._replace()
        self._failed_starts += 1
        if self._failed_starts > self.cfg.retries:
            raise RuntimeError(
                f"the decoder's child does not start: {death.reason}, {self._failed_starts} times in a row; "
                "its last words are on this process's stderr"
            ) from death

    def _failed(self, job: _Job, stage: Stage, kind: Kind, reason: str) -> Generator[tuple[_Job, Failure], None, None]:
        """Put the job back for another try, or yield its failure if there is none left."""
        if kind != "content" and job.tries < self.cfg.retries:
            pause = min(BACKOFF_S * 2**job.tries, LONGEST_PAUSE_S)
            logger.warning("%s: %s (%s, %s); next try in %.1f s", job.uri, reason, stage, kind, pause)
            job.tries += 1
            job.not_before = time.monotonic() + pause
            self._waiting.append(job)
            return
        index, attempt, video = (job.spec.index, job.spec.attempt, job.spec.video) if job.spec else (-1, 0, -1)
        yield (
            job,
            Failure(index=index, attempt=attempt, video=video, uri=job.uri, stage=stage, kind=kind, reason=reason),
        )

    def _child(self) -> Sandbox:
        if self._sandbox is not None and not self._sent and not self._sandbox.is_alive:
            self._replace()  # it died while idle: no request is to blame
        if self._sandbox is None:
            self._sandbox = Sandbox(
                slot_bytes=self._slot_bytes, cpu_s=self.cfg.decode_cpu_s, wall_s=self.cfg.decode_wall_s
            )
        return self._sandbox

    def _replace(self) -> None:
        """End the child; its open requests wait for the next one, before all others."""
        assert self._sandbox is not None
        self._sandbox.close()
        self._sandbox = None
        self.restarts += 1
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()


def _request(job: _Job) -> dict[str, Any]:
    """What the child is told: all of the spec but where the file is."""
    poison = poison_of(job.uri)
    if job.spec is None:
        return {"do": "probe", "poison": poison}
    return {"do": "clip", "poison": poison, "spec": asdict(replace(job.spec, uri=""))}


def _line(failure: Failure) -> str:
    return (
        f"sample {failure.index}, attempt {failure.attempt}: {failure.uri}: "
        f"{failure.reason} ({failure.stage}, {failure.kind})"
    )


def _all_failed(failures: list[Failure], substitutes: int) -> str:
    tried = "\n".join("  " + _line(failure) for failure in failures)
    return (
        f"sample {failures[0].index}: its video and data.substitutes={substitutes} others in its place all failed:\n"
        f"{tried}\nRepair or remove these files (`rayjepa index` names every bad one), or raise data.substitutes"
    )
