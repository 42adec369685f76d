"""Where Ray keeps things on this machine: shared memory, its session folder, open files."""

import os
import resource
import shutil
from pathlib import Path

from rayjepa.config import RunConfig
from rayjepa.doctor.finding import Check, Finding, error, ok, warning

SHARED = Path("/dev/shm")
SESSIONS = Path("/tmp")
SHARE = 0.3
"""Of the memory: the object store of `ray start` unless --object-store-memory says otherwise."""
FULL = 0.95
"""Used share of the session's disk above which Ray makes no more objects (its local_fs_capacity_threshold)."""
FILES = 65536
"""Open files that Ray wants for the head of a cluster; it raises the soft limit itself, up to the hard one."""
FILES_OF_A_RUN = 4096
GIB = 2**30
LEAST_DISK = 5 * GIB
"""Free space below which Ray's logs and spilled objects may soon fill the disk."""


def room_checks(run: RunConfig, *, alone: bool) -> list[Check]:
    """`alone`: the run has no other machine than this one."""
    return [
        Check("shared memory", lambda: shared_memory(run, alone=alone)),
        Check("session folder", session_folder),
        Check("open files", lambda: open_files(alone=alone)),
    ]


def shared_memory(run: RunConfig, *, alone: bool, folder: Path = SHARED) -> Finding:
    """Free shared memory against the object store that is to live there."""
    name = "shared memory"
    if alone and run.cluster.workers == 0:
        return ok(name, "not used: cluster.workers=0 trains without Ray")
    if alone:
        need, of = run.cluster.object_store_gib * GIB, f"cluster.object_store_gib={run.cluster.object_store_gib:g}"
    else:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        need, of = SHARE * total, f"Ray's object store, {SHARE:.0%} of the memory"
    if not folder.is_dir():
        return warning(name, f"no {folder}: Ray's object store would live on a disk", "mount a tmpfs there")
    size, _, free = shutil.disk_usage(folder)
    found = f"{free / GIB:.1f} of {size / GIB:.1f} GiB free in {folder}; {of} takes {need / GIB:.1f} GiB"
    if free < need:
        remedy = f"docker run --shm-size={max(1, -(-need // GIB)):.0f}g; Kubernetes: an emptyDir of medium Memory at "
        remedy += f"{folder}; otherwise `mount -o remount,size=… {folder}`"
        remedy += " or a lower cluster.object_store_gib" if alone else " or `ray start --object-store-memory=BYTES`"
        return warning(name, f"{found}: Ray would put it on a disk", remedy)
    return ok(name, found)


def session_folder(folder: Path = SESSIONS) -> Finding:
    """Disk under Ray's sockets, logs and spilled objects."""
    size, _, free = shutil.disk_usage(folder)
    found = f"{free / GIB:.1f} of {size / GIB:.1f} GiB free in {folder}, where Ray keeps logs and spilled objects"
    remedy = f"remove what is old there (`du -xsh {folder}/* | sort -h`), or `ray start --temp-dir=FOLDER`"
    if not os.access(folder, os.W_OK | os.X_OK):
        return error("session folder", f"{folder} cannot be written", f"chmod 1777 {folder}")
    if free < (1 - FULL) * size:
        return error("session folder", f"{found}; above {FULL:.0%} full Ray makes no more objects", remedy)
    if free < LEAST_DISK:
        return warning("session folder", found, remedy)
    return ok("session folder", found)


def open_files(*, alone: bool) -> Finding:
    """The limit of open files: Ray holds one for each worker and connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else hard
    found = f"{soft} at once, can be raised to {'any number' if hard == resource.RLIM_INFINITY else hard}"
    remedy = f"`ulimit -n {FILES}` as root before `ray start`; in systemd LimitNOFILE={FILES}; "
    remedy += f"docker run --ulimit nofile={FILES}"
    if most < FILES_OF_A_RUN:
        return error("open files", f"{found}; a run needs {FILES_OF_A_RUN}", remedy)
    if most < FILES and not alone:
        return warning("open files", f"{found}; the head of a large cluster needs {FILES}", remedy)
    return ok("open files", found)
