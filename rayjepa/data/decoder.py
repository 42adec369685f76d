"""Clips for specs, whatever the files do: FFmpeg runs in a child, which is replaced when it dies.

A file whose content is bad is given up at once. After a read error, a deadline or a dead child it is tried again, in a
fresh child, `data.retries` times. What is given up is a Failure, and the sample's next substitute takes its place.
The child writes frames where the caller finds them: nothing is copied here.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayjepa.config import DataConfig
from rayjepa.data.clip import ClipSpec, Failure, Layout, Place
from rayjepa.data.errands import Errands
from rayjepa.data.memory import Pool, paged
from rayjepa.data.recipe import Recipe
from rayjepa.data.request import Request, decoding, encoding, grouped
from rayjepa.data.video import BadVideo, Probe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The clips of one call.

    Shapes:  pixels (B, nbytes) uint8, row k for the k-th spec asked for; layout (B, 5): the fields of a Layout;
             harm (B,).
    """

    pixels: NDArray[np.uint8]
    layout: NDArray[np.int32]
    specs: tuple[ClipSpec, ...]
    """What each row really holds: attempt > that of the spec asked for says that it is a substitute."""
    failures: tuple[Failure, ...]
    """Every attempt that was given up, in order of rows and attempts."""
    cpu_s: float
    """CPU seconds of the child for these clips."""
    frames: int
    """Frames that FFmpeg decoded for them."""
    missing: int
    """Frames of the clips that repeat the one before, because their own was damaged."""
    harm: NDArray[np.int32]
    """Of each row: frames that repeat another, and packets that FFmpeg refused. 0: the clip is as it was filmed."""
    read_s: float = 0.0
    """Seconds that the caller waited for bytes of remote storage or shards."""
    read_bytes: int = 0
    """Bytes read from there."""
    requests: int = 0
    """Requests to remote storage, tried ones counted."""


class Decoder:
    """Owner of one child process: `with Decoder(run.data) as decoder: decoder.clips(specs, tape.spec)`.

    For one thread. An error that leaves a method ends the child; the next call starts another.
    """

    def __init__(self, cfg: DataConfig) -> None:
        self.cfg = cfg
        self._pool = Pool()
        self._errands = Errands(cfg)

    def __enter__(self) -> "Decoder":
        self._errands.child()  # it starts while the caller goes on
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child and forget what it was asked; a later call starts another. Clips that were returned stay."""
        self._errands.close()
        self._pool.close()

    @property
    def child_pid(self) -> int:
        """Process id of the child, for drills and measurements."""
        return self._errands.child().pid

    @property
    def restarts(self) -> int:
        """Children that had to be replaced."""
        return self._errands.restarts

    @property
    def versions(self) -> dict[str, str]:
        """Versions of PyAV and of libavcodec in the child."""
        return self._errands.started().versions

    @property
    def isolation(self) -> tuple[str, ...]:
        """What the child has given up: files, privileges, and system calls by `seccomp`, where the kernel has it."""
        return self._errands.started().isolation

    def expect(self, specs: Sequence[ClipSpec]) -> None:
        """Begin to fetch what lies in remote storage, for a call of `clips` that is to come. From any thread."""
        self._errands.expect(grouped(specs))

    def clips(self, specs: Sequence[ClipSpec], substitute: Callable[[int, int], ClipSpec]) -> Decoded:
        """A clip for each spec, or for the first of its substitutes `substitute(index, attempt)` that decodes.

        Raises:  RuntimeError if a sample and data.substitutes others in its place all failed, or no child starts;
                 ValueError if the specs ask for clips of different sizes, or larger ones than the configuration.
        """
        size = self._bytes_of_a_clip(specs)
        rows, memory = self._pool.take(len(specs), paged(size))
        self._errands.make_room(memory)
        layout = np.zeros((len(specs), len(Layout._fields)), np.int32)
        harm = np.zeros(len(specs), np.int32)
        accepted = list(specs)
        failures: list[list[Failure]] = [[] for _ in specs]
        answers: dict[int, dict[str, Any]] = {}
        stride = rows.shape[1]
        before = self._errands.reading
        with closing(self._errands.results(grouped(specs, memory, stride))) as results:
            for request, result in results:
                row = request.row
                if not isinstance(result, Failure):
                    layout[row] = result["layout"]
                    harm[row] = result["missing"] + result["refused"]
                    answers[row] = result
                    continue
                failures[row].append(result)
                if len(failures[row]) > self.cfg.substitutes:
                    raise RuntimeError(_all_failed(failures[row], self.cfg.substitutes))
                spec = substitute(result.index, result.attempt + 1)
                assert spec.nbytes == size, f"sample {spec.index}: its substitute is of another size"
                logger.warning("%s; in its place: %s", _line(result), spec.uri)
                accepted[row] = spec
                self._errands.add(replace(request, uri=spec.uri, specs=(spec,), tries=0, not_before=0.0))
        read_s, read_bytes, requests = self._errands.reading
        return Decoded(
            pixels=np.ascontiguousarray(rows[:, :size]),  # as it is, unless a clip does not end with a page
            layout=layout,
            specs=tuple(accepted),
            failures=tuple(failure for row in failures for failure in row),
            cpu_s=sum(answer["cpu_s"] for answer in answers.values()),
            frames=sum(answer["decoded"] for answer in answers.values()),
            missing=sum(answer["missing"] for answer in answers.values()),
            harm=harm,
            read_s=read_s - before[0],
            read_bytes=read_bytes - before[1],
            requests=requests - before[2],
        )

    def probe(self, uri: str, place: Place | None = None) -> Probe | Failure:
        """What the child sees in the file, or why it sees nothing; `place`: where its bytes lie, if not at `uri`."""
        return self._probed(Request(do="probe", uri=uri, place=place))[0]

    def verify(self, uri: str, place: Place | None = None) -> Probe | Failure:
        """What the child sees when it decodes the whole file, or why the file is of no use."""
        probe, work = self._probed(Request(do="probe", uri=uri, place=place))
        if isinstance(probe, Failure):
            return probe
        return self._probed(Request(do="verify", uri=uri, place=place, work=1 + work))[0]

    def hash(self, uri: str, place: Place | None = None) -> str | Failure:
        """Hash of the video's bytes as the manifest has it; what was probed last is not read again."""
        try:
            return self._errands.reads.hash(Request(do="probe", uri=uri, place=place).wanted(0))
        except BadVideo as error:
            return Failure(
                index=-1, attempt=0, video=-1, uri=uri, stage=error.stage, kind=error.kind, reason=error.reason
            )

    def transcode(self, path: str, out: int, recipe: Recipe, place: Place | None = None) -> dict[str, Any] | Failure:
        """What rayjepa.data.encode says of making a video anew in the open file `out`, or why that cannot be done.

        The child that does it may write, to this file alone; it goes on to serve the other requests too.
        """
        self._errands.may_write()
        probe, work = self._probed(Request(do="probe", uri=path, place=place))
        if isinstance(probe, Failure):
            return probe
        encoded = encoding(probe.frames, probe.width, probe.height, recipe.short_px)
        more = {"recipe": asdict(recipe)}
        request = Request(do="transcode", uri=path, place=place, out=out, work=2 * work + encoded, more=more)
        result = self._ask(request)
        return result if isinstance(result, Failure) else result["made"]

    def _probed(self, request: Request) -> tuple[Probe | Failure, float]:
        """The answer to a question, and what decoding all of the video takes, in deadlines of a clip."""
        probe = _probe_of(self._ask(request))
        if isinstance(probe, Failure):
            return probe, 0.0
        return probe, decoding(probe.frames, probe.width * probe.height, request.nbytes)

    def _ask(self, request: Request) -> dict[str, Any] | Failure:
        [(_, result)] = self._errands.results([request])
        return result

    def _bytes_of_a_clip(self, specs: Sequence[ClipSpec]) -> int:
        sizes = {spec.nbytes for spec in specs}
        if len(sizes) > 1:
            raise ValueError(f"specs of one call ask for clips of {sorted(sizes)} bytes; they must be equal")
        size = sizes.pop() if sizes else 0
        largest = self.cfg.clip_bytes
        if size > largest:
            raise ValueError(
                f"a clip of {size} bytes exceeds the {largest} of this decoder: its spec and "
                f"data.frames={self.cfg.frames}, data.size_px={self.cfg.size_px}, data.window={self.cfg.window}, "
                f"data.whole_px={list(self.cfg.whole_px)}, data.pixels={self.cfg.pixels} differ"
            )
        return size


def _probe_of(answer: dict[str, Any] | Failure) -> Probe | Failure:
    if isinstance(answer, Failure):
        return answer
    fields: dict[str, Any] = answer["probe"]
    for name in ("time_base", "key_s", "key_bytes"):  # JSON knows no tuples
        fields[name] = None if fields[name] is None else tuple(fields[name])
    return Probe(**fields)


def _line(failure: Failure) -> str:
    return (
        f"sample {failure.index}, attempt {failure.attempt}: {failure.uri}: "
        f"{failure.reason} ({failure.stage}, {failure.kind})"
    )


def _all_failed(failures: list[Failure], substitutes: int) -> str:
    tried = "\n".join("  " + _line(failure) for failure in failures)
    reasons = Counter(f"{failure.kind} in {failure.stage}: {failure.reason}" for failure in failures)
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
    return (
        f"sample {failures[0].index}: none of {len(failures)} videos could be decoded, its own and "
        f"data.substitutes={substitutes} others in its place: {listed}. Mend the files, or index them again "
        f"(`rayjepa index --verify full` marks all that are bad), or raise data.substitutes. What was tried:\n{tried}"
    )
