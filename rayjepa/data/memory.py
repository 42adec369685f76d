"""Memory that the decoder's child fills and the caller keeps, so that clips are copied by nobody. Linux only."""

import ctypes
import fcntl
import mmap
import os
import weakref
from itertools import count

import numpy as np
from numpy.typing import NDArray

IDLE = 2
"""Memories kept for later batches: one that is being filled and one that has just been let go."""

PUNCH_HOLE = 0x01 | 0x02
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, of which Python has no names."""

_NUMBERS = count()


class Memory:
    """Sealed memory without a name, mapped here; another process maps it by its descriptor."""

    def __init__(self, nbytes: int) -> None:
        self.number = next(_NUMBERS)
        """No other memory of this process has it."""
        self.fd = os.memfd_create("clips", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.fd)
        os.ftruncate(self.fd, nbytes)
        # Nobody can shrink it, so that reading it never ends this process.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self.mapped = mmap.mmap(self.fd, nbytes)


class Pool:
    """Memories for arrays, each used again once nothing shows the array that lay in it.

    A fresh one costs what the kernel takes to clear and map its pages: 0.4 ms per I420 clip of 16 x 256 x 256, more
    than all else that is done around a decode.
    """

    def __init__(self) -> None:
        self._idle: list[Memory] = []

    def take(self, rows: int, row_bytes: int) -> tuple[NDArray[np.uint8], Memory]:
        """An array (rows, row_bytes) of whatever was there before, and the memory whose first bytes it is."""
        nbytes = max(rows * row_bytes, mmap.PAGESIZE)
        memory = next((memory for memory in self._idle if len(memory.mapped) >= nbytes), None)
        if memory is None:
            self._idle.clear()  # they are too small for what is asked now
            memory = Memory(nbytes)
        else:
            self._idle.remove(memory)
        root = np.frombuffer(memory.mapped, np.uint8, rows * row_bytes)
        # Every view of an array that does not own its memory refers to that array itself.
        weakref.finalize(root, self._let_go, memory).atexit = False
        return root.reshape(rows, row_bytes), memory

    def _let_go(self, memory: Memory) -> None:
        """Called by whichever thread drops the last view."""
        if len(self._idle) < IDLE:
            self._idle.append(memory)

    def close(self) -> None:
        """Give back what is idle; arrays in use stay."""
        self._idle.clear()


def paged(nbytes: int) -> int:
    """`nbytes`, rounded up to whole pages: what can be mapped, and unmapped, alone."""
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE


def memory_file(content: bytes, nbytes: int | None = None) -> int:
    """Memory without a name that holds this, and nothing up to `nbytes`."""
    fd = os.memfd_create("video", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, len(content) if nbytes is None else nbytes)
        write_at(fd, content, 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def copied(source: int, offset: int, nbytes: int) -> int:
    """Memory without a name that holds these bytes of an open file; the kernel copies them."""
    fd = os.memfd_create("video", os.MFD_CLOEXEC)
    done = 0
    try:
        while done < nbytes:
            sent = os.sendfile(fd, source, offset + done, nbytes - done)
            if not sent:
                raise OSError(f"it ended after {done} of {nbytes} bytes")
            done += sent
    except OSError:
        os.close(fd)
        raise
    return fd


def write_at(fd: int, content: bytes | memoryview, at: int) -> None:
    view = memoryview(content)
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done


def punch(fd: int, first: int, last: int) -> None:
    """Give back the memory of a range that the child reads no more; where that is not possible, it stays."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate(fd, PUNCH_HOLE, ctypes.c_int64(first), ctypes.c_int64(last - first))
