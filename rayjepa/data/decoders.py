"""Clips for the specs of any of a run's streams, decoded by its own rules."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from types import TracebackType

from rayjepa.config import DataConfig, RunConfig, streams_of
from rayjepa.data.clip import ClipSpec
from rayjepa.data.decoder import Decoded, Decoder

RULES = (
    "retries",
    "substitutes",
    "decode_cpu_s",
    "decode_wall_s",
    "decode_memory_gib",
    "max_file_gib",
    "max_frame_px",
    "max_video_h",
    "max_packets",
    "whole_mib",
    "read_tries",
    "read_timeout_s",
    "node_cache_gib",
    "scratch",
)
"""Knobs of data.* that a decoder goes by beside a spec; streams that have them in common share one, and its child."""


class Decoders:
    """A decoder for each set of rules among the streams of `run`: `with Decoders(run) as decoders: decoders.clips(…)`.

    For one thread, as a Decoder is.
    """

    def __init__(self, run: RunConfig) -> None:
        largest: dict[tuple[object, ...], DataConfig] = {}
        rules = {stream.name: tuple(getattr(stream.run.data, key) for key in RULES) for stream in streams_of(run)}
        for stream in streams_of(run):
            data, own = stream.run.data, rules[stream.name]
            largest[own] = max(largest.get(own, data), data, key=attrgetter("clip_bytes"))
        made = {own: Decoder(data) for own, data in largest.items()}
        self._by_stream = {name: made[own] for name, own in rules.items()}
        self._all = tuple(made.values())

    def __enter__(self) -> "Decoders":
        for decoder in self._all:
            decoder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for decoder in self._all:
            decoder.close()

    def clips(self, specs: Sequence[ClipSpec], substitute: Callable[[int, int], ClipSpec]) -> Decoded:
        """A clip for each spec, all of one stream; see `Decoder.clips`."""
        return self._by_stream[specs[0].stream].clips(specs, substitute)

    def expect(self, specs: Sequence[ClipSpec]) -> None:
        """Begin to fetch what a later call of `clips` for these will want; from any thread."""
        self._by_stream[specs[0].stream].expect(specs)

    @property
    def restarts(self) -> int:
        """Children that had to be replaced."""
        return sum(decoder.restarts for decoder in self._all)

    @property
    def child_pids(self) -> tuple[int, ...]:
        """Process ids of the children, for drills and measurements."""
        return tuple(decoder.child_pid for decoder in self._all)
