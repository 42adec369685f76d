"""What one sample is, before any pixel is read. Standard library only: the decoder's child imports this."""

from dataclasses import dataclass
from typing import Literal

Pixels = Literal["i420", "rgb"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What decode ships of a frame: one random-resized crop, drawn from `seed` alone once the frame's size is known.

    The tape says what to ship and the device draws views from it, so that a whole frame at a short side (multi-crop
    recipes) becomes another kind here without a change elsewhere.
    """

    size_px: int
    """Side of the square that is shipped, in pixels."""
    scale: tuple[float, float]
    """Share of the frame's area, lowest and highest; (1, 1) with aspect (1, 1) is the largest centred square."""
    aspect: tuple[float, float]
    """Width over height, lowest and highest."""
    seed: int
    """64-bit seed of the draw; -1: the largest centred square (evaluation)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSpec:
    """One sample of the run, fixed by (seed, manifest, index, attempt)."""

    index: int
    """Sample index in the run; held-out clips count from 0 in a list of their own."""
    attempt: int
    """0, or n for the n-th substitute of a sample that could not be decoded."""
    stream: str
    """Homogeneous source of samples this one belongs to."""
    video: int
    """Row of the manifest."""
    uri: str
    start_s: float
    """Start of the clip in seconds of video time, from the first frame."""
    frames: int
    fps: float
    window: Window
    pixels: Pixels
    flip: bool
    mask_seed: int
    """64-bit seed of this sample's mask."""
    view_seed: int
    """64-bit seed of what is drawn on the device."""

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded clip: frames x size x size x 3 (rgb) or x 3/2 (i420)."""
        area = self.frames * self.window.size_px**2
        return area * 3 if self.pixels == "rgb" else area * 3 // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why one attempt at one sample gave no clip: a row of the quarantine and of the checkpoint's ledger."""

    index: int
    attempt: int
    video: int
    uri: str
    stage: Literal["open", "demux", "decode", "convert", "child"]
    """Where it failed; `child`: the process died or ran past a deadline."""
    kind: Literal["content", "io", "deadline", "crash"]
    """`content` is substituted at once; the others first use up data.retries."""
    reason: str
