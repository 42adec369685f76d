"""The owner's end of one decoder child: start it, send it requests, receive answers, say how it ended. Linux only.

Nothing has a name on disk: two socket pairs, a pipe whose end means death. The child gets an open descriptor of each
video and one of what it is to fill, and neither a path nor a credential; of a video that is not all here it says which
bytes it wants. A dead one costs 0.16 s of CPU to replace; none is
kept ready instead, since it would hold 50 MB for as long as the owner lives, and deaths are rare.
"""

import errno
import importlib.util
import json
import logging
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rayjepa.data import child
from rayjepa.data.clip import Limits
from rayjepa.data.memory import Memory

logger = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Open messages: one waits in the socket while one runs, so that the child never idles."""
LIBAVCODEC = 61
"""Oldest major version: FFmpeg 7.0, from which on this package's PyAV is made."""
START_S = 60.0
"""Time to import av and decode the warm-up clip, on a loaded node."""
GRACE_S = 10.0
"""Beyond the child's own wall timer before its owner ends it: a process stuck in the kernel keeps no timer."""
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
"""All that a child inherits: no credentials."""
POISON = "RAYJEPA_POISON"
"""Fault injection, for drills only. JSON {part of a uri: fault} in the owner's environment: a video whose uri matches
suffers that fault at every try, so that another takes its place."""
KNOB_CPU, KNOB_WALL = "(data.decode_cpu_s)", "(data.decode_wall_s)"
KNOB_MEMORY = "memory limit (data.decode_memory_gib)"
FAULTS = ("segv", "hang", "spin", "exit", "memory")


class ChildDied(Exception):
    """The child is gone: `kind` is deadline or crash, the text says how."""

    def __init__(self, kind: Literal["deadline", "crash"], reason: str, *, part: int, started: bool) -> None:
        super().__init__(reason)
        self.kind: Literal["deadline", "crash"] = kind
        self.reason = reason
        self.part = part
        """Which request of the oldest open message it had in hand."""
        self.started = started
        """It had been ready for requests."""


class Sandbox:
    """One child process. After a ChildDied, or `close`, it is of no further use."""

    def __init__(self, *, memory_bytes: int, limits: Limits, writes: bool = False, wake: int | None = None) -> None:
        """Start it, without waiting until it is ready.

        Units:   `memory_bytes` of address space; `writes`: it may also transcode, into files that it is handed; `wake`
                 is a descriptor: `receive` does not wait on when it can be read.
        """
        self.writes = writes
        self.versions: dict[str, str] = {}
        """Of the libraries in it; empty until it is ready."""
        self.isolation: tuple[str, ...] = ()
        """What it has given up; empty until it is ready."""
        self._open: deque[list[tuple[float, float]]] = deque()  # deadlines of the requests of messages in flight
        place = Memory(mmap.PAGESIZE)
        self._place = place.mapped
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._poll = select.poll()  # not select: a Ray worker can hold descriptors above 1023
        self._poll.register(self._channel, select.POLLIN)
        self._asking, asks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._any = select.poll()
        for watched in (self._channel, self._asking, *(() if wake is None else (wake,))):
            self._any.register(watched, select.POLLIN)
        life, self._life = os.pipe()  # closed on exec: only this process holds the writing end
        options = {
            "path": _import_path(),
            "start_s": START_S,
            "memory_bytes": memory_bytes,
            "limits": asdict(limits),
            "writes": writes,
        }
        inherited = (theirs.fileno(), place.fd, life, asks.fileno())
        command = [sys.executable, "-I", child.__file__, *map(str, inherited), json.dumps(options)]
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        try:  # no preexec_fn: it would run Python between fork and exec, unsafe beside gRPC's threads
            self._process = subprocess.Popen(
                command, pass_fds=inherited, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
            )
        finally:
            theirs.close()
            asks.close()
            os.close(life)
        self._since = time.monotonic()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def has_room(self) -> bool:
        return len(self._open) < IN_FLIGHT

    def send(self, parts: Sequence[Mapping[str, Any]], files: Sequence[int], memory: int | None = None) -> None:
        """Hand over requests with their deadlines and descriptors; the caller closes its own.

        `memory` is the number of the Memory that the last descriptor stands for, if it does.
        """
        if not self._open:
            self._since = time.monotonic()
        self._open.append([(part["cpu_s"], part["wall_s"]) for part in parts])
        try:
            socket.send_fds(self._channel, [json.dumps({"memory": memory, "parts": parts}).encode()], files)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            # It has died; the next `receive` says how.

    def start(self) -> None:
        """Wait until it is ready.

        Raises:  ChildDied if it ended before; RuntimeError if its FFmpeg is too old.
        """
        while not self.versions:
            message = self._message(self._since + START_S + GRACE_S)
            if message is None:
                raise self._end()
            refuse_old(message["versions"])
            self.isolation = tuple(message["ready"])
            _warn_if_bare(self.isolation)
            self.versions = message["versions"]
            self._since = time.monotonic()

    @property
    def in_hand(self) -> int:
        """Which request of the oldest open message the child works on."""
        return min(self._place[0], len(self._open[0]) - 1)

    def asked(self) -> dict[str, Any] | None:
        """Which bytes of the video in hand the child waits for, if it has just said so."""
        try:
            message = self._asking.recv(child.MESSAGE_BYTES, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except (BlockingIOError, ConnectionError):
            return None
        if not message or self._poll.poll(0):  # an answer that came before: the question is about the next message
            return None
        return json.loads(self._asking.recv(child.MESSAGE_BYTES))

    def tell(self, failure: str | None, kind: str) -> None:
        """Say that the bytes that it waits for are there, or why they are not."""
        try:
            self._asking.send(json.dumps({"failure": failure, "kind": kind}).encode())
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            # It has died; the next `receive` says how.

    def receive(self, timeout_s: float | None = None) -> list[dict[str, Any]] | None:
        """The answers to the oldest open message; None if `timeout_s` passes first, it asks, or this process is woken.

        Raises:  ChildDied if the child ended, or stood still beyond its deadlines and was ended.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        self.start()
        limit = self._since + sum(wall_s for _, wall_s in self._open[0]) + GRACE_S
        seen = self._any.poll(max(0.0, (limit if until is None else min(limit, until)) - time.monotonic()) * 1e3)
        if all(fd != self._channel.fileno() for fd, _ in seen):
            if time.monotonic() >= limit:
                raise self._end()
            return None
        message = self._message(limit)
        if message is None:
            raise self._end()
        self._since = time.monotonic()
        self._open.popleft()
        return message["parts"]

    def _message(self, until: float) -> dict[str, Any] | None:
        if not self._poll.poll(max(0.0, until - time.monotonic()) * 1e3):
            return None
        try:
            message = self._channel.recv(child.MESSAGE_BYTES)
        except ConnectionError:
            message = b""
        if not message:
            raise self._end()
        said: dict[str, Any] = json.loads(message)
        if "last_words" in said:
            logger.error("the decoder's child ends with an error of its own:\n%s", said["last_words"])
            raise self._end()
        return said

    def _end(self) -> ChildDied:
        """Reap the child and say how it ended."""
        started = bool(self.versions)
        parts = self._open[0] if self._open and started else [(START_S, START_S)]
        part = min(self._place[0], len(parts) - 1)
        cpu_s, wall_s = parts[part]
        try:
            self._process.wait(0.5)  # it may be about to end by itself, with a cause worth knowing
        except subprocess.TimeoutExpired:
            self.close()
            return ChildDied(
                "deadline", f"wall deadline {wall_s:g} s, unresponsive {KNOB_WALL}", part=part, started=started
            )
        status = self._process.returncode
        self.close()
        match -status:
            case signal.SIGPROF:
                kind, reason = "deadline", f"cpu deadline {cpu_s:g} s {KNOB_CPU}"
            case signal.SIGALRM:
                kind, reason = "deadline", f"wall deadline {wall_s:g} s {KNOB_WALL}"
            case number if number > 0:
                kind, reason = "crash", signal.Signals(number).name
            case _:
                kind, reason = "crash", KNOB_MEMORY if status == child.MEMORY_EXIT else f"exit {status}"
        return ChildDied(kind, reason, part=part, started=started)

    def close(self) -> None:
        """End the child, if it still runs, and wait for it."""
        if self._process.poll() is None:
            self._process.kill()
            try:
                self._process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                logger.warning(
                    "decoder child %d does not die: it is stuck in the kernel, on a dead mount perhaps", self.pid
                )
        self._channel.close()
        self._asking.close()
        if self._life >= 0:
            os.close(self._life)
            self._life = -1


@cache
def _import_path() -> list[str]:
    """Where the child finds this package, av and numpy (found here, not imported): -I ignores PYTHONPATH."""
    folders = [str(Path(child.__file__).parents[2])]
    for name in ("av", "numpy"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise RuntimeError(f"the decoder needs the package {name}, which is not installed: pip install {name}")
        folders.append(str(Path(spec.origin).parents[1]))
    return list(dict.fromkeys(folders))


@cache
def _warn_if_bare(took_effect: tuple[str, ...]) -> None:
    if "seccomp" not in took_effect:
        logger.warning(
            "decoder child runs without seccomp on this machine (in effect: %s): a video that takes over FFmpeg could "
            "open files and sockets as this user",
            ", ".join(took_effect) or "nothing",
        )


def refuse_old(versions: Mapping[str, str]) -> None:
    """Raises:  RuntimeError if the child's FFmpeg is older than what decoding was made for."""
    if int(versions["libavcodec"].split(".")[0]) < LIBAVCODEC:
        raise RuntimeError(
            f"PyAV {versions['PyAV']} decodes with libavcodec {versions['libavcodec']}, older than {LIBAVCODEC} "
            "(FFmpeg 7.0): pip install --upgrade av"
        )


@cache
def _faults(text: str) -> dict[str, str]:
    return json.loads(text)


def poison_of(uri: str) -> str | None:
    """The fault that a drill wants for this video (see POISON); None outside drills."""
    text = os.environ.get(POISON)
    if not text:
        return None
    fault = next((fault for part, fault in _faults(text).items() if part in uri), None)
    if fault not in (None, *FAULTS):
        raise ValueError(f"{POISON} asks for the fault {fault!r}; allowed: {', '.join(FAULTS)}")
    return fault
