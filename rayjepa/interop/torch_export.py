"""An encoder as a program of torch.export: one file that runs without this package."""

import json
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from rayjepa.interop.encoder import Encoder
from rayjepa.interop.framing import normalised
from rayjepa.interop.weights import Weights, Which

Input = Literal["views", "uint8"]
"""Normalised clips (B, 3, T, S, S), or bytes (B, T, S, S, 3), resized and cropped already in both."""
PROGRAM, SIGNATURE = "encoder.pt2", "encoder.json"


def write(weights: Weights, folder: Path, *, which: Which, takes: Input) -> Path:
    """Export the encoder for clips of the length and size that it was trained on, of any number; return the file.

    Raises:  RuntimeError if the program that was written gives other features than the encoder.
    """
    module = Program(Encoder(weights, which), takes=takes).eval()
    clip = weights.clip
    shape = (clip.frames, clip.size_px, clip.size_px)
    example = torch.randint(0, 256, (2, *shape, 3), dtype=torch.uint8)
    if takes == "views":
        example = normalised(example.permute(0, 4, 1, 2, 3).float())
    with torch.no_grad():
        expected = module(example)  # first, since tables of positions are made once, and then are constants
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("clips")},))
        path = folder / PROGRAM
        torch.export.save(program, path)
        again = torch.export.load(path).module()
        for count in (2, 1, 3):
            clips = example[torch.arange(count) % 2]
            difference = float((again(clips) - module(clips)).abs().max())
            if difference > 1e-5 * float(expected.abs().max()):
                raise RuntimeError(
                    f"{path}: for {count} clips the features differ by {difference:g} from the encoder's"
                )
    signature = {
        "input": {"dtype": str(example.dtype).removeprefix("torch."), "shape": ["clips", *example.shape[1:]]},
        "output": {"dtype": "float32", "shape": ["clips", *expected.shape[1:]]},
        "normalisation": "none: colours 0 to 255" if takes == "uint8" else "ImageNet mean and standard deviation",
        "torch": torch.__version__,
    }
    (folder / SIGNATURE).write_text(json.dumps(signature, indent=2) + "\n")
    return path


class Program(nn.Module):
    """What is exported: the encoder behind the input that was chosen."""

    def __init__(self, encoder: Encoder, *, takes: Input) -> None:
        super().__init__()
        self.encoder, self.takes = encoder, takes

    def forward(self, clips: Tensor) -> Tensor:
        """Features of all tokens."""
        views = normalised(clips.permute(0, 4, 1, 2, 3).float()) if self.takes == "uint8" else clips
        return self.encoder.encode(views)
