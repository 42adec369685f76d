"""Folder on a node's own disk for what its processes share: twins of manifests, videos read from afar."""

import os
import stat
import tempfile
from pathlib import Path


def scratch_folder(configured: str | None) -> Path:
    """data.scratch, or rayjepa-UID in the temporary folder; made if it is not there, for this user alone.

    Raises:  RuntimeError if it cannot be made or written, or somebody else could put files there.
    """
    folder = Path(configured).expanduser() if configured else Path(tempfile.gettempdir()) / f"rayjepa-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat() if configured is None else folder.stat()
    except OSError as error:
        raise RuntimeError(
            f"scratch folder {folder} cannot be made ({error.strerror}); name a folder on this node's disk by "
            "data.scratch"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise RuntimeError(
            f"scratch folder {folder} is not a folder that this user alone can write (owner {found.st_uid}, mode "
            f"{found.st_mode & 0o777:o}); remove it, or name another by data.scratch"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RuntimeError(f"scratch folder {folder} cannot be written; name another by data.scratch")
    return folder
