"""What a SOURCE of videos or images is: a folder, a glob, a list or one file, as absolute paths in a fixed order."""

import glob
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VIDEOS = ("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv")
IMAGES = ("jpeg", "jpg", "png", "webp")
EXTENSIONS = frozenset(VIDEOS + IMAGES)
"""What counts as a video or image in a folder or glob. A list, or a file named alone, may have any extension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Absolute paths of a source, in the order of the manifest's rows; nothing has been opened yet."""

    uris: list[str]
    folder: Path | None
    """The source itself if it is a folder: where a labels.csv belongs."""


def list_videos(source: str | Path) -> Listing:
    """Paths that `source` names: sorted for a folder (recursive) or glob, in the order of the lines for a .txt list.

    Hidden files and folders are passed over. Links to folders are followed, each folder once.
    Raises:  ValueError, one sentence with the remedy, if `source` does not exist or names no video.
    """
    text = os.fspath(source)
    if "://" in text:
        raise ValueError(f"{text} is a remote address; mount or copy it, since videos are read from the file system")
    path = Path(os.path.abspath(os.path.expanduser(text)))
    folder = path if path.is_dir() else None
    if folder:
        uris = _with_video_extension(list(_files(path)), f"folder {path}")
    elif path.exists():
        uris = _one_file(path)
    elif glob.has_magic(text):
        found = [p for p in glob.iglob(str(path), recursive=True) if os.path.isfile(p)]
        uris = _with_video_extension(found, f"glob {path}")
    else:
        raise ValueError(f"no such source: {path} does not exist; name a folder, a glob, a .txt list or a video file")
    return Listing(uris=_storable(uris), folder=folder)


def _one_file(path: Path) -> list[str]:
    match path.suffix.lower():
        case ".txt":
            return _from_list(path)
        case ".parquet":
            raise ValueError(f"{path} is a manifest, which needs no indexing; use it as data.videos")
        case _:
            return [str(path)]


def _from_list(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"list {path} is not UTF-8 text ({error}); it needs one path a line") from None
    named = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not named:
        raise ValueError(f"list {path} names no file; it needs one path a line, relative to {path.parent} or absolute")
    paths = [os.path.abspath(path.parent / name) for name in named]
    uris = list(dict.fromkeys(paths))
    if len(uris) < len(paths):
        twice = next(p for p, count in Counter(paths).items() if count > 1)
        warnings.warn(f"list {path}: {len(paths) - len(uris)} repeated line(s) left out, first: {twice}", stacklevel=4)
    return uris


def _files(folder: Path) -> Iterator[str]:
    """Every visible file below `folder`."""
    seen: set[tuple[int, int]] = set()  # links may lead back up
    closed: list[str] = []
    for here, folders, files in os.walk(folder, followlinks=True, onerror=lambda e: closed.append(str(e))):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith("."))  # the order decides which of two links is kept
        yield from (os.path.join(here, f) for f in files if not f.startswith("."))
    if closed:
        warnings.warn(f"{len(closed)} folder(s) below {folder} cannot be read, first: {closed[0]}", stacklevel=5)


def _with_video_extension(files: list[str], name: str) -> list[str]:
    if not files:
        raise ValueError(f"{name} holds no file; name one that holds videos or images")
    videos = sorted(f for f in files if os.path.splitext(f)[1][1:].lower() in EXTENSIONS)
    if not videos:
        found = Counter(os.path.splitext(f)[1].lower() or "no extension" for f in files).most_common(3)
        raise ValueError(
            f"{name}: {len(files)} file(s), none with a video extension ({' '.join(VIDEOS)}) or that of an image "
            f"({' '.join(IMAGES)}); "
            f"found {', '.join(f'{extension} ({count})' for extension, count in found)}. "
            "Name other extensions in a .txt list, one path a line"
        )
    return videos


def _storable(uris: list[str]) -> list[str]:
    """The paths that are UTF-8: a manifest stores text, and Linux allows any bytes in a name."""
    good = [u for u in uris if u.isascii() or _is_utf8(u)]
    if len(good) < len(uris):
        first = next(u for u in uris if not _is_utf8(u))
        warnings.warn(
            f"{len(uris) - len(good)} file name(s) are not UTF-8 and were left out, first: {first!r}", stacklevel=4
        )
    if not good:
        raise ValueError(f"all {len(uris)} file names are not UTF-8, first: {uris[0]!r}; rename them")
    return good


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
