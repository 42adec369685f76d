"""What a file is by its extension: a video, an image, a list of files, a shard of many videos."""

import posixpath

VIDEOS = ("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv")
IMAGES = ("jpeg", "jpg", "png", "webp")
EXTENSIONS = frozenset(VIDEOS + IMAGES)
"""What counts as a video or image in a folder, glob or shard. A list, or a file named alone, may have any extension."""
SHARDS = ("parquet", "tar")
PACKED = ("tgz", "tar.gz", "tar.bz2", "tar.xz", "tar.zst", "tbz2", "txz")
"""Compressed tars: a member of one has no place of its own."""
LISTS = ("csv", "npy", "parquet", "txt")


def ending(name: str) -> str:
    """The extension of a file's name, in small letters and without the dot."""
    return posixpath.splitext(name)[1][1:].lower()


def is_packed(name: str) -> bool:
    """Whether it is a compressed tar."""
    return name.lower().endswith(tuple(f".{end}" for end in PACKED))
