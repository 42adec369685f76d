"""The owner's end of one decoder child: start it, send it requests, receive answers, say how it ended. Linux only.

Nothing has a name on disk: a socket pair, a sealed memory file mapped on both sides, a pipe whose end means death.
The child gets an open descriptor of each video, and neither a path nor a credential.
"""

import errno
import fcntl
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
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rayjepa.data import child

logger = logging.getLogger(__name__)

SLOTS = 2
"""Requests in flight: one waits in the socket while one runs, so that the child never idles."""
MEMORY_BYTES = 2 << 30
"""Address space of a child: a fuse, not a budget. Near the need (240 MB at 1080p) good files would look corrupt."""
START_S = 60.0
"""Time to import av and decode the warm-up clip, on a loaded node."""
GRACE_S = 10.0
"""Beyond the child's own wall timer before its owner ends it: a process stuck in the kernel keeps no timer."""
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
"""All that a child inherits: no credentials."""
POISON = "RAYJEPA_POISON"
"""Fault injection, for drills only. JSON {part of a uri: fault} in the owner's environment: a video whose uri matches
suffers that fault at every try, so that another takes its place."""
FAULTS = ("segv", "hang", "spin", "exit", "memory")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the child said to the oldest open request, and the slot of memory that it filled."""

    body: dict[str, Any]
    memory: NDArray[np.uint8]
    """Read it before the next `send`."""


class ChildDied(Exception):
    """The child is gone: `kind` is deadline or crash, the text says how."""

    def __init__(self, kind: Literal["deadline", "crash"], reason: str, *, started: bool) -> None:
        super().__init__(reason)
        self.kind: Literal["deadline", "crash"] = kind
        self.reason = reason
        self.started = started
        """It had been ready for requests."""


class Sandbox:
    """One child process. After a ChildDied, or `close`, it is of no further use."""

    def __init__(self, *, slot_bytes: int, cpu_s: float, wall_s: float) -> None:
        self.cpu_s, self.wall_s = cpu_s, wall_s
        self.ready = False
        page = mmap.PAGESIZE
        size = -(-max(slot_bytes, 1) // page) * page * SLOTS
        memory = _sealed_memory(size)
        self._memory = mmap.mmap(memory, size)
        self._slots = np.frombuffer(self._memory, np.uint8).reshape(SLOTS, -1)
        self._free = list(range(SLOTS))
        self._open: deque[int] = deque()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        life, self._life = os.pipe()  # closed on exec: only this process holds the writing end
        options = {
            "path": _import_path(),
            "slots": SLOTS,
            "cpu_s": cpu_s,
            "wall_s": wall_s,
            "start_s": START_S,
            "memory_bytes": MEMORY_BYTES + size,
        }
        inherited = (theirs.fileno(), memory, life)
        command = [sys.executable, "-I", child.__file__, *map(str, inherited), json.dumps(options)]
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        try:  # no preexec_fn: it would run Python between fork and exec, unsafe beside gRPC's threads
            self._process = subprocess.Popen(
                command, pass_fds=inherited, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
            )
        finally:
            theirs.close()
            os.close(memory)
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
        return bool(self._free)

    def send(self, request: Mapping[str, Any], file: int) -> None:
        """Hand over one request with its open video; the caller closes its own descriptor."""
        slot = self._free.pop()
        if not self._open:
            self._since = time.monotonic()
        self._open.append(slot)
        try:
            socket.send_fds(self._channel, [json.dumps({**request, "slot": slot}).encode()], [file])
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            # It has died; the next `receive` says how.

    def receive(self, timeout_s: float | None = None) -> Answer | None:
        """The answer to the oldest open request; None if `timeout_s` passes first.

        Raises:  ChildDied if the child ended, or stood still beyond its deadlines and was ended.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            limit = self._since + (self.wall_s if self.ready else START_S) + GRACE_S
            target = limit if until is None else min(limit, until)
            message = self._message(max(0.0, target - time.monotonic()))
            if message is None and time.monotonic() >= limit:
                raise self._end()
            if message is None:
                return None
            self._since = time.monotonic()
            if "ready" in message:
                self.ready = True
                _warn_if_bare(tuple(message["ready"]))
                continue
            slot = self._open.popleft()
            self._free.append(slot)
            return Answer(message, self._slots[slot])

    def _message(self, timeout_s: float) -> dict[str, Any] | None:
        poll = select.poll()  # not select: a Ray worker can hold descriptors above 1023
        poll.register(self._channel, select.POLLIN)
        if not poll.poll(timeout_s * 1e3):
            return None
        try:
            message = self._channel.recv(1 << 16)
        except ConnectionError:
            message = b""
        if not message:
            raise self._end()
        return json.loads(message)

    def _end(self) -> ChildDied:
        """Reap the child and say how it ended."""
        try:
            self._process.wait(0.5)  # it may be about to end by itself, with a cause worth knowing
        except subprocess.TimeoutExpired:
            self.close()
            return ChildDied("deadline", f"wall deadline {self.wall_s:g} s, unresponsive", started=self.ready)
        status = self._process.returncode
        self.close()
        match -status:
            case signal.SIGPROF:
                kind, reason = "deadline", f"cpu deadline {self.cpu_s:g} s"
            case signal.SIGALRM:
                kind, reason = "deadline", f"wall deadline {self.wall_s:g} s"
            case number if number > 0:
                kind, reason = "crash", signal.Signals(number).name
            case _:
                kind, reason = "crash", "memory limit" if status == child.MEMORY_EXIT else f"exit {status}"
        return ChildDied(kind, reason, started=self.ready)

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
        if self._life >= 0:
            os.close(self._life)
            self._life = -1


def _sealed_memory(size: int) -> int:
    """A memory file that nobody can resize: were it shrunk by the child, its owner would get SIGBUS."""
    memory = os.memfd_create("clips", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, size)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return memory


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


def poison_of(uri: str) -> str | None:
    """The fault that a drill wants for this video (see POISON); None outside drills."""
    faults: dict[str, str] = json.loads(os.environ.get(POISON) or "{}")
    fault = next((fault for part, fault in faults.items() if part in uri), None)
    if fault not in (None, *FAULTS):
        raise ValueError(f"{POISON} asks for the fault {fault!r}; allowed: {', '.join(FAULTS)}")
    return fault
