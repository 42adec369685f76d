"""Memory of a batch as the decoder's child maps it: written while a request is in hand, and at no other time."""

import ctypes
import mmap

READ, WRITE, NO_WRITES = mmap.PROT_READ, mmap.PROT_WRITE, 2  # the last: PKEY_DISABLE_WRITE
LIBC = ctypes.CDLL(None)


class Batch:
    """Memory of a batch, mapped as long as it is in use; it can be written while a request for it is in hand.

    So a wild write, of a library that is about to crash, cannot reach a batch that is already with the caller; what was
    answered of this one is decoded again (see rayjepa.data.errands). A protection key of the CPU does it in a
    microsecond; where there is none, mprotect takes 0.25 ms per I420 clip of 16 x 256 x 256, as much as a copy.
    """

    def __init__(self, fd: int, *, has_keys: bool = True) -> None:
        self.mapped = mmap.mmap(fd, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)  # faults would cost five times that
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.mapped))
        self._key = LIBC.pkey_alloc(0, NO_WRITES) if has_keys and hasattr(LIBC, "pkey_alloc") else -1
        where = ctypes.c_void_p(self._address), ctypes.c_size_t(len(self.mapped))
        if self._key < 0:
            self._protect(0, len(self.mapped), READ)
        elif LIBC.pkey_mprotect(*where, READ | WRITE, self._key):
            raise MemoryError("pkey_mprotect")

    def open(self, begin: int, nbytes: int) -> memoryview:
        """These whole pages, to be written."""
        if self._key >= 0:
            LIBC.pkey_set(self._key, 0)
        else:
            self._protect(begin, nbytes, READ | WRITE)
        return memoryview(self.mapped)[begin : begin + nbytes]

    def shut(self, begin: int, nbytes: int) -> None:
        """Let nobody write them."""
        if self._key >= 0:
            LIBC.pkey_set(self._key, NO_WRITES)
        else:
            self._protect(begin, nbytes, READ)

    def forget(self) -> None:
        """Unmap it, as soon as nothing here refers to it."""
        self.shut(0, len(self.mapped))
        if self._key >= 0:
            LIBC.pkey_free(self._key)
        del self.mapped

    def _protect(self, begin: int, nbytes: int, how: int) -> None:
        if LIBC.mprotect(ctypes.c_void_p(self._address + begin), ctypes.c_size_t(nbytes), how):
            raise MemoryError("mprotect")
