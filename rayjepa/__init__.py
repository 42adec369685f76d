"""rayjepa: pretrain Joint-Embedding Predictive Architectures on video with Ray and DeepSpeed.

Importing the package imports neither torch nor ray: the decoder's child process starts from here.
"""

import importlib
from os import PathLike
from typing import Any

__version__ = "0.1.0"


def load(path: str | PathLike[str], weights: str = "target") -> Any:
    """The encoder in a run, a checkpoint, an imported folder, a file of Meta's or a Hugging Face folder.

    A `torch.nn.Module` in evaluation mode: `rayjepa.load("runs/mine")(video)` are the features of all tokens, and
    `.pooled(video)` their mean; `weights="context"` takes the context encoder instead of its moving average.
    Shapes:  video (B, T, H, W, 3) uint8 of any size; features (B, N, D); pooled (B, D).
    Raises:  ValueError if there are no weights at `path`, or they do not fit each other.
    """
    return importlib.import_module("rayjepa.interop.encoder").load(path, weights)
