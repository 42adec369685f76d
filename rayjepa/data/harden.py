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
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
"""Offsets in the kernel's struct seccomp_data; an argument is 8 bytes, of which the lower 4 come first."""
X32 = 0x40000000
"""System calls of x86_64's x32 variant are numbered from here."""

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Per machine: its column in the tables of calls; its audit number."""
REFUSED = """
    open 2 -  creat 85 -  openat 257 56  openat2 437 437  open_by_handle_at 304 265  open_tree 428 428
    unlink 87 -  unlinkat 263 35  rename 82 -  renameat 264 38  renameat2 316 276  rmdir 84 -
    mkdir 83 -  mkdirat 258 34  mknod 133 -  mknodat 259 33  link 86 -  linkat 265 37  symlink 88 -  symlinkat 266 36
    truncate 76 45  utime 132 -  utimes 235 -  futimesat 261 -  utimensat 280 88
    chmod 90 -  fchmod 91 52  fchmodat 268 53  fchmodat2 452 452
    chown 92 -  fchown 93 55  lchown 94 -  fchownat 260 54
    setxattr 188 5  lsetxattr 189 6  fsetxattr 190 7  removexattr 197 14  lremovexattr 198 15  fremovexattr 199 16
    socket 41 198  socketpair 53 199  connect 42 203  bind 49 200  listen 50 201  accept 43 202  accept4 288 242
    fork 57 -  vfork 58 -  execve 59 221  execveat 322 281
    tkill 200 130  rt_sigqueueinfo 129 138  rt_tgsigqueueinfo 297 240
    pidfd_open 434 434  pidfd_getfd 438 438  pidfd_send_signal 424 424
    ptrace 101 117  process_vm_readv 310 270  process_vm_writev 311 271  process_madvise 440 440  kcmp 312 272
    setrlimit 160 164  mount 165 40  umount2 166 39  move_mount 429 429  fsopen 430 430  mount_setattr 442 442
    chroot 161 51  pivot_root 155 41  unshare 272 97  setns 308 268
    shmget 29 194  msgget 68 186  semget 64 190  keyctl 250 219  add_key 248 217  request_key 249 218
    io_uring_setup 425 425  perf_event_open 298 241  bpf 321 280  userfaultfd 323 282
    init_module 175 105  finit_module 313 273  kexec_load 246 104
"""
"""Calls that fail, as name, number on x86_64 and on aarch64 (-: it has none): what opens, makes, changes or removes
files, sockets and processes, by name or by descriptor. Nothing on aarch64 was run. clone stays allowed: decoders'
threads need it."""
GUARDED = "kill 62 129  tgkill 234 131  prlimit64 302 261"
"""Calls with one allowed argument: signals to this process; limits that are read and not set."""


def harden(file_bytes: int = 0, machine: str | None = None) -> list[str]:
    """Give up files, sockets, other processes and core dumps; return the names of what took effect.

    Units:   no file that is open for writing grows beyond `file_bytes`; 0: nothing is written to files.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    done = [f"file writes up to {file_bytes} bytes" if file_bytes else "no file writes"]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0:
        done.append("not dumpable")
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        done.append("no new privileges")
        program = _filter(machine or os.uname().machine)
        if program is not None:
            code = ctypes.create_string_buffer(program)
            header = struct.pack("H6xP", len(program) // 8, ctypes.addressof(code))
            if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header), 0, 0) == 0:
                done.append("seccomp")
    return done


def numbers(table: str, column: int) -> dict[str, int]:
    """Number of each call of a table on the machine of a column, without those that it does not have."""
    words = table.split()
    return {name: int(n) for name, n in zip(words[::3], words[1 + column :: 3], strict=True) if n != "-"}


def _filter(machine: str) -> bytes | None:
    """The filter as a BPF program; none for a machine whose call numbers are not known here."""
    if machine not in MACHINES:
        return None
    column, architecture = MACHINES[machine]
    deny = (RETURN, 0, 0, DENY)
    program = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    if machine == "x86_64":
        program += [(AT_LEAST, 0, 1, X32), deny]
    for name, call in numbers(GUARDED, column).items():
        position, value = (2, 0) if name == "prlimit64" else (0, os.getpid())
        low = ARGUMENTS + 8 * position
        program += [
            (EQUAL, 0, 6, call),
            (LOAD, 0, 0, low),
            (EQUAL, 0, 3, value),
            (LOAD, 0, 0, low + 4),
            (EQUAL, 0, 1, 0),
            (RETURN, 0, 0, ALLOW),
            deny,
        ]
    for call in numbers(REFUSED, column).values():
        program += [(EQUAL, 0, 1, call), deny]
    program.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)
