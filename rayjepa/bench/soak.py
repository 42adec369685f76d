"""Does a decoder leak? One of them, many small clips of good files and bad; memory and descriptors all the while."""

import logging
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayjepa.bench import corpus
from rayjepa.bench.corpus import CODECS, SMALL, Cell
from rayjepa.config import DataConfig
from rayjepa.data.clip import ClipSpec, Window
from rayjepa.data.decoder import Decoder

CHEAP = {"data.frames": 4, "data.fps": 8.0, "data.size_px": 64}
"""A clip of a millisecond or two: what leaks does so per clip, whatever its size."""
BATCH = 4
BAD_SHARE = 0.2
"""Of the clips asked for; in the place of each comes a good one."""
READINGS = 200
"""Over the whole run."""
GROWTH = 0.05
"""Of the last tenth's median over the first tenth's, up to which a figure counts as flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The state of both processes between two batches."""

    clips: int
    """Asked for so far."""
    owner_mib: float
    """Resident memory."""
    child_mib: float
    owner_files: int
    """Open descriptors."""
    child_files: int
    shm: int
    """Entries of /dev/shm, whoever made them."""


JUDGED = ("owner_mib", "child_mib", "owner_files", "child_files")
"""Not /dev/shm: it is the machine's. Our shared memory has no name there, and shows among the descriptors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """What a run came to."""

    readings: tuple[Reading, ...]
    clips: int
    failures: int
    """Attempts that were given up and replaced."""
    restarts: int
    """Children that had to be replaced; bad content alone replaces none."""
    wall_s: float

    def tenths(self, figure: str) -> tuple[float, float]:
        """Medians of a figure over the first and the last tenth of the run."""
        values = [float(getattr(reading, figure)) for reading in self.readings]
        tenth = max(1, len(values) // 10)
        return statistics.median(values[:tenth]), statistics.median(values[-tenth:])

    def is_flat(self, figure: str) -> bool:
        """It has not grown by more than GROWTH."""
        first, last = self.tenths(figure)
        return last <= first * (1 + GROWTH)

    @property
    def leaks(self) -> list[str]:
        """Figures that are not flat."""
        return [figure for figure in JUDGED if not self.is_flat(figure)]


def soak(data: DataConfig, *, clips: int, say: Callable[[str], None]) -> Soak:
    """Ask one decoder for `clips` clips, in batches; read memory and descriptors through the run.

    Raises:  ValueError if there are too few clips for ten tenths.
    """
    if clips < 10 * BATCH:
        raise ValueError(f"--clips {clips} must be at least {10 * BATCH}: the first and the last tenth are compared")
    batches = -(-clips // BATCH)
    every = max(1, batches // READINGS)
    readings: list[Reading] = []
    failures, began = 0, time.monotonic()
    quiet = logging.getLogger("rayjepa.data.decoder")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # each of thousands of substitutes would be a line
    try:
        with tempfile.TemporaryDirectory(prefix="rayjepa-soak-") as scratch, Decoder(data) as decoder:
            draw = _Draw(data, *_files(data, Path(scratch)))
            for batch in range(batches):
                specs = [draw.spec(batch * BATCH + k, 0) for k in range(BATCH)]
                failures += len(decoder.clips(specs, draw.spec).failures)
                if batch % every == every - 1:
                    readings.append(_reading((batch + 1) * BATCH, decoder.child_pid))
                    if len(readings) % (READINGS // 10) == 0:
                        say(_line(readings[-1]))
            restarts = decoder.restarts
    finally:
        quiet.setLevel(level)
    return Soak(
        readings=tuple(readings),
        clips=batches * BATCH,
        failures=failures,
        restarts=restarts,
        wall_s=time.monotonic() - began,
    )


def _files(data: DataConfig, folder: Path) -> tuple[list[Path], list[Path]]:
    """Good videos, one of each codec, and bad ones made of them in `folder`."""
    good = [corpus.made(Cell(codec, SMALL, 12), data.cache) for codec in CODECS]
    bad = [folder / name for name in ("empty.mp4", "text.mp4", "no moov.mp4")]
    bad[0].touch()
    bad[1].write_text("this is no video\n" * 500)
    whole = good[0].read_bytes()
    bad[2].write_bytes(whole[:40] + whole[len(whole) // 2 :])
    for path in good:
        content = bytearray(path.read_bytes())
        bad.append(folder / f"half {path.name}")
        bad[-1].write_bytes(content[: len(content) // 2])
        damage = random.Random(path.name)
        for _ in range(len(content) // 200):
            content[damage.randrange(len(content) // 4, len(content))] ^= 0x5A
        bad.append(folder / f"flipped {path.name}")
        bad[-1].write_bytes(content)
    return good, bad


class _Draw:
    """Clips as a function of (index, attempt); substitutes are of good files."""

    def __init__(self, data: DataConfig, good: Sequence[Path], bad: Sequence[Path]) -> None:
        self.data, self.good, self.bad = data, good, bad

    def spec(self, index: int, attempt: int) -> ClipSpec:
        draw = random.Random(f"{index} {attempt}")
        is_bad = attempt == 0 and draw.random() < BAD_SHARE
        data = self.data
        return ClipSpec(
            index=index,
            attempt=attempt,
            stream="soak",
            video=0,
            uri=str(draw.choice(self.bad if is_bad else self.good)),
            start_s=draw.uniform(0, 3),
            frames=data.frames,
            fps=data.fps,
            window=Window(
                size_px=data.size_px, scale=data.window_scale, aspect=data.window_aspect, seed=draw.getrandbits(63)
            ),
            pixels=data.pixels,
            flip=False,
            mask_seed=0,
            view_seed=0,
        )


def _reading(clips: int, child: int) -> Reading:
    return Reading(
        clips=clips,
        owner_mib=_resident_mib(os.getpid()),
        child_mib=_resident_mib(child),
        owner_files=len(os.listdir("/proc/self/fd")),
        child_files=len(os.listdir(f"/proc/{child}/fd")),
        shm=len(os.listdir("/dev/shm")),
    )


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def _line(reading: Reading) -> str:
    return (
        f"{reading.clips:,} clips: owner {reading.owner_mib:.1f} MiB, child {reading.child_mib:.1f} MiB, "
        f"{reading.owner_files} and {reading.child_files} descriptors"
    )


def text(soaked: Soak) -> str:
    """The report as people read it."""
    names = {
        "owner_mib": "owner, resident MiB",
        "child_mib": "child, resident MiB",
        "owner_files": "owner, descriptors",
        "child_files": "child, descriptors",
        "shm": "entries of /dev/shm",
    }
    lines = [
        f"{soaked.clips:,} clips in {soaked.wall_s:.0f} s ({soaked.clips / soaked.wall_s:.0f} a second), "
        f"{soaked.failures:,} attempts failed and were replaced, {soaked.restarts} children were"
    ]
    for figure, name in names.items():
        first, last = soaked.tenths(figure)
        verdict = ("flat" if soaked.is_flat(figure) else "GROWS") if figure in JUDGED else "not judged"
        lines.append(f"{name:22}{first:8.1f} -> {last:8.1f}  {verdict}")
    limit = f"{GROWTH:.0%} of the first tenth"
    lines.append(f"not flat within {limit}: {', '.join(soaked.leaks)}" if soaked.leaks else f"flat within {limit}")
    return "\n".join(lines)
