"""One stream's part of the tape: which video each of its samples is of, and what is drawn for it.

Random numbers are hashes of counters: nothing is drawn in order, so the data position of a run is one integer.
"""

import hashlib
import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from rayjepa.config import Stream
from rayjepa.data.choice import Videos
from rayjepa.data.clip import ClipSpec, Place, Window
from rayjepa.data.lookup import Entry
from rayjepa.data.manifest import span_s
from rayjepa.data.mixture import Mixture
from rayjepa.data.permutation import permute
from rayjepa.data.stock import stock_of
from rayjepa.data.storage.spans import spans


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a source gives to its stream."""

    source: str | None
    """None: the stream's videos are not told apart by source."""
    share: float
    """Of the stream's samples, in (0, 1]."""
    videos: int


class Reel:
    """The samples of one stream, over the rows of `videos` that are its own or, if it has none, the run's.

    Its keys hold its name, so that streams over the same videos are independent; so do those of its sources.
    Raises:  ValueError if no video is left to train on, or sources and weights do not fit.
    """

    def __init__(self, stream: Stream, videos: Videos) -> None:
        self.stream = stream
        self.data = stream.run.data
        self._videos = videos
        self._stock = stock = stock_of(stream, videos)
        self.held_out_is_train = stock.held_out_is_train
        words = f"{stream.run.seed}/{videos.fingerprint}/{stream.name}"
        self._key = hashlib.blake2b(words.encode(), digest_size=32).digest()
        self._keys = [self._key + (b"" if s.name is None else b"source %s " % s.name.encode()) for s in stock.sources]
        self._mixture = Mixture([source.weight for source in stock.sources], self._key)

    @property
    def shares(self) -> tuple[Share, ...]:
        """What each source gives."""
        sources = self._stock.sources
        weight = sum(source.weight for source in sources)
        return tuple(Share(source=s.name, share=s.weight / weight, videos=len(s.rows)) for s in sources)

    def __len__(self) -> int:
        """Videos that are trained on: each comes once before any of its source comes again."""
        return sum(len(source.rows) for source in self._stock.sources)

    def spec(self, index: int, place: int, attempt: int) -> ClipSpec:
        """Sample `index` of the run, which is number `place` of the stream; see `Tape.spec`."""
        words = _words(self._key, index, 0)
        mask_seed, view_seed = words[3] >> 1, words[4] >> 1
        if attempt:
            words = _words(self._key, index, attempt)
        row, data = self._row(index, place, attempt), self.data
        entry = self._videos.entry(row)
        start_s = _unit(words[0]) * max(0.0, entry.duration_s - span_s(data))
        return ClipSpec(
            index=index,
            attempt=attempt,
            stream=self.stream.name,
            video=row,
            uri=entry.uri,
            start_s=start_s,
            frames=data.frames,
            fps=data.fps,
            window=self._window(words[1] >> 1),
            pixels=data.pixels,
            seek=entry.seek,
            flip=_unit(words[2]) < data.flip,
            mask_seed=mask_seed,
            view_seed=view_seed,
            place=_place(entry, start_s, span_s(data)),
        )

    def held_out(self, count: int) -> tuple[ClipSpec, ...]:
        """At most `count` clips for health and probes; see `Tape.held_out`."""
        return tuple(itertools.islice(self._held_out_clips(count), max(0, count)))

    def _held_out_clips(self, count: int) -> Iterator[ClipSpec]:
        data, rows = self.data, self._stock.held_out
        key = hashlib.blake2b(f"held out/{self._videos.fingerprint}".encode()).digest()
        order = (permute(i, len(rows), key) for i in range(len(rows)))
        if count <= len(rows):  # of each its middle; the others are not looked at
            for index, place in enumerate(order):
                yield self._centred(index, int(rows[place]), 0.5)
            return
        places = list(order)
        lengths_s = {place: self._videos.entry(int(rows[place])).duration_s for place in places}
        fitting = {place: max(1, int(length_s * data.fps // data.frames)) for place, length_s in lengths_s.items()}
        index = 0
        for turn in range(max(fitting.values())):
            for place in places:
                clips = fitting[place]
                if turn >= clips:
                    continue
                slot = middle = (clips - 1) // 2
                if turn:  # the others in any order, so that a short list has early and late ones
                    slot = permute(turn - 1, clips - 1, key)
                    slot += slot >= middle
                yield self._centred(index, int(rows[place]), slot / (clips - 1) if clips > 1 else 0.5)
                index += 1

    def _centred(self, index: int, row: int, share: float) -> ClipSpec:
        """A clip of the frame's centre that begins at this share of the time in which it can."""
        words = _words(self._videos.fingerprint.encode(), index, 0)
        data, entry = self.data, self._videos.entry(row)
        start_s = max(0.0, entry.duration_s - span_s(data)) * share
        return ClipSpec(
            index=index,
            attempt=0,
            stream=self.stream.name,
            video=row,
            uri=entry.uri,
            start_s=start_s,
            frames=data.frames,
            fps=data.fps,
            window=self._window(-1),
            pixels=data.pixels,
            seek=entry.seek,
            flip=False,
            mask_seed=words[3] >> 1,
            view_seed=words[4] >> 1,
            place=_place(entry, start_s, span_s(data)),
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

    def _row(self, index: int, place: int, attempt: int) -> int:
        """Row of the manifest of an attempt's video."""
        source, number = self._mixture.place(place // self.data.clips_per_video)
        rows, key = self._stock.sources[source].rows, self._keys[source]
        n = len(rows)
        turn, i = divmod(number, n)
        first = permute(i, n, key + b"pass %d" % turn)
        if attempt == 0:
            return int(rows[first])
        others = len(self) - n
        if attempt >= n and others:  # its own source is spent
            return self._row_elsewhere(source, permute((attempt - n) % others, others, key + b"others %d" % index))
        if n == 1:
            return int(rows[first])
        step = permute((attempt - 1) % (n - 1), n - 1, key + b"substitutes %d" % index)
        return int(rows[(first + 1 + step) % n])  # a walk over all other videos, different for each sample

    def _row_elsewhere(self, source: int, number: int) -> int:
        """Row of the video of this number among those of all other sources."""
        for other, stock in enumerate(self._stock.sources):
            if other == source:
                continue
            if number < len(stock.rows):
                return int(stock.rows[number])
            number -= len(stock.rows)
        raise AssertionError("the other sources have as many videos as were counted")


def _place(entry: Entry, start_s: float, seconds: float) -> Place | None:
    """Where the bytes of a clip's video lie; none: its manifest does not know how many they are."""
    if entry.nbytes is None:
        return None
    likely: tuple[tuple[int, int], ...] = ()
    if entry.head is not None:
        likely = spans(
            head=entry.head,
            tail=entry.tail,
            key_s=entry.key_s or (),
            key_bytes=entry.key_bytes or (),
            nbytes=entry.nbytes,
            start_s=start_s,
            seconds=seconds,
        )
    file = entry.shard or entry.uri
    return Place(file=file, nbytes=entry.nbytes, offset=entry.offset, cell=entry.cell, spans=likely)


def _words(key: bytes, index: int, attempt: int) -> tuple[int, ...]:
    """Eight independent 64-bit words for one attempt at one sample."""
    return struct.unpack("<8Q", hashlib.blake2b(struct.pack("<QQ", index, attempt), key=key).digest())


def _unit(word: int) -> float:
    """A 64-bit word as a number in [0, 1), with the 53 bits that a float holds."""
    return (word >> 11) * 2.0**-53
