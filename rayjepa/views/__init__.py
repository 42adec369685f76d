"""From decoded bytes to what the encoder sees, on the device: crops, colour, flip, normalisation.

A view is a function of (clip, spec) and the configuration; who else is in the batch changes it by rounding at most.
The CPU draws a few numbers per clip, which go over in one copy; on a GPU the rest is one compiled function per kind of
view.

Colours: by each clip's matrix and range, within 0.6 grey levels of what swscale makes exactly (`accurate_rnd`,
`full_chroma_int`) with a bilinear kernel for the chroma. Chroma lies in the middle of its 2x2 luma pixels, as
libavfilter's `scale` has it where it is not told otherwise.
Quality of crops: PSNR in dB against the cut-out of swscale's exact RGB at full size, interpolated by PyTorch
with antialias; 256 px crops of seven films from 176x144 to 1920x1080, means (in brackets the worst film), PyAV 18.1:

    made by                                       against bicubic    against bilinear
    `crops` from the film's own planes, bicubic   59.7 (54.4)        46.9 (42.7)
    the same, bilinear                            47.1 (42.7)        60.2 (53.5)
    swscale in the decoder, bicubic               51.1 (45.6)        45.0 (41.1)
    the same, bilinear                            45.9 (41.7)        51.9 (45.3)
    whole frames of 288x512, then `crops`         47.1 (39.9)        44.9 (41.0)

Rounding the reference to bytes costs as much as 58.9 dB. Films with saturated colours are the worst: what lies outside
[0, 1] is cut off once at the end, not before and after.
"""

from rayjepa.views.batch import crops, to_views
from rayjepa.views.colour import MEAN, STD
from rayjepa.views.draw import Crop

__all__ = ["MEAN", "STD", "Crop", "crops", "to_views"]
