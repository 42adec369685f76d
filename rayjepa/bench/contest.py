"""The measurement: every library on the same clips, one after the other for each clip, in rotated order."""

import base64
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayjepa.bench import corpus, library, limit
from rayjepa.bench.corpus import SIZES, Cell, File
from rayjepa.bench.library import Library, Refused
from rayjepa.bench.ours import BARE, I420, ISOLATED, RGB, TOGETHER
from rayjepa.bench.peer import PEERS
from rayjepa.bench.picture import FPS
from rayjepa.config import DataConfig, RunConfig, dump
from rayjepa.data.clip import Window
from rayjepa.data.crop import crop_box

ANSWER_S = 300.0
"""For one clip, or one file of BARE; decord's reports of hangs are why there is a limit at all."""
BATCH = 4
"""Clips in one call of the isolated decoder, as in a micro-batch."""
OFFSET = 0.3
"""Clips start this part of a frame after a frame, so that none of 16 moments at 4, 5, 6, 7.5, 8 or 10 fps falls on the
border of two: libraries round differently there.
"""
ALIKE = 1.5
"""Grey levels by which the means of two libraries' pictures may differ; the next frame differs by 3 or more."""
OURS = (I420, RGB)
FFMPEG = "ffmpeg -threads 1 -f null"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One entrant on one clip (BARE and FFMPEG: one file, TOGETHER and ISOLATED: one batch)."""

    round: int
    cell: str
    clip: int
    entrant: str
    cpu_s: float
    """Per clip; for BARE and FFMPEG per frame."""
    decoded: int | None
    """Frames that were decoded for it, where known; for a batch over all of its clips."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """All that was measured."""

    readings: tuple[Reading, ...]
    files: dict[str, File]
    """By the name of the cell."""
    versions: dict[str, dict[str, str]]
    """Of each library that took part."""
    absent: dict[str, str]
    """Libraries that did not, and why."""
    refused: dict[str, dict[str, str]]
    """Cell, entrant, and what it said instead of giving clips."""
    unlike: dict[str, dict[str, float]]
    """Cell, entrant, and by how many grey levels its pictures are not ours, where that is more than ALIKE."""
    entrants: tuple[str, ...]
    """The foreign ones, in order."""


def contest(
    run: RunConfig,
    cells: Sequence[Cell],
    *,
    peers: Mapping[str, str],
    rounds: int,
    clips: int,
    say: Callable[[str], None],
) -> Contest:
    """Measure `clips` clips of each cell in each of `rounds` rounds.

    Units:   `peers` maps the name of a library to the interpreter that has it; `say` takes progress.
    Raises:  ValueError if a clip does not fit into the videos, RuntimeError if our own decoder fails.
    """
    _check(run.data, cells)
    with ExitStack() as stack:
        absent: dict[str, str] = {}
        own = stack.enter_context(library.ours(_plain(run), answer_s=ANSWER_S))
        foreign: list[Library] = []
        for name, python in peers.items():
            try:
                foreign.append(stack.enter_context(library.foreign(name, python, answer_s=ANSWER_S)))
            except Refused as reason:
                absent[name] = f"{reason} (by {python}; give another with --peer {name}=PYTHON)"
        ffmpeg = limit.found()
        if ffmpeg is None:
            absent["ffmpeg"] = "not on PATH"
        meeting = Meeting(run.data, own, foreign, ffmpeg)
        for cell in cells:
            if not cell.path(run.data.cache).is_file():
                say(f"making {cell.name}")
            path = corpus.made(cell, run.data.cache)
            meeting.warm_up(cell, path)
        for number in range(rounds):
            for cell in cells:
                say(f"round {number + 1} of {rounds}: {cell.name}")
                for clip in range(clips):
                    meeting.measure(number, cell, clip)
                    meeting.measure_isolation(number, cell, clip)
                meeting.measure_limits(number, cell)
        return meeting.result(absent)


def _check(data: DataConfig, cells: Sequence[Cell]) -> None:
    span = data.frames / data.fps
    longest = min(cell.seconds for cell in cells) - 1
    if span > longest:
        raise ValueError(
            f"data.frames={data.frames} at data.fps={data.fps} is {span:g} s; the videos have room for {longest} s"
        )


def _plain(run: RunConfig) -> dict[str, Any]:
    return dump(run)["data"]


class Meeting:
    """The libraries at one table."""

    def __init__(self, data: DataConfig, own: Library, foreign: Sequence[Library], ffmpeg: str | None) -> None:
        self.data = data
        self.ffmpeg = ffmpeg
        self._own = own
        self._table = [(own, entrant) for entrant in OURS]
        self._table += [(peer, entrant) for peer in foreign for entrant in peer.entrants]
        self._turn = 0
        self._readings: list[Reading] = []
        self._files: dict[str, File] = {}
        self._paths: dict[str, Path] = {}
        self._refused: dict[str, dict[str, str]] = {}
        self._unlike: dict[str, dict[str, float]] = {}

    def warm_up(self, cell: Cell, path: Path) -> None:
        """One clip by each, unmeasured: the file comes into memory, and the pictures are compared."""
        self._files[cell.name], self._paths[cell.name] = corpus.inspected(path), path
        job = self._clip(cell, "warm-up")
        for entrant, what in ((I420, job), (TOGETHER, {"batch": [job]}), (ISOLATED, {"batch": [job]})):
            self._ask(self._own, entrant, what)
        [ours] = self._ask(self._own, RGB, job, show=True)["shown"]
        for peer, entrant in self._table[len(OURS) :]:
            try:
                [theirs] = self._ask(peer, entrant, job, show=True)["shown"]
            except Refused as reason:
                self._refused.setdefault(cell.name, {})[entrant] = str(reason)
                continue
            distance = _distance(ours, theirs)
            if distance > ALIKE:
                self._unlike.setdefault(cell.name, {})[entrant] = round(distance, 2)

    def measure(self, number: int, cell: Cell, clip: int) -> None:
        """One clip by each, the order turned by one place from clip to clip."""
        self._turn = (self._turn + 1) % len(self._table)
        job = self._clip(cell, f"{number} {clip}")
        for peer, entrant in self._table[self._turn :] + self._table[: self._turn]:
            if entrant not in self._refused.get(cell.name, {}):
                try:
                    answer = self._ask(peer, entrant, job)
                except Refused as reason:
                    self._refused.setdefault(cell.name, {})[entrant] = str(reason)
                else:
                    self._note(number, cell, clip, entrant, cpu_s=answer["cpu_s"][0], decoded=answer["decoded"][0])

    def measure_isolation(self, number: int, cell: Cell, clip: int) -> None:
        """One batch in process and by the child; every second time the other one goes first."""
        job = {"batch": [self._clip(cell, f"{number} {clip} {k}") for k in range(BATCH)]}
        for entrant in (TOGETHER, ISOLATED)[:: -1 if (number + clip) % 2 else 1]:
            answer = self._ask(self._own, entrant, job)
            self._note(number, cell, clip, entrant, cpu_s=answer["cpu_s"][0] / BATCH, decoded=answer["decoded"][0])

    def measure_limits(self, number: int, cell: Cell) -> None:
        """Decoding alone: FFmpeg itself, and PyAV."""
        path = self._paths[cell.name]
        answer = self._ask(self._own, BARE, {"path": str(path)})
        frames = answer["decoded"][0]
        self._note(number, cell, 0, BARE, cpu_s=answer["cpu_s"][0] / frames, decoded=frames)
        if self.ffmpeg is not None:
            self._note(number, cell, 0, FFMPEG, cpu_s=limit.seconds_per_frame(self.ffmpeg, path), decoded=frames)

    def result(self, absent: dict[str, str]) -> Contest:
        """What was measured, with what did not take part."""
        libraries = {peer.name: peer.versions for peer, _ in self._table}
        if self.ffmpeg is not None:
            libraries["ffmpeg"] = {"ffmpeg": limit.version(self.ffmpeg)}
        return Contest(
            readings=tuple(self._readings),
            files=self._files,
            versions=libraries,
            absent=absent,
            refused=self._refused,
            unlike=self._unlike,
            entrants=tuple(entrant for _, entrant in self._table[len(OURS) :]),
        )

    def _note(self, number: int, cell: Cell, clip: int, entrant: str, *, cpu_s: float, decoded: int | None) -> None:
        self._readings.append(
            Reading(round=number, cell=cell.name, clip=clip, entrant=entrant, cpu_s=cpu_s, decoded=decoded)
        )

    def _clip(self, cell: Cell, key: str) -> dict[str, Any]:
        """A moment and a crop that the cell's distance of key frames and the key decide, for all libraries alike.

        Codecs and sizes share them, so that their costs compare.
        """
        draw = random.Random(f"{cell.gop} {key}")
        latest = cell.seconds - self.data.frames / self.data.fps - 2 / FPS
        start_s = (int(draw.random() * latest * FPS) + OFFSET) / FPS
        seed = draw.getrandbits(63)
        window = Window(
            size_px=self.data.size_px, scale=self.data.window_scale, aspect=self.data.window_aspect, seed=seed
        )
        return {
            "path": str(self._paths[cell.name]),
            "start_s": start_s,
            "times": [start_s + k / self.data.fps for k in range(self.data.frames)],
            "seed": seed,
            "box": crop_box(window, *SIZES[cell.size]),
        }

    def _ask(self, peer: Library, entrant: str, job: dict[str, Any], *, show: bool = False) -> dict[str, Any]:
        try:
            return peer.ask(entrant, [job], size_px=self.data.size_px, show=show)
        except Refused as reason:
            if peer is self._own:
                raise RuntimeError(f"{entrant}: {reason}") from reason
            raise


def _distance(ours: str, theirs: str) -> float:
    """Grey levels between two clips' means, in the frame where they differ most."""
    a, b = (np.frombuffer(base64.b64decode(text), np.uint8).astype(np.float32) for text in (ours, theirs))
    if a.shape != b.shape:
        return 255.0
    grids = np.abs(a - b).reshape(-1, 8 * 8 * 3)
    return float(grids.mean(1).max())


def interpreters(words: Sequence[str], default: str) -> dict[str, str]:
    """Which interpreter runs each peer, from `NAME=PYTHON` words; those not named: `default`.

    Raises:  ValueError for a word of another form, or an unknown name.
    """
    chosen = dict.fromkeys(PEERS, default)
    for word in words:
        name, sign, python = word.partition("=")
        if not sign or not python or name not in PEERS:
            raise ValueError(f"--peer {word!r} is not NAME=PYTHON, with NAME one of {', '.join(PEERS)}")
        chosen[name] = python
    return chosen
