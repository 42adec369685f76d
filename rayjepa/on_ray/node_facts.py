"""What a node finds when it looks at itself. Sent to the nodes by value: it imports the standard library alone."""

import hashlib
import os
import platform
import resource
import shutil
import sys
import time
import uuid
from importlib import metadata, util
from pathlib import Path
from typing import Any


def clock() -> float:
    """What time it is on this node."""
    return time.time()


def facts(question: dict[str, Any]) -> dict[str, Any]:
    """Versions, paths and room of this node.

    `question`: packages (names), file and text (in the storage folder), paths (to be readable), session (its folder of
    logs), variable (of the environment).
    """
    file, session = Path(question["file"] or "/"), Path(question["session"])
    return {
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "packages": {name: _version(name) for name in question["packages"]},
        "code": _code_of("rayjepa"),
        "seen": _seen(file, question["text"]) if question["file"] else None,
        "writable": _writable(file.parent) if question["file"] else None,
        "unreadable": [path for path in question["paths"] if not os.access(path, os.R_OK)],
        "shared": _disk("/dev/shm"),
        "session": _disk(str(session)),
        "spilled": sum(f.stat().st_size for f in session.glob("ray_spilled_objects*/**/*") if f.is_file()),
        "gpus": len([name for name in os.listdir("/dev") if name.removeprefix("nvidia").isdecimal()]),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "variable": os.environ.get(question["variable"]),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _code_of(name: str) -> str | None:
    spec = util.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    digest = hashlib.blake2b(digest_size=4)
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()


def _seen(file: Path, text: str) -> str:
    """What hinders; nothing if all is well."""
    try:
        return "" if file.read_text() == text else "another content"
    except OSError as failure:
        return failure.strerror or str(failure)


def _writable(folder: Path) -> str:
    mine = folder / uuid.uuid4().hex
    try:
        mine.touch()
        mine.unlink()
    except OSError as failure:
        return failure.strerror or str(failure)
    return ""


def _disk(folder: str) -> list[int]:
    try:
        total, _, free = shutil.disk_usage(folder)
    except OSError:
        return [0, 0]
    return [total, free]
