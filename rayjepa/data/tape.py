"""The tape: sample i of the run is a pure function of (seed, manifest, i), whatever machines, workers or schedules do.

Random numbers are hashes of counters: nothing is drawn in order, so the data position of a run is one integer.
"""

import hashlib
import itertools
import struct
from collections.abc import Iterator
from typing import assert_never

import numpy as np
from jaxtyping import Int64

from rayjepa.config import RunConfig
from rayjepa.data.clip import ClipSpec, Window
from rayjepa.data.manifest import Manifest, span_s
from rayjepa.data.permutation import permute

STREAM = "video"
"""The one stream of the first version; its name is part of every key."""


class Tape:
    """The samples of `run` over the videos of `manifest`: `spec(i)` for training, `held_out` for health and probes.

    It keeps the paths and lengths, not the manifest: its pickle is one Arrow buffer and two or three arrays, which
    Ray maps into every process of a node without a copy.
    Raises:  ValueError if no video is left to train on.
    """

    def __init__(self, run: RunConfig, manifest: Manifest) -> None:
        self.run = run
        self.fingerprint = manifest.fingerprint
        self._uris = manifest.column("uri")
        self._duration_s = manifest.duration_s
        self._linear = manifest.linear
        self._rows = self._long_enough(manifest.train_rows)
        held_out = self._long_enough(manifest.holdout_rows)
        self.held_out_is_train = len(held_out) == 0
        """No video is held out, so `held_out` gives clips of training videos."""
        self._held_out = self._rows if self.held_out_is_train else held_out
        if len(self._rows) == 0:
            raise ValueError(self._why_empty(manifest))
        self._key = hashlib.blake2b(f"{run.seed}/{self.fingerprint}/{STREAM}".encode(), digest_size=32).digest()

    @property
    def videos(self) -> int:
        """Videos of one pass: each comes once before any comes again."""
        return len(self._rows)

    def spec(self, index: int, attempt: int = 0) -> ClipSpec:
        """Sample `index` of the run; `attempt` n is its n-th substitute, another video than all attempts before it.

        A substitute has its own start, window and flip, and keeps the sample's mask and view seeds: what is hidden in
        a sample does not depend on whether a file could be read. Only with fewer videos than attempts do videos recur.
        Units:   index in [0, run.samples), attempt >= 0; seeds are in [0, 2^63), so a signed column holds them.
        Raises:  IndexError if either is outside.
        """
        if not 0 <= index < self.run.samples or attempt < 0:
            raise IndexError(f"sample {index}, attempt {attempt} is not on this tape of {self.run.samples} samples")
        words = _words(self._key, index, 0)
        mask_seed, view_seed = words[3] >> 1, words[4] >> 1
        if attempt:
            words = _words(self._key, index, attempt)
        row = int(self._rows[self._place(index, attempt)])
        data = self.run.data
        return ClipSpec(
            index=index,
            attempt=attempt,
            stream=STREAM,
            video=row,
            uri=self._uris[row].as_py(),
            start_s=_unit(words[0]) * max(0.0, float(self._duration_s[row]) - span_s(data)),
            frames=data.frames,
            fps=data.fps,
            window=self._window(words[1] >> 1),
            pixels=data.pixels,
            seek="linear" if self._linear[row] else "planned",
            flip=_unit(words[2]) < data.flip,
            mask_seed=mask_seed,
            view_seed=view_seed,
        )

    def held_out(self, count: int) -> tuple[ClipSpec, ...]:
        """At most `count` clips for health and probes, always the same ones for this manifest, clip length and count.

        Each held-out video gives its middle. If they are fewer than `count`, each gives all clips that fit into it
        without sharing a frame, evenly spaced, in rounds over the videos. The centre of the frame, no flip. The seed of
        the run plays no part, so that runs can be compared.
        """
        many = count > len(self._held_out)
        return tuple(itertools.islice(self._held_out_clips(many=many), max(0, count)))

    def _held_out_clips(self, *, many: bool) -> Iterator[ClipSpec]:
        data, n = self.run.data, len(self._held_out)
        key = hashlib.blake2b(f"held out/{self.fingerprint}".encode()).digest()
        length_s = self._duration_s[self._held_out]
        latest_s = np.maximum(0.0, length_s - span_s(data))
        fitting = np.maximum(1, length_s * data.fps // data.frames).astype(np.int64) if many else np.ones(n, np.int64)
        index = 0
        for turn in range(int(fitting.max())):
            for i in range(n):
                place = permute(i, n, key)
                clips = int(fitting[place])
                if turn >= clips:
                    continue
                slot = middle = (clips - 1) // 2
                if turn:  # the others in any order, so that a short list has early and late ones
                    slot = permute(turn - 1, clips - 1, key)
                    slot += slot >= middle
                share = slot / (clips - 1) if clips > 1 else 0.5
                yield self._centred(index, int(self._held_out[place]), float(latest_s[place]) * share)
                index += 1

    def _centred(self, index: int, row: int, start_s: float) -> ClipSpec:
        words = _words(self.fingerprint.encode(), index, 0)
        data = self.run.data
        return ClipSpec(
            index=index,
            attempt=0,
            stream=STREAM,
            video=row,
            uri=self._uris[row].as_py(),
            start_s=start_s,
            frames=data.frames,
            fps=data.fps,
            window=self._window(-1),
            pixels=data.pixels,
            seek="linear" if self._linear[row] else "planned",
            flip=False,
            mask_seed=words[3] >> 1,
            view_seed=words[4] >> 1,
        )

    def _window(self, seed: int) -> Window:
        """What decode ships: by the configured law for a seed, and for -1 the centre, whatever that law is."""
        data = self.run.data
        whole, (short, long) = data.window == "whole", data.canvas
        return Window(
            kind=data.window,
            size_px=short,
            long_px=long if whole else None,
            scale=data.window_scale if seed >= 0 else (1.0, 1.0),
            aspect=data.window_aspect if seed >= 0 else (1.0, 1.0),
            seed=seed,
        )

    def _place(self, index: int, attempt: int) -> int:
        """Position in the training rows of the video of an attempt."""
        n = len(self._rows)
        turn, i = divmod(index // self.run.data.clips_per_video, n)
        place = permute(i, n, self._key + b"pass %d" % turn)
        if attempt == 0 or n == 1:
            return place
        step = permute((attempt - 1) % (n - 1), n - 1, self._key + b"substitutes %d" % index)
        return (place + 1 + step) % n  # a walk over all other videos, different for each sample

    def _long_enough(self, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
        """The rows that data.short_videos lets be drawn."""
        match self.run.data.short_videos:
            case "repeat":
                return rows
            case "skip":
                return rows[self._duration_s[rows] >= span_s(self.run.data)]
            case _ as unreachable:
                assert_never(unreachable)

    def _why_empty(self, manifest: Manifest) -> str:
        usable, train, data = int(manifest.usable.sum()), manifest.train_rows, self.run.data
        if not usable:
            return f"none of the manifest's {len(manifest)} videos is usable; index a source that holds videos"
        if not len(train):
            return f"all {usable} usable videos are held out; index them again with data.holdout below {data.holdout}"
        longest = float(self._duration_s[train].max())
        return (
            f"all {len(train)} training videos last less than a clip's {span_s(data):.2f} s (longest: {longest:.2f} s) "
            "and data.short_videos=skip; set it to repeat, lower data.frames or raise data.fps"
        )


def micro_batch_ids(run: RunConfig, *, world: int, rank: int, step: int, micro: int) -> range:
    """Sample indices that `rank` of `world` takes as its micro-batch number `micro` of `step`.

    A step's samples [s*B, (s+1)*B) are dealt by micro-batch, then by rank: ranks read consecutive blocks of the tape.
    Raises:  IndexError if rank or micro is out of range (`spec` raises it for a step past the end); ValueError if
             train.clips is not a multiple of world x train.accumulation.
    """
    sizes = {"rank": (rank, world), "micro": (micro, run.train.accumulation)}
    for name, (value, size) in sizes.items():
        if not 0 <= value < size:
            raise IndexError(f"{name}={value} is not in [0, {size})")
    shares = world * run.train.accumulation
    if run.train.clips % shares:
        raise ValueError(
            f"train.clips={run.train.clips} is not a multiple of {world} rank(s) x "
            f"train.accumulation={run.train.accumulation}; change cluster.workers or train.accumulation"
        )
    size = run.train.clips // shares
    first = step * run.train.clips + (micro * world + rank) * size
    return range(first, first + size)


def _words(key: bytes, index: int, attempt: int) -> tuple[int, ...]:
    """Eight independent 64-bit words for one attempt at one sample."""
    return struct.unpack("<8Q", hashlib.blake2b(struct.pack("<QQ", index, attempt), key=key).digest())


def _unit(word: int) -> float:
    """A 64-bit word as a number in [0, 1), with the 53 bits that a float holds."""
    return (word >> 11) * 2.0**-53
