"""One stream's part of the tape: which video each of its samples is of, and what is drawn for it.

Random numbers are hashes of counters: nothing is drawn in order, so the data position of a run is one integer.
"""

import hashlib
import itertools
import struct
from collections.abc import Iterator
from typing import assert_never

import numpy as np
from jaxtyping import Int64

from rayjepa.config import Stream
from rayjepa.config.parts import VIDEO
from rayjepa.data.clip import ClipSpec, Window
from rayjepa.data.manifest import Manifest, span_s
from rayjepa.data.permutation import permute


class Reel:
    """The samples of one stream, over the videos of `manifest` that are its own or, if it has none, the run's.

    Its keys hold its name, so that streams over the same videos are independent.
    Raises:  ValueError if no video is left to train on.
    """

    def __init__(self, stream: Stream, manifest: Manifest) -> None:
        self.stream = stream
        self.data = stream.run.data
        self._fingerprint = manifest.fingerprint
        self._uris = manifest.column("uri")
        self._duration_s = manifest.duration_s
        self._linear = manifest.linear
        own = manifest.of_stream(stream.source)
        if self.data.frames > 1:  # an image that is repeated to a clip is no clip
            own = own & ~manifest.images
        self._rows = self._long_enough(manifest.train_rows[own[manifest.train_rows]])
        held_out = self._long_enough(manifest.holdout_rows[own[manifest.holdout_rows]])
        self.held_out_is_train = len(held_out) == 0
        self._held_out = self._rows if self.held_out_is_train else held_out
        if len(self._rows) == 0:
            raise ValueError(self._why_empty(manifest))
        words = f"{stream.run.seed}/{self._fingerprint}/{stream.name}"
        self._key = hashlib.blake2b(words.encode(), digest_size=32).digest()

    def __len__(self) -> int:
        """Videos of one pass: each comes once before any comes again."""
        return len(self._rows)

    def spec(self, index: int, place: int, attempt: int) -> ClipSpec:
        """Sample `index` of the run, which is number `place` of the stream; see `Tape.spec`."""
        words = _words(self._key, index, 0)
        mask_seed, view_seed = words[3] >> 1, words[4] >> 1
        if attempt:
            words = _words(self._key, index, attempt)
        row = int(self._rows[self._video(index, place, attempt)])
        data = self.data
        return ClipSpec(
            index=index,
            attempt=attempt,
            stream=self.stream.name,
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
        """At most `count` clips for health and probes; see `Tape.held_out`."""
        many = count > len(self._held_out)
        return tuple(itertools.islice(self._held_out_clips(many=many), max(0, count)))

    def _held_out_clips(self, *, many: bool) -> Iterator[ClipSpec]:
        data, n = self.data, len(self._held_out)
        key = hashlib.blake2b(f"held out/{self._fingerprint}".encode()).digest()
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
        words = _words(self._fingerprint.encode(), index, 0)
        data = self.data
        return ClipSpec(
            index=index,
            attempt=0,
            stream=self.stream.name,
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
        data = self.data
        whole, (short, long) = data.window == "whole", data.canvas
        return Window(
            kind=data.window,
            size_px=short,
            long_px=long if whole else None,
            scale=data.window_scale if seed >= 0 else (1.0, 1.0),
            aspect=data.window_aspect if seed >= 0 else (1.0, 1.0),
            seed=seed,
        )

    def _video(self, index: int, place: int, attempt: int) -> int:
        """Position in the training rows of the video of an attempt."""
        n = len(self._rows)
        turn, i = divmod(place // self.data.clips_per_video, n)
        first = permute(i, n, self._key + b"pass %d" % turn)
        if attempt == 0 or n == 1:
            return first
        step = permute((attempt - 1) % (n - 1), n - 1, self._key + b"substitutes %d" % index)
        return (first + 1 + step) % n  # a walk over all other videos, different for each sample

    def _long_enough(self, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
        """The rows that data.short_videos lets be drawn."""
        match self.data.short_videos:
            case "repeat":
                return rows
            case "skip":
                return rows[self._duration_s[rows] >= span_s(self.data)]
            case _ as unreachable:
                assert_never(unreachable)

    def _why_empty(self, manifest: Manifest) -> str:
        own, data = manifest.of_stream(self.stream.source), self.data
        where = "" if self.stream.name == VIDEO else f"stream {self.stream.name}: "
        usable, train = int((manifest.usable & own).sum()), manifest.train_rows[own[manifest.train_rows]]
        if not usable:
            return f"{where}none of the manifest's {own.sum()} videos is usable; index a source that holds videos"
        if not len(train):
            return (
                f"{where}all {usable} usable videos are held out; index them again with data.holdout below "
                f"{data.holdout}"
            )
        if data.frames > 1 and manifest.images[train].all():
            return (
                f"{where}all {len(train)} training files are images, and clips have data.frames={data.frames}; set it "
                "to 1, or name videos by data.videos"
            )
        longest = float(self._duration_s[train].max())
        return (
            f"{where}all {len(train)} training videos last less than a clip's {span_s(data):.2f} s (longest: "
            f"{longest:.2f} s) and data.short_videos=skip; set it to repeat, lower data.frames or raise data.fps"
        )


def _words(key: bytes, index: int, attempt: int) -> tuple[int, ...]:
    """Eight independent 64-bit words for one attempt at one sample."""
    return struct.unpack("<8Q", hashlib.blake2b(struct.pack("<QQ", index, attempt), key=key).digest())


def _unit(word: int) -> float:
    """A 64-bit word as a number in [0, 1), with the 53 bits that a float holds."""
    return (word >> 11) * 2.0**-53
