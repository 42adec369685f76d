"""Which tokens of each clip are seen and which are predicted: a function of the run, the step and the sample.

Nothing here depends on the world size, the micro-batch or who else is in it. Masks are drawn on the training worker, on
the CPU, as token ids in raster order t*(H*W) + h*W + w.
"""

from rayjepa.masks.kinds import is_padded, names, splits_for
from rayjepa.masks.split import Split

__all__ = ["Split", "is_padded", "names", "splits_for"]
