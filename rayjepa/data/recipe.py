"""What `rayjepa transcode` makes of a video. Standard library only: owner and child of a decoder both import this."""

from dataclasses import dataclass

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a video is made anew: H.264 of 8 bits in 4:2:0, in an mp4 with its index in front.

    Raises:  ValueError that names the field, its value and what is allowed.
    """

    short_px: int = 288
    """Short side of a frame, even; a smaller source is not enlarged."""
    gop: int = 16
    """Frames from one key frame to the next, always: no cut brings another."""
    b_frames: int = 7
    """Frames between two that others refer to. 7 took 22 to 29 % off the CPU of a clip against x264's pyramid of 3 at
    the same rate factor and 0.6 to 1 dB less; 3 took 15 to 20 % for 0.2 dB."""
    crf: int = 23
    """Rate factor of x264, 0 (lossless) to 51."""
    preset: str = "veryfast"
    """Effort of x264; at this size `medium` costs twice as much and its files are larger at one rate factor."""
    tune: str = "fastdecode"
    """`fastdecode` (no arithmetic coding, no deblocking), or `none`."""

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("short_px", self.short_px >= 16 and self.short_px % 2 == 0, "even and at least 16"),
            ("gop", 1 <= self.gop <= 250, "in [1, 250]"),
            ("b_frames", 0 <= self.b_frames <= 16, "in [0, 16]"),
            ("crf", 0 <= self.crf <= 51, "in [0, 51]"),
            ("preset", self.preset in PRESETS, f"one of {', '.join(PRESETS)}"),
            ("tune", self.tune in ("fastdecode", "none"), "fastdecode or none"),
        ):
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)} must be {allowed}")

    @property
    def options(self) -> dict[str, str]:
        """What FFmpeg's libx264 is told."""
        return {
            "preset": self.preset,
            **({"tune": self.tune} if self.tune != "none" else {}),
            "crf": str(self.crf),
            "g": str(self.gop),
            "bf": str(self.b_frames),
            "x264-params": "scenecut=0:open-gop=0:b-adapt=0:b-pyramid=none",
            "a53cc": "0",
        }
