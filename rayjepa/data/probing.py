"""What each file of a listing is: probed in parallel, reported in order."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Literal, assert_never

from rayjepa.config import DataConfig
from rayjepa.data.clip import Failure
from rayjepa.data.decoder import Decoder
from rayjepa.data.video import Probe

Verify = Literal["quick", "full"]
"""`quick`: every packet is read and one frame decoded, in milliseconds; `full`: all frames are decoded once."""
Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_WINDOW = 8192  # rows in flight: bounds the memory of a listing of millions


def probe_all(
    uris: Sequence[str], *, cfg: DataConfig, verify: Verify, processes: int | None, progress: Progress | None
) -> Iterator[list[dict[str, object]]]:
    """Rows of the manifest for `uris`, in order and in parts; a file that cannot be used is a row with its reason.

    Each of `processes` threads owns a decoder, whose child process does the work; none: one for each CPU we may use.
    """
    threads = min(processes or len(os.sched_getaffinity(0)), len(uris))
    with ExitStack() as stack:
        idle: SimpleQueue[Decoder] = SimpleQueue()
        for _ in range(threads):
            idle.put(stack.enter_context(Decoder(cfg)))

        def row(uri: str) -> dict[str, object]:
            decoder = idle.get()
            try:
                return {"uri": uri, **_describe(uri, decoder, verify)}
            finally:
                idle.put(decoder)

        pool = ThreadPoolExecutor(threads, thread_name_prefix="probe")
        stack.callback(pool.shutdown, cancel_futures=True)  # before the decoders close
        for first in range(0, len(uris), _WINDOW):
            rows: list[dict[str, object]] = []
            for found in pool.map(row, uris[first : first + _WINDOW]):
                rows.append(found)
                if progress:
                    progress(first + len(rows), len(uris))
            yield rows


def _describe(uri: str, decoder: Decoder, verify: Verify) -> dict[str, object]:
    try:
        status = os.stat(uri)
    except FileNotFoundError:
        return _bad("file not found")
    except OSError as error:
        return _bad(error.strerror or str(error))
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        return _bad("a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    probe = _seen(uri, decoder, verify)
    if isinstance(probe, Failure):
        return {"bytes": status.st_size, **_bad(probe.reason)}
    if not probe.duration_s > 0 or not probe.fps > 0:
        return {"bytes": status.st_size, **_bad(f"no length: {probe.duration_s} s at {probe.fps} frames per second")}
    return {
        "bytes": status.st_size,
        "container": probe.container,
        "codec": probe.codec,
        "width": probe.width,
        "height": probe.height,
        "rotation": probe.rotation,
        "fps": probe.fps,
        "duration_s": probe.duration_s,
        "frames": probe.frames,
        "start_pts": probe.start_pts,
        "time_base_num": probe.time_base[0],
        "time_base_den": probe.time_base[1],
        "seek": probe.seek,
        "damaged": probe.damaged,
        "status": "ok",
    }


def _seen(uri: str, decoder: Decoder, verify: Verify) -> Probe | Failure:
    match verify:
        case "quick":
            return decoder.probe(uri)
        case "full":
            return decoder.verify(uri)
        case _ as unreachable:
            assert_never(unreachable)


def _bad(reason: str) -> dict[str, object]:
    return {"status": "bad", "reason": reason}
