"""Labels beside the videos: a CSV with a column `file`, joined to the manifest as columns `label_*`."""

import posixpath
import warnings
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv

from rayjepa.data.index.paths import resolved
from rayjepa.data.lookup import whole
from rayjepa.data.storage.faults import NotThere
from rayjepa.data.storage.remote import found, is_remote, read_bytes

PREFIX = "label_"
_pc = cast("Any", pyarrow.compute)  # its functions are made at import time, unseen by a type checker


def read_labels(place: str | Path, *, uris: pa.Array) -> dict[str, pa.Array]:
    """Label columns of the videos `uris`, by name with its prefix; null where the file has no row for a video.

    `place` is a path or URL; `file` is relative to its folder, or absolute; other columns become labels of the type
    that Arrow infers.
    Raises:  ValueError if the CSV cannot be read, lacks `file`, names a file or column twice, or none of the videos;
             StorageError.
    """
    name = str(place)
    try:
        content = read_bytes(name) if is_remote(name) else Path(name).read_bytes()
        options = pyarrow.csv.ConvertOptions(column_types={"file": pa.large_string()})
        table: Any = pyarrow.csv.read_csv(pa.BufferReader(content), convert_options=options)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"labels {name} cannot be read as CSV: {error}") from None
    names = table.column_names
    if "file" not in names or len(set(names)) < len(names):
        raise ValueError(f"labels {name} has columns {', '.join(names)}; it needs one named file, and none twice")
    base = posixpath.dirname(name if is_remote(name) else str(Path(name).absolute()))
    files = resolved(whole(table.column("file")), base)
    if len(files.unique()) < len(files):
        counts = files.value_counts()
        twice = counts.filter(_pc.greater(counts.field("counts"), 1)).field("values")[0].as_py()
        raise ValueError(f"labels {name} names {twice} twice; keep one row for each file")
    rows = _pc.index_in(uris, value_set=files)
    matched = len(rows) - rows.null_count
    if not matched:
        raise ValueError(f"labels {name} names none of the {len(uris)} videos; its column file is relative to {base}")
    if matched < len(files):
        warnings.warn(f"labels {name}: {len(files) - matched} row(s) name a file that is not indexed", stacklevel=3)
    return {PREFIX + n: whole(table.column(n)).take(rows) for n in names if n != "file"}


def beside(folder: str) -> str | None:
    """The labels.csv of a folder or prefix; none: it has none."""
    place = f"{folder}/labels.csv"
    if is_remote(folder):
        try:
            return found(place).uri
        except NotThere:
            return None
    return place if Path(place).is_file() else None
