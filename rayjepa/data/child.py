"""The decoder's child process: `python -I child.py SOCKET PLACE LIFE ASK OPTIONS`. FFmpeg may crash, hang, swell here.

SOCKET   SEQPACKET: JSON messages of several requests come with descriptors, JSON answers go back. One descriptor for
         the open video of each request, and a last one for what is to be filled: the memory of a batch of clips, or
         the file of a transcoded video (a probe needs none).
PLACE    memory of a page: its first byte says which request of the message is in hand, should this process die.
LIFE     pipe that nobody writes: when the owner dies, in whatever way, the kernel ends this process.
ASK      SEQPACKET: which bytes of a video that is not all here are wanted goes out; that they came comes back.
OPTIONS  JSON: path, start_s, memory_bytes, limits (fields of Limits), writes (it may write to that second file).
Deadlines are kernel timers with their default action, so that they end C code that holds the interpreter's lock.
"""

import ctypes
import fcntl
import io
import json
import logging
import mmap
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections import OrderedDict
from dataclasses import asdict, replace
from typing import Any

F_SETSIG = 10
"""fcntl command that chooses the signal of O_ASYNC; Python has no name for it on every version."""
MEMORY_EXIT = 12
"""Exit status of a child that ran out of memory (ENOMEM)."""
POISON_EXIT = 3
MESSAGE_BYTES = 1 << 16
MOST_FILES = 64
"""Descriptors in one message."""
BATCHES = 2
"""Memories that stay mapped, as many as the owner keeps for later use."""
NOT_TOLD: dict[str, Any] = {
    "index": 0, "attempt": 0, "stream": "", "video": 0, "uri": "", "flip": False, "mask_seed": 0, "view_seed": 0,
}  # fmt: skip
"""Fields of a spec that decoding does not depend on."""


def die_with_owner(life: int) -> None:
    """Have the kernel kill this process when the other end of the pipe closes.

    Not PR_SET_PDEATHSIG: that fires when the owner's *thread* ends, and actors are made in pool threads.
    """
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(life, select.POLLIN)
    if poll.poll(0):  # it closed before the signal was armed
        os._exit(0)


def set_deadlines(cpu_s: float, wall_s: float) -> None:
    """Arm both timers: SIGPROF after `cpu_s` of CPU, SIGALRM after `wall_s`; 0 disarms."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, wall_s)


def warm_up(writes: bool) -> None:
    """Decode a tiny clip and fail on garbage: av imports parts of itself on first use, and open is refused later."""
    import av
    import av.subtitles.codeccontext
    import av.subtitles.stream
    import av.subtitles.subtitle  # all of av that only a file with a subtitle track would load

    from rayjepa.data import clip, decode, verify, video
    from rayjepa.data.storage import paged

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    window = clip.Window(size_px=32, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=0)
    first = clip.ClipSpec(start_s=0.0, frames=2, fps=8.0, window=window, pixels="i420", **NOT_TOLD)
    with _memory_file(buffer.getvalue()) as file:
        for spec in (first, replace(first, pixels="rgb")):
            decode.decode_clips(file.fileno(), [spec], [bytearray(spec.nbytes)])
        verify.verify(file.fileno())
        decode.probe(paged.Paged(file.fileno(), len(buffer.getvalue())))
    with _memory_file(b"no video") as file:
        try:
            decode.probe(file.fileno())
        except video.BadVideo as error:
            _refusal(error)
    if writes:
        from rayjepa.data import encode, recipe

        with _memory_file(buffer.getvalue()) as file, _memory_file(b"") as out:
            encode.encode(file.fileno(), out.fileno(), recipe.Recipe())


def _memory_file(content: bytes) -> io.BufferedRandom:
    file = os.fdopen(os.memfd_create("warm-up"), "r+b")
    file.write(content)
    file.seek(0)
    return file


def versions() -> dict[str, str]:
    """Of the libraries that decode here."""
    import av

    return {"PyAV": av.__version__, "libavcodec": ".".join(map(str, av.library_versions["libavcodec"]))}


def fail_on_purpose(fault: str) -> None:
    """Do what a broken library does: drills ask for it through RAYJEPA_POISON (see rayjepa.data.sandbox)."""
    match fault:
        case "segv":
            ctypes.string_at(0)
        case "hang":
            time.sleep(1e9)
        case "spin":
            while True:
                pass
        case "exit":
            os._exit(POISON_EXIT)
        case "memory":
            hog: list[bytes] = []
            while True:
                hog.append(bytes(64 << 20))  # address space only: the pages are never touched
        case _:
            raise ValueError(f"unknown fault {fault!r}")


def answer(request: dict[str, Any], file: int, target: Any, limits: Any, ask: socket.socket) -> list[dict[str, Any]]:
    """What one request asks for, for each of its clips; an ordinary bad file is an ordinary answer."""
    from rayjepa.data import video
    from rayjepa.data.storage import paged

    source: Any = file
    if request["paged"] is not None:
        source = paged.Paged(file, ask=ask, **request["paged"])
    try:
        if request["poison"]:
            fail_on_purpose(request["poison"])
        return _answers(request, source, target, limits)
    except video.BadVideo as error:
        return [_refusal(error)] * len(request.get("clips", (None,)))


def _answers(request: dict[str, Any], file: Any, target: Any, limits: Any) -> list[dict[str, Any]]:
    from rayjepa.data import decode, verify

    match request["do"]:
        case "clips":
            return fill(request, file, target, limits)
        case "probe":
            return [{"ok": True, "probe": asdict(decode.probe(file, limits))}]
        case "verify":
            return [{"ok": True, "probe": asdict(verify.verify(file, limits))}]
        case "transcode":
            from rayjepa.data import encode, recipe

            made = encode.encode(file, target, recipe.Recipe(**request["recipe"]), limits)
            return [{"ok": True, "made": made}]
        case other:
            raise ValueError(f"unknown request {other!r}")


def fill(request: dict[str, Any], file: Any, batch: Any, limits: Any) -> list[dict[str, Any]]:
    """Decode clips of one file straight into the rows of the batch that are theirs."""
    from rayjepa.data import clip, decode, video

    specs = [
        clip.ClipSpec(**{**told, "window": clip.Window(**told["window"])}, **NOT_TOLD) for told in request["clips"]
    ]
    begin, stride = request["begin"], request["stride"]
    rows = batch.open(begin, len(specs) * stride)
    outs = [rows[k * stride : k * stride + spec.nbytes] for k, spec in enumerate(specs)]
    try:
        efforts = decode.decode_clips(file, specs, outs, limits)
    finally:
        batch.shut(begin, len(specs) * stride)
    return [
        _refusal(effort)
        if isinstance(effort, video.BadVideo)
        else {
            "ok": True,
            "decoded": effort.decoded,
            "missing": effort.missing,
            "refused": effort.refused,
            "layout": effort.layout,
        }
        for effort in efforts
    ]


def _refusal(error: Any) -> dict[str, Any]:
    return {"ok": False, "stage": error.stage, "kind": error.kind, "reason": error.reason[:300]}


def serve(channel: socket.socket, ask: socket.socket, place: mmap.mmap, limits: Any, mapped: Any) -> None:
    """Answer messages, one after the other, until the owner closes the channel; `mapped` maps the memory of a batch."""
    batches: OrderedDict[int, Any] = OrderedDict()
    while True:
        text, files, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, MOST_FILES)
        if not text:
            return
        message = json.loads(text)
        target: Any = files[-1]
        if message["memory"] is not None:
            target = batches.pop(message["memory"], None) or mapped(files[-1])
            batches[message["memory"]] = target
            if len(batches) > BATCHES:
                batches.popitem(last=False)[1].forget()
        parts = message["parts"]
        replies: list[dict[str, Any]] = []
        for k, part in enumerate(parts):
            place[0] = k
            # Of this thread: while a timer counts the CPU of the process, that clock moves with the tick only.
            started = time.thread_time()
            set_deadlines(part["cpu_s"], part["wall_s"])
            answers = answer(part, files[k], target, limits, ask)
            replies.append({"answers": answers, "cpu_s": time.thread_time() - started})
        set_deadlines(0, 0)
        for file in files:
            os.close(file)
        channel.send(json.dumps({"parts": replies}).encode())


def main(arguments: list[str]) -> None:
    """Start up, give up what decoding does not need, say so, serve."""
    channel_fd, place_fd, life, ask_fd = map(int, arguments[:4])
    options = json.loads(arguments[4])
    die_with_owner(life)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a mask is inherited, and a blocked timer ends nothing
    for number in (signal.SIGALRM, signal.SIGPROF, signal.SIGSEGV, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner, which ends this process
    set_deadlines(options["start_s"], options["start_s"])
    sys.path[:0] = options["path"]
    from av.logging import ERROR, set_level

    from rayjepa.data.clip import Limits
    from rayjepa.data.harden import harden
    from rayjepa.data.mapping import Batch

    set_level(ERROR)  # so that errors carry FFmpeg's words, which go nowhere else
    logging.getLogger("libav").addHandler(logging.NullHandler())
    logging.getLogger("libav").propagate = False
    warm_up(options["writes"])
    resource.setrlimit(resource.RLIMIT_AS, (options["memory_bytes"],) * 2)
    place = mmap.mmap(place_fd, mmap.PAGESIZE)
    os.close(place_fd)
    limits = Limits(**options["limits"])
    took_effect = harden(limits.file_bytes if options["writes"] else 0)
    set_deadlines(0, 0)
    channel = socket.socket(fileno=channel_fd)
    channel.send(json.dumps({"ready": took_effect, "versions": versions()}).encode())
    try:
        serve(channel, socket.socket(fileno=ask_fd), place, limits, Batch)
    except MemoryError:
        os._exit(MEMORY_EXIT)  # do not go on in a process that has run out
    except Exception:  # a mistake of ours; standard error may be a file, which cannot be written any more
        channel.send(json.dumps({"last_words": traceback.format_exc()[-4000:]}).encode())
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
