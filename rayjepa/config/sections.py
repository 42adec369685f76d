"""Knobs of the data and the views: frozen sections, validated where the fields are.

The string under a field is its help text; `rayjepa pretrain --help` prints it, so it states unit and range.
"""

from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

section: Any = dataclass(
    frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=True)
)


def need(claim: bool, message: str) -> None:
    if not claim:
        raise ValueError(message)


def ordered(pair: tuple[float, float], key: str, low: float, high: float) -> None:
    need(low < pair[0] <= pair[1] <= high, f"{key}={list(pair)} must be two rising numbers in ({low}, {high}]")


@section
class SourceConfig:
    name: str
    """Name of the source, as the manifest's column `source` has it."""
    weight: float
    """Share of the stream's samples over the sum of all weights, at least 0; 0: none of its videos is drawn."""
    videos: str | None = None
    """Its videos, as data.videos names them; none: those of data.videos that have this name in their manifest."""

    def __post_init__(self) -> None:
        need(0 <= self.weight < float("inf"), f"data.sources[].weight={self.weight} must be at least 0, and finite")
        need(bool(self.name.strip()), f"data.sources[].name={self.name!r} must not be empty")


@section
class DataConfig:
    videos: str | None = None
    """Manifest (.parquet), or what `rayjepa index` takes: folder, glob, list, shard, file of videos or images, here or
    at a URL; none: synthetic videos, made once in data.cache."""
    cache: str = "~/.cache/rayjepa"
    """Folder for the synthetic videos."""
    sources: tuple[SourceConfig, ...] = ()
    """Weights of the sources that samples are drawn from, [{name: N, weight: W}, …]; empty: each video counts alike."""
    quantum: int | None = None
    """With streams: a step has a multiple of so many clips of each; a multiple of workers x micro-batch. None: that."""
    synthetic_videos: int = 320
    """Number of synthetic videos, if data.videos is none."""
    frames: int = 16
    """Frames per clip, after resampling to data.fps; a multiple of model.tubelet, or 1: images, and frames of videos.
    Longer clips are never drawn from images."""
    fps: float = 4.0
    """Frames per second of video time at which a clip is sampled."""
    size_px: int = 256
    """Side of the square clip in pixels; even, and a multiple of model.patch_px."""
    window: Literal["crop", "whole"] = "crop"
    """What the decoder ships: the random-resized crop, or the whole frame, from which the device crops."""
    whole_px: tuple[int, int] = (288, 512)
    """data.window=whole: short and long side of the canvas that a frame is scaled into, in pixels; even."""
    window_scale: tuple[float, float] = (0.3, 1.0)
    """Random-resized crop: share of the frame's area, lowest and highest, in (0, 1]."""
    window_aspect: tuple[float, float] = (0.75, 1.35)
    """Random-resized crop: width over height, lowest and highest, drawn log-uniformly."""
    flip: float = 0.5
    """Probability of a horizontal flip of the whole clip, in [0, 1]."""
    pixels: Literal["i420", "rgb"] = "i420"
    """What the decoder ships: planar YUV 4:2:0 (half the bytes) or packed RGB."""
    short_videos: Literal["repeat", "skip"] = "repeat"
    """A video shorter than a clip: repeat its last frame, or never draw it."""
    holdout: float = 0.1
    """Share of videos (by hash of uri) for health and probes, never trained; in [0, 1). Under 20 videos all train."""
    clips_per_video: int = 1
    """Clips in a row from one video, opened once; more read less, and correlate the clips of a step."""
    retries: int = 2
    """Further tries of a clip after a read error, a deadline or a dead decoder, each in a fresh child process."""
    substitutes: int = 8
    """Other videos tried in place of one that cannot be decoded, before the run stops."""
    max_bad_share: float = 0.2
    """Share of quarantined samples above which the run stops with a summary; in [0, 1]."""
    decode_cpu_s: float = 20.0
    """CPU seconds that one clip may use in the decoder; tight, since load does not change it."""
    decode_wall_s: float = 120.0
    """Wall-clock seconds that one clip may take in the decoder; loose, so that load does not change the data."""
    decode_memory_gib: float = 2.0
    """Address space of a decoder's process: a fuse; close to the need (240 MB at 1080p) good files look corrupt."""
    max_file_gib: float = 64.0
    """Larger files are bad."""
    max_frame_px: int = 4096 * 2304
    """Pixels of a frame, width x height; larger frames are bad."""
    max_video_h: float = 24.0
    """Hours; longer videos are bad."""
    max_packets: int = 4096
    """Packets between a key frame and the end of a clip; clips that need more are bad."""
    whole_mib: float = 8.0
    """Videos in remote storage up to this size are read whole; of larger ones only the ranges that a clip needs."""
    read_tries: int = 6
    """Tries of a request to remote storage that is throttled or cut off, with pauses that double up to 10 s."""
    read_timeout_s: float = 30.0
    """Seconds that remote storage may take for one answer."""
    node_cache_gib: float = 0.0
    """Space on each node for remote videos that were read whole, so that later passes find them; 0: none is kept."""
    scratch: str | None = None
    """Folder on each node's own disk for what its processes share, such as the manifest; none: in its temporary one."""

    def __post_init__(self) -> None:
        need(self.synthetic_videos >= 1, f"data.synthetic_videos={self.synthetic_videos} must be at least 1")
        need(self.quantum is None or self.quantum >= 1, f"data.quantum={self.quantum} must be at least 1, or none")
        need(self.frames >= 1, f"data.frames={self.frames} must be at least 1")
        need(0 < self.fps <= 1000, f"data.fps={self.fps} must be in (0, 1000]")
        need(self.size_px >= 2 and self.size_px % 2 == 0, f"data.size_px={self.size_px} must be even and at least 2")
        ordered(self.window_scale, "data.window_scale", 0.0, 1.0)
        ordered(self.window_aspect, "data.window_aspect", 0.0, 100.0)
        need(0 <= self.flip <= 1, f"data.flip={self.flip} must be in [0, 1]")
        need(0 <= self.holdout < 1, f"data.holdout={self.holdout} must be in [0, 1)")
        need(0 <= self.max_bad_share <= 1, f"data.max_bad_share={self.max_bad_share} must be in [0, 1]")
        need(self.retries >= 0, f"data.retries={self.retries} must be at least 0")
        need(self.substitutes >= 1, f"data.substitutes={self.substitutes} must be at least 1")
        need(self.decode_cpu_s > 0, f"data.decode_cpu_s={self.decode_cpu_s} must be above 0")
        need(
            self.decode_wall_s >= self.decode_cpu_s,
            f"data.decode_wall_s={self.decode_wall_s} must be at least data.decode_cpu_s={self.decode_cpu_s}",
        )
        short, long = self.whole_px
        need(
            2 <= short <= long and short % 2 == long % 2 == 0,
            f"data.whole_px={list(self.whole_px)} must be two even numbers, short side first",
        )
        need(self.clips_per_video >= 1, f"data.clips_per_video={self.clips_per_video} must be at least 1")
        need(self.decode_memory_gib >= 0.5, f"data.decode_memory_gib={self.decode_memory_gib} must be at least 0.5")
        need(self.max_file_gib > 0, f"data.max_file_gib={self.max_file_gib} must be above 0")
        need(self.max_frame_px >= 4, f"data.max_frame_px={self.max_frame_px} must be at least 4")
        need(self.max_video_h > 0, f"data.max_video_h={self.max_video_h} must be above 0")
        need(self.max_packets >= 1, f"data.max_packets={self.max_packets} must be at least 1")
        need(self.whole_mib >= 0, f"data.whole_mib={self.whole_mib} must be at least 0")
        need(self.read_tries >= 1, f"data.read_tries={self.read_tries} must be at least 1")
        need(self.read_timeout_s > 0, f"data.read_timeout_s={self.read_timeout_s} must be above 0")
        need(self.node_cache_gib >= 0, f"data.node_cache_gib={self.node_cache_gib} must be at least 0")
        self._need_sources()

    def _need_sources(self) -> None:
        names = [source.name for source in self.sources]
        need(len(set(names)) == len(names), f"data.sources have the names {', '.join(names)}; each needs its own")
        need(
            not self.sources or any(source.weight for source in self.sources),
            f"data.sources: the weights of {', '.join(names)} are all 0; one must be above 0",
        )

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of a frame as it is shipped."""
        return self.whole_px if self.window == "whole" else (self.size_px, self.size_px)

    @property
    def clip_bytes(self) -> int:
        """Bytes of a clip as it is shipped."""
        height, width = self.canvas
        return self.frames * height * width * 3 // (1 if self.pixels == "rgb" else 2)


@section
class ViewsConfig:
    brightness: float = 0.0
    """Colour jitter: factor drawn in [1 - x, 1 + x], one for a whole clip; in [0, 1]."""
    contrast: float = 0.0
    """Colour jitter: factor drawn in [1 - x, 1 + x]; in [0, 1]."""
    saturation: float = 0.0
    """Colour jitter: factor drawn in [1 - x, 1 + x]; in [0, 1]."""
    hue: float = 0.0
    """Colour jitter: turn of the colour wheel drawn in [-x, x], as a share of it; in [0, 0.5]."""

    def __post_init__(self) -> None:
        for key in ("brightness", "contrast", "saturation"):
            need(0 <= getattr(self, key) <= 1, f"views.{key}={getattr(self, key)} must be in [0, 1]")
        need(0 <= self.hue <= 0.5, f"views.hue={self.hue} must be in [0, 0.5]")
