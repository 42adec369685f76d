"""The decoder's child process: `python -I child.py SOCKET MEMORY LIFE OPTIONS`. FFmpeg may crash, hang or swell here.

SOCKET   SEQPACKET: JSON requests come with the open video as a descriptor, JSON answers go back.
MEMORY   sealed memfd of `slots` equal slots; a request says which one takes its clip.
LIFE     pipe that nobody writes: when the owner dies, in whatever way, the kernel ends this process.
OPTIONS  JSON: path, slots, cpu_s, wall_s, start_s, memory_bytes.
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
from dataclasses import asdict, replace
from typing import Any

F_SETSIG = 10
"""fcntl command that chooses the signal of O_ASYNC; Python has no name for it on every version."""
MEMORY_EXIT = 12
"""Exit status of a child that ran out of memory (ENOMEM)."""
POISON_EXIT = 3


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


def warm_up() -> None:
    """Decode a tiny clip and fail on garbage: av imports parts of itself on first use, and open is refused later."""
    import av

    from rayjepa.data import clip, decode, video

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    window = clip.Window(size_px=32, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=0)
    first = clip.ClipSpec(
        index=0, attempt=0, stream="", video=0, uri="", start_s=0.0, frames=2, fps=8.0,
        window=window, pixels="i420", flip=False, mask_seed=0, view_seed=0,
    )  # fmt: skip
    for spec in (first, replace(first, pixels="rgb")):
        with _memory_file(buffer.getvalue()) as file:
            decode.decode_clip(file.fileno(), spec, bytearray(spec.nbytes))
    with _memory_file(b"no video") as file:
        try:
            decode.probe(file.fileno())
        except video.BadVideo as error:
            _refusal(error)


def _memory_file(content: bytes) -> io.BufferedRandom:
    file = os.fdopen(os.memfd_create("warm-up"), "r+b")
    file.write(content)
    file.seek(0)
    return file


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


def answer(request: dict[str, Any], file: int, slot: memoryview) -> dict[str, Any]:
    """Do what one request asks; an ordinary bad file is an ordinary answer."""
    from rayjepa.data import clip, decode, video

    try:
        if request["poison"]:
            fail_on_purpose(request["poison"])
        if request["do"] == "probe":
            return {"ok": True, "probe": asdict(decode.probe(file))}
        window = clip.Window(**request["spec"].pop("window"))
        effort = decode.decode_clip(file, clip.ClipSpec(**request["spec"], window=window), slot)
        return {"ok": True, "decoded": effort.decoded, "missing": effort.missing, "refused": effort.refused}
    except video.BadVideo as error:
        return _refusal(error)


def _refusal(error: Any) -> dict[str, Any]:
    return {"ok": False, "stage": error.stage, "kind": error.kind, "reason": error.reason[:300]}


def serve(channel: socket.socket, memory: mmap.mmap, options: dict[str, Any]) -> None:
    """Answer requests, one after the other, until the owner closes the channel."""
    size = len(memory) // options["slots"]
    while True:
        message, files, _, _ = socket.recv_fds(channel, 1 << 16, 1)
        if not message:
            return
        request = json.loads(message)
        begin = request["slot"] * size
        set_deadlines(options["cpu_s"], options["wall_s"])
        started = time.process_time()
        reply = answer(request, files[0], memoryview(memory)[begin : begin + size])
        set_deadlines(0, 0)
        os.close(files[0])
        reply["cpu_s"] = time.process_time() - started
        channel.send(json.dumps(reply).encode())


def main(arguments: list[str]) -> None:
    """Start up, give up what decoding does not need, say so, serve."""
    channel_fd, memory_fd, life = map(int, arguments[:3])
    options = json.loads(arguments[3])
    die_with_owner(life)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a mask is inherited, and a blocked timer ends nothing
    for number in (signal.SIGALRM, signal.SIGPROF, signal.SIGSEGV, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner, which ends this process
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    set_deadlines(options["start_s"], options["start_s"])
    sys.path[:0] = options["path"]
    from av.logging import ERROR, set_level

    from rayjepa.data.harden import harden

    set_level(ERROR)  # so that errors carry FFmpeg's words, which go nowhere else
    logging.getLogger("libav").addHandler(logging.NullHandler())
    logging.getLogger("libav").propagate = False
    warm_up()
    memory = mmap.mmap(memory_fd, 0)
    resource.setrlimit(resource.RLIMIT_AS, (options["memory_bytes"],) * 2)
    took_effect = harden()
    set_deadlines(0, 0)
    channel = socket.socket(fileno=channel_fd)
    channel.send(json.dumps({"ready": took_effect}).encode())
    try:
        serve(channel, memory, options)
    except MemoryError:
        os._exit(MEMORY_EXIT)  # do not go on in a process that has run out


if __name__ == "__main__":
    main(sys.argv[1:])
