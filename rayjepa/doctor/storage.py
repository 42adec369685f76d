"""The folder that runs are written to: can it be used, is there room, how fast is it, what time is it there."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rayjepa.config import RunConfig
from rayjepa.doctor.finding import Check, Finding, error, ok, warning
from rayjepa.train.budget import checkpoint_bytes
from rayjepa.train.folder import SILENCE_S

SPEED_MIB, SPEED_S = 64, 3.0
"""What is written to learn the speed, and for how long at most."""
LONG_S = 60.0
"""A checkpoint that takes longer is worth a word: training waits for it."""
SKEW_S = 1.0
KEEPS_NOTHING = {"tmpfs": "memory: lost with the machine", "overlay": "a container's own layer: lost with it"}
NETWORKS = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "gpfs", "beegfs", "fuse")
MIB, GIB = 2**20, 2**30


def storage_checks(run: RunConfig, folder: str, *, alone: bool) -> list[Check]:
    """`alone`: the run has no other machine than this one."""
    if "://" in folder:
        return [Check("folder", lambda: _remote(folder))]
    path = Path(folder).expanduser().absolute()
    return [
        Check("folder", lambda: usable(path)),
        Check("file system", lambda: file_system(path, alone=alone)),
        Check("space and speed", lambda: space_and_speed(run, path), 30.0),
    ]


def _remote(folder: str) -> Finding:
    remedy = "mount it (s3fs, gcsfuse, NFS) and name the folder: runs are written through the file system"
    return error("folder", f"{folder} is a remote address", remedy)


def usable(folder: Path) -> list[Finding]:
    """Whether a file there can be written, read back, renamed, listed and deleted; and what time it gets."""
    step, text = "make a folder", os.urandom(16).hex()
    try:
        with place_in(folder) as place:
            first, last = place / "first", place / "last"
            step = "write a file"
            before = time.time()
            with first.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            after, stamp = time.time(), first.stat().st_mtime
            step = "rename a file"
            first.replace(last)
            step = "read a file back"
            read = last.read_text()
            step = "list the folder"
            names = os.listdir(place)
            step = "delete a file"
            last.unlink()
    except OSError as failure:
        what = f"{folder}: cannot {step}: {failure.strerror or failure}"
        return [error("folder", what, "choose a writable one with --storage, and for runs with out=FOLDER")]
    if read != text or names != ["last"]:
        what = f"{folder}: what was written is not what is read (a file {text[:4]}…, a name `last`; got {names})"
        return [error("folder", what, "its mount caches too much; choose another with --storage, and out=FOLDER")]
    behind = max(before - stamp, stamp - after, 0.0)
    return [ok("folder", f"{folder}: written, renamed, read, listed, deleted"), *_stamp(folder, behind)]


def _stamp(folder: Path, skew_s: float) -> list[Finding]:
    """Drivers on other machines count as dead by the time stamps of their files (rayjepa.train.folder)."""
    if skew_s < SKEW_S:
        return []
    what = f"{folder} stamps files {skew_s:.1f} s away from this machine's clock"
    remedy = "have a time server keep both clocks (chronyd), that of the file server too"
    return [(error if skew_s > SILENCE_S / 2 else warning)("storage clock", what, remedy)]


def file_system(folder: Path, *, alone: bool, table: Path = Path("/proc/self/mounts")) -> Finding:
    """What kind of place the folder is on, and whether other machines may see it."""
    kind, mount = kind_of(folder, table)
    found = f"{kind} at {mount}"
    if kind in KEEPS_NOTHING:
        what = f"{found} is {KEEPS_NOTHING[kind]}"
        return warning("file system", what, "choose a disk or a network folder with --storage, and out=FOLDER")
    if not alone and not kind.startswith(NETWORKS):
        found += "; other nodes have to see the same folder: below is what they said"
    return ok("file system", found)


def kind_of(folder: Path, table: Path) -> tuple[str, str]:
    """Type and mount point of the file system under a folder that may not exist yet."""
    here, best = _nearest(folder).resolve(), ("unknown", "/")
    for line in table.read_text().splitlines():
        mount, kind = line.split()[1:3]
        mount = mount.replace("\\040", " ")
        if here.is_relative_to(mount) and len(mount) >= len(best[1]):
            best = kind, mount
    return best


def space_and_speed(run: RunConfig, folder: Path) -> list[Finding]:
    """Free space against the run's checkpoints, and what writing one takes."""
    from rayjepa.model import sizes  # torch takes seconds to import

    size, keep = checkpoint_bytes(*sizes(run)), run.checkpoint.keep
    free = shutil.disk_usage(_nearest(folder)).free
    found = f"{free / GIB:.1f} GiB free; a checkpoint takes {_sized(size)}, {keep} are kept"
    remedy = "make room, lower checkpoint.keep, or choose another folder with --storage, and out=FOLDER"
    if free < 2 * size:
        lines = [error("space", found, remedy)]
    elif free < (keep + 1) * size:
        lines = [warning("space", f"{found}, and one more while it is written", remedy)]
    else:
        lines = [ok("space", found)]
    if free > 2 * SPEED_MIB * MIB:
        lines.append(_speed(folder, size))
    return lines


def _speed(folder: Path, size: int) -> Finding:
    with place_in(folder) as place:
        rate = write_rate(place / "speed")
    took = size / rate
    found = f"{rate / MIB:.0f} MiB/s from one process, synced: a checkpoint in {took:.1f} s"
    if took > LONG_S:
        remedy = "a faster folder, or fewer checkpoints: a larger checkpoint.every_steps"
        return warning("write speed", f"{found} if one process writes all", remedy)
    return ok("write speed", found)


def write_rate(path: Path) -> float:
    """Bytes per second that reach the disk, from up to SPEED_MIB or SPEED_S."""
    part, done, began = os.urandom(4 * MIB), 0, time.monotonic()
    with path.open("wb", buffering=0) as file:
        while done < SPEED_MIB * MIB and time.monotonic() - began < SPEED_S:
            file.write(part)
            os.fsync(file.fileno())
            done += len(part)
    return done / (time.monotonic() - began)


@contextmanager
def place_in(folder: Path) -> Iterator[Path]:
    """A folder of our own below `folder`; at the end all is as it was, folders that were missing are gone again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".rayjepa-doctor-", dir=folder) as place:
            yield Path(place)
    finally:
        for path in missing:
            try:
                path.rmdir()
            except OSError:  # a run has begun to use it
                break


def _nearest(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _sized(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"
