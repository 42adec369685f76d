"""The tape: sample i of the run is a pure function of (seed, manifest, i), whatever machines, workers or schedules do.

Within a step, each stream has a range of consecutive samples of its own, whose size follows from the step alone.
"""

from collections.abc import Sequence

from rayjepa.config import RunConfig, Stream, quantum_of, streams_of
from rayjepa.data.choice import Videos
from rayjepa.data.clip import ClipSpec
from rayjepa.data.quotas import Quotas
from rayjepa.data.reel import Reel, Share


class Tape:
    """The samples of `run` over the videos of `manifest`: `spec(i)` for training, `held_out` for health and probes.

    Of a run with phases it is the tape of one, whose samples follow the `first` of those before it. Of a run for which
    another manifest was accepted on its way, `before` has the earlier ones: each with the index below which samples are
    drawn from it, in rising order. Held-out clips are always of the newest, which holds out nothing that was trained.
    Raises:  ValueError if a stream has no video left to train on, or weights do not fit the sources.
    """

    def __init__(
        self, run: RunConfig, videos: Videos, *, first: int = 0, before: Sequence[tuple[int, Videos]] = ()
    ) -> None:
        self.run = run
        self.samples = range(first, first + run.samples)
        """Indices of the samples on this tape."""
        self.fingerprint = videos.fingerprint
        """Of the newest manifest."""
        streams = streams_of(run)
        self.quotas = quotas_of(run, streams)
        self._reels = [Reel(stream, videos) for stream in streams]
        self._before = [(stop, [Reel(stream, earlier) for stream in streams]) for stop, earlier in before]
        examined = [reel for reel in self._reels if reel.stream.run.data.frames > 1] or self._reels
        self._examined = examined[0]

    @property
    def videos(self) -> int:
        """Videos that are trained on; each stream draws each of its own once before any again."""
        return sum(len(reel) for reel in self._reels)

    @property
    def shares(self) -> tuple[tuple[Stream, tuple[Share, ...]], ...]:
        """The streams, each with what its sources give."""
        return tuple((reel.stream, reel.shares) for reel in self._reels)

    @property
    def examined(self) -> Stream:
        """The stream whose clips health and probes look at: the first of more frames than one, or else the first."""
        return self._examined.stream

    @property
    def held_out_is_train(self) -> bool:
        """No video is held out, so `held_out` gives clips of training videos."""
        return self._examined.held_out_is_train

    def spec(self, index: int, attempt: int = 0) -> ClipSpec:
        """Sample `index` of the run; `attempt` n is its n-th substitute, another video than all attempts before it.

        A substitute has its own start, window and flip, and keeps the sample's mask and view seeds: what is hidden in
        a sample does not depend on whether a file could be read. Only with fewer videos than attempts do videos recur.
        Units:   index in `samples`, attempt >= 0; seeds are in [0, 2^63), so a signed column holds them.
        Raises:  IndexError if either is outside.
        """
        if index not in self.samples or attempt < 0:
            here = f"{len(self.samples)} samples" + (f" from {self.samples.start} on" if self.samples.start else "")
            raise IndexError(f"sample {index}, attempt {attempt} is not on this tape of {here}")
        stream, place = self.quotas.place(index)
        reels = next((reels for stop, reels in self._before if index < stop), self._reels)
        return reels[stream].spec(index, place, attempt)

    def held_out(self, count: int) -> tuple[ClipSpec, ...]:
        """At most `count` clips for health and probes, always the same ones for this manifest, clip length and count.

        Each held-out video gives its middle. If they are fewer than `count`, each gives all clips that fit into it
        without sharing a frame, evenly spaced, in rounds over the videos. The centre of the frame, no flip. The seed of
        the run plays no part, so that runs can be compared.
        """
        return self._examined.held_out(count)


def quotas_of(run: RunConfig, streams: tuple[Stream, ...]) -> Quotas:
    """The shares of the run's streams, `streams_of(run)`, in each of its steps.

    Raises:  ValueError if data.quantum does not fit a step, or what the ranks take at once.
    """
    clips = run.train.clips
    return Quotas.of([s.weight for s in streams], clips=clips, quantum=quantum_of(run) if len(streams) > 1 else clips)


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
