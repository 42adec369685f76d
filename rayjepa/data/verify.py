"""What decoding all of a video says of it: what is damaged, and whether seeks are exact. The child imports this: av."""

import random
from dataclasses import replace

from rayjepa.data.clip import ClipSpec, Limits, Window
from rayjepa.data.container import opened
from rayjepa.data.decode import decode_clips, probe
from rayjepa.data.filling import MAX_BAD, Filling, reading
from rayjepa.data.frames import Effort
from rayjepa.data.storage.paged import Paged
from rayjepa.data.video import IMAGES, BadVideo, Probe

CLIPS = 4
"""Clips that are compared: at random times, each from another part of the video."""
FRAMES = 6
STRIDE = 2.7
"""Frames of the video from one of a clip's to the next: no whole number, so that groups of pictures are met anyhow."""
SIZE_PX = 96


def verify(file: int | str | Paged, limits: Limits = Limits()) -> Probe:
    """A probe after every packet was decoded once, in order; clips read by seeking are compared with the same in order.

    `damaged` is the number of packets that the decoder refused; `seek` is `linear` if a clip came out differently.
    Raises:  BadVideo, also if more than a quarter of the packets are refused; MemoryError, as `probe`.
    """
    found = probe(file, limits)
    if found.container in IMAGES:  # its one frame has just been decoded
        return replace(found, damaged=0)
    specs = _specs(found)
    outs = [bytearray(spec.nbytes) for spec in specs]
    tally = Effort()
    with opened(file, limits) as video:
        clips = [Filling(spec, out, video) for spec, out in zip(specs, outs, strict=True)]
        for _ in reading(video, clips, tally):
            pass
    for clip in clips:
        if clip.failure is not None:
            raise clip.failure
    if tally.refused > MAX_BAD * tally.sent:
        raise BadVideo("decode", f"{tally.refused} of {tally.sent} packets are damaged: {tally.complaint}")
    exact = found.seek == "planned" and _is_same(file, specs, outs, limits)
    return replace(found, damaged=tally.refused, seek="planned" if exact else "linear")


def _specs(found: Probe) -> list[ClipSpec]:
    """Clips at times that are always the same for the same video."""
    window = Window(size_px=SIZE_PX, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=-1)
    draw = random.Random(found.frames).random
    return [
        ClipSpec(
            index=part, attempt=0, stream="verify", video=0, uri="", start_s=(part + draw()) * found.duration_s / CLIPS,
            frames=FRAMES, fps=found.fps / STRIDE, window=window, pixels="i420", flip=False, mask_seed=0, view_seed=0,
        )
        for part in range(CLIPS)
    ]  # fmt: skip


def _is_same(file: int | str | Paged, specs: list[ClipSpec], expected: list[bytearray], limits: Limits) -> bool:
    """Whether clips by seeking, each alone and all at once, are those that were read in order."""
    alone = [bytearray(spec.nbytes) for spec in specs]
    at_once = [bytearray(spec.nbytes) for spec in specs]
    efforts = decode_clips(file, specs, at_once, limits)
    for spec, out in zip(specs, alone, strict=True):
        efforts += decode_clips(file, [spec], [out], limits)
    return alone == at_once == expected and not any(isinstance(effort, BadVideo) for effort in efforts)
