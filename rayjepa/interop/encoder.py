"""`rayjepa.load`: a trained encoder as a module that takes decoded frames. PyTorch is all that it needs."""

from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from rayjepa.interop.fit import has_image_tokeniser
from rayjepa.interop.framing import framed
from rayjepa.interop.weights import State, Weights, Which, read_weights
from rayjepa.model import Vit


def load(path: str | PathLike[str], weights: str = "target") -> "Encoder":
    """The encoder in a run, a checkpoint, an imported folder, a file of Meta's or a Hugging Face folder.

    `weights`: the moving average, which is what evaluations use, or "context"; a source with one encoder gives that.
    Raises:  ValueError if there are no weights at `path`, or they do not fit each other.
    """
    if weights not in ("target", "context"):
        raise ValueError(f"weights={weights!r}; give target or context")
    return Encoder(read_weights(Path(path)), weights)


class Encoder(nn.Module):
    """Features of videos and images, in evaluation mode; `size_px` is the side of what it sees of each frame.

    `notes` say what was not certain of the weights.
    """

    def __init__(self, weights: Weights, which: Which = "target") -> None:
        super().__init__()
        state = weights.chosen(which)
        self.model, self.clip, self.size_px = weights.model, weights.clip, weights.clip.size_px
        self.origin = f"{weights.said(which)} of {weights.origin}"
        self.notes = weights.notes
        self.vit = vit_of(weights, state)
        self.eval()

    def forward(self, video: Tensor) -> Tensor:
        """Features of all tokens of the clips, in raster order of (time, height, width).

        Frames may have any size: the short side is resized to 256/224 of `size_px`, the centre is cropped.
        Shapes:  video (B, T, H, W, 3) uint8, T a multiple of the tubelet or, for images, 1; result (B, N, D).
        Raises:  ValueError for another dtype, shape, or number of frames.
        """
        return self.encode(framed(video, self.size_px))

    def pooled(self, video: Tensor) -> Tensor:
        """The mean of the features over all tokens.  Shapes: video as in `forward`; result (B, D)."""
        return self(video).mean(1)

    def encode(self, views: Tensor) -> Tensor:
        """Features of clips that are resized and normalised already, by ImageNet's mean and standard deviation.

        An image is tokenised as such if the weights have seen images, else as the same frame repeated, as in V-JEPA 2.
        Shapes:  views (B, 3, T, H, W), H and W multiples of the patch; result (B, N, D).
        Raises:  ValueError for another shape, or number of frames.
        """
        tubelet, patch = self.model.tubelet, self.model.patch_px
        if views.dim() != 5 or views.shape[1] != 3 or views.shape[3] % patch or views.shape[4] % patch:
            raise ValueError(f"views of shape {list(views.shape)}; give (B, 3, T, H, W), H and W multiples of {patch}")
        frames = views.shape[2]
        if frames == 1 and self.vit.patch_embed_image is None:
            views, frames = views.expand(-1, -1, tubelet, -1, -1), tubelet
        if frames != 1 and frames % tubelet:
            raise ValueError(f"a clip of {frames} frames is no multiple of the tubelet, {tubelet} frames")
        views = views.to(self.vit.norm.weight.dtype)
        return self.vit(*self.vit.tokenise(views))[-1]


def vit_of(weights: Weights, state: State) -> Vit:
    """The encoder of these tensors, which it takes over without a copy."""
    with torch.device("meta"):
        vit = Vit(weights.model, images=has_image_tokeniser(state))
    vit.load_state_dict(state, assign=True)
    return vit
