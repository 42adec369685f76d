"""From decoded frames to what an encoder sees at evaluation: resized, cropped at the centre, normalised.

As VJEPA2VideoProcessor of transformers does it, but that a resized value is not rounded to a byte: a normalised value
differs from its by at most 1 grey level (0.0175 at blue's 0.224, half of it by rounding once).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rayjepa.views.colour import MEAN, STD


def short_side(size_px: int) -> int:
    """To what the short side of a frame is resized before the centre crop of `size_px`."""
    return int(size_px * 256 / 224)


def framed(video: Tensor, size_px: int) -> Tensor:
    """Clips of any size as the encoder sees them, in float32 on their device.

    Shapes:  video (B, T, H, W, 3) uint8; result (B, 3, T, size_px, size_px).
    Raises:  ValueError for another dtype or shape.
    """
    if video.dtype != torch.uint8 or video.dim() != 5 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(
            f"video is {video.dtype} of shape {list(video.shape)}; give uint8 of (B, T, H, W, 3), RGB, an image as a "
            "clip of one frame; what is normalised already goes into `encode`"
        )
    frames = video.flatten(0, 1).permute(0, 3, 1, 2).float()
    height, width = frames.shape[-2:]
    short, long = short_side(size_px), int(short_side(size_px) * max(height, width) / min(height, width))
    sides = (short, long) if height <= width else (long, short)
    frames = F.interpolate(frames, size=sides, mode="bilinear", antialias=True)
    top, left = ((side - size_px) // 2 for side in sides)
    frames = frames[:, :, top : top + size_px, left : left + size_px]
    return normalised(frames.unflatten(0, video.shape[:2]).transpose(1, 2))


def normalised(levels: Tensor) -> Tensor:
    """Colours 0 to 255 by ImageNet's mean and standard deviation.  Shapes: (B, 3, T, H, W), also of the result."""
    mean, std = (torch.tensor(numbers, device=levels.device).view(3, 1, 1, 1) for numbers in (MEAN, STD))
    return (levels / 255 - mean) / std
