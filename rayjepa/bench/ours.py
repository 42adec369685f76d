"""Our decoder as a process of its own, measured like the others: `python -m rayjepa.bench.ours DATA`.

DATA     the section `data` of the configuration, as JSON.
Speaks the lines of `rayjepa.bench.peer`; its clips carry `start_s` and `seed` of the window besides. Two entrants take
in place of one clip a `batch` of them, and one takes a file.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from rayjepa.bench.peer import Entrant, cpu_s, serve
from rayjepa.config import DataConfig, resolve
from rayjepa.data.clip import ClipSpec, Pixels, Window
from rayjepa.data.decode import decode_clip
from rayjepa.data.decoder import Decoder

I420, RGB = "ours, i420", "ours, rgb"
TOGETHER, ISOLATED = "ours, i420, a batch in process", "ours, i420, a batch isolated"
BARE = "PyAV, every frame decoded, none converted"


def spec_of(clip: dict[str, Any], data: DataConfig, pixels: Pixels) -> ClipSpec:
    """The clip of a request as a run would ask for it."""
    window = Window(size_px=data.size_px, scale=data.window_scale, aspect=data.window_aspect, seed=clip["seed"])
    return ClipSpec(
        index=0, attempt=0, stream="bench", video=0, uri=clip["path"], start_s=clip["start_s"], frames=data.frames,
        fps=data.fps, window=window, pixels=pixels, flip=False, mask_seed=0, view_seed=0,
    )  # fmt: skip


class Ours:
    """The entrants, and the CPU clock that also counts the decoder's child."""

    def __init__(self, data: DataConfig) -> None:
        self.data = replace(data, pixels="i420", window="crop")
        self.decoder = Decoder(self.data)

    def clock(self) -> float:
        """CPU seconds of this process and of the child, all threads, to the nanosecond.

        Source:  the number of another process's clock is as clock_getcpuclockid(3) makes it on Linux.
        """
        return cpu_s() + time.clock_gettime((~self.decoder.child_pid << 3) | 2)

    def i420(self, clip: dict[str, Any], size: int) -> NDArray[np.uint8]:
        """Shapes:  (T, S*S*3/2)."""
        return self._alone(clip, "i420")

    def rgb(self, clip: dict[str, Any], size: int) -> NDArray[np.uint8]:
        """Shapes:  (T, S, S, 3)."""
        return self._alone(clip, "rgb").reshape(-1, size, size, 3)

    def _alone(self, clip: dict[str, Any], pixels: Pixels) -> NDArray[np.uint8]:
        spec = spec_of(clip, self.data, pixels)
        out = np.empty(spec.nbytes, np.uint8)
        clip["decoded"] = decode_clip(spec.uri, spec, out.data).decoded
        return out.reshape(spec.frames, -1)

    def together(self, job: dict[str, Any], size: int) -> NDArray[np.uint8]:
        """A batch by `decode_clip` in this process.  Shapes:  (B, nbytes)."""
        specs = self._batch(job)
        out = np.empty((len(specs), specs[0].nbytes), np.uint8)
        efforts = [decode_clip(spec.uri, spec, row.data) for spec, row in zip(specs, out, strict=True)]
        job["decoded"] = sum(effort.decoded for effort in efforts)
        return out

    def isolated(self, job: dict[str, Any], size: int) -> NDArray[np.uint8]:
        """The same batch by the decoder's child.  Shapes:  (B, nbytes)."""
        restarts = self.decoder.restarts
        clips = self.decoder.clips(self._batch(job), _no_other)
        if self.decoder.restarts != restarts:
            raise RuntimeError("the decoder's child was replaced: its clock started anew")
        job["decoded"] = clips.frames
        return clips.pixels

    def _batch(self, job: dict[str, Any]) -> Sequence[ClipSpec]:
        """Clips of as many files: the decoder would take neighbours of one file in one go."""
        specs = [spec_of(clip, self.data, "i420") for clip in job["batch"]]
        paths = [Path(spec.uri) for spec in specs]
        return [
            replace(spec, uri=f"{path.parent}/{'./' * k}{path.name}")
            for k, (spec, path) in enumerate(zip(specs, paths, strict=True))
        ]

    def bare(self, job: dict[str, Any], size: int) -> None:
        """What decoding costs in PyAV with nothing around it: a whole file, in order, on one thread."""
        with av.open(str(job["path"])) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            job["decoded"] = sum(1 for _ in container.decode(stream))


def _no_other(index: int, attempt: int) -> ClipSpec:
    raise RuntimeError("a clip of the benchmark's own corpus does not decode")


def main(data: str) -> None:
    """Serve until stdin ends."""
    ours = Ours(resolve(None, {"data": json.loads(data)}).data)
    entrants: dict[str, Entrant] = {
        I420: ours.i420,
        RGB: ours.rgb,
        TOGETHER: ours.together,
        ISOLATED: ours.isolated,
        BARE: ours.bare,
    }
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    try:
        serve(entrants, {"av": av.__version__, "libavcodec": codec}, ours.clock)
    finally:
        ours.decoder.close()


if __name__ == "__main__":
    main(sys.argv[1])
