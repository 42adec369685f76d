"""What an unprivileged Linux process can give up for itself. The decoder's child imports this."""

import ctypes
import os
import resource
import struct

PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 4, 22, 38
SECCOMP_MODE_FILTER = 2
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
"""Instructions of a classic BPF program."""
ALLOW, DENY, KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000
"""Verdicts: go on; fail with EPERM; end the process."""
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
"""Offsets in the kernel's struct seccomp_data."""
X32 = 0x40000000
"""System calls of x86_64's x32 variant are numbered from here."""

MACHINES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        (62, 234),  # kill, tgkill: this process alone
        (2, 85, 257, 437, 41, 42, 49, 53, 57, 58, 59, 322, 101, 200, 310, 311, 165, 272, 425, 298, 321, 434, 438),
    ),
    "aarch64": (
        0xC00000B7,
        (129, 131),
        (56, 437, 198, 203, 200, 199, 221, 281, 117, 130, 270, 271, 40, 97, 425, 241, 280, 434, 438),
    ),
}
"""Per machine: its audit number; calls allowed on this process alone; calls refused (open*, creat, socket, connect,
bind, socketpair, fork, vfork, execve*, ptrace, tkill, process_vm_*, mount, unshare, io_uring, perf, bpf, pidfd_*).
clone stays allowed: decoders' threads need it. The aarch64 numbers were not run."""


def harden() -> list[str]:
    """Give up opening files, sockets, other processes and core dumps; return the names of what took effect."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    done = ["no file writes"]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0:
        done.append("not dumpable")
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        done.append("no new privileges")
        program = _filter(os.uname().machine)
        if program is not None:
            code = ctypes.create_string_buffer(program)
            header = struct.pack("H6xP", len(program) // 8, ctypes.addressof(code))
            if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header), 0, 0) == 0:
                done.append("seccomp")
    return done


def _filter(machine: str) -> bytes | None:
    """The filter as a BPF program; none for a machine whose call numbers are not known here."""
    if machine not in MACHINES:
        return None
    architecture, own, refused = MACHINES[machine]
    deny = (RETURN, 0, 0, DENY)
    program = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    if machine == "x86_64":
        program += [(AT_LEAST, 0, 1, X32), deny]
    for call in own:
        program += [
            (EQUAL, 0, 4, call),
            (LOAD, 0, 0, FIRST_ARGUMENT),
            (EQUAL, 0, 1, os.getpid()),
            (RETURN, 0, 0, ALLOW),
            deny,
        ]
    for call in refused:
        program += [(EQUAL, 0, 1, call), deny]
    program.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)
