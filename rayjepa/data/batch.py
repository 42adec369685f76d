"""What the stream hands to the loop."""

from dataclasses import dataclass, field

from jaxtyping import Int32, Int64, UInt8
from torch import Tensor

from rayjepa.data.blocks import Timing
from rayjepa.data.clip import ClipSpec, Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipBatch:
    """One micro-batch of one rank: decoded bytes and what the tape says about them.

    Shapes:  pixels (B, nbytes) uint8, each row I420 or RGB as its spec says; index (B,); layout (B, 5): the
             fields of a Layout.
    """

    index: Int64[Tensor, " B"]
    pixels: UInt8[Tensor, "B nbytes"]
    layout: Int32[Tensor, "B 5"]
    specs: tuple[ClipSpec, ...]
    """The accepted spec of each row: attempt > 0 says that it is a substitute."""
    side: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Named tensors aligned with the clips' frames (actions, states, labels), from manifest columns."""
    failures: tuple[Failure, ...] = ()
    """What had to be given up before these rows could be filled."""
    timing: Timing | None = None
    """What decoding them took."""
    transfer_s: float = 0.0
    """Seconds that it took to have them as tensors, once they were on this machine."""
