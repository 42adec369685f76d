"""Labels beside the videos: a CSV with a column `file`, joined to the manifest as columns `label_*`."""

import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv

PREFIX = "label_"
_pc = cast("Any", pyarrow.compute)  # its functions are made at import time, unseen by a type checker


def read_labels(path: Path, *, uris: pa.Array) -> dict[str, pa.Array]:
    """Label columns of the videos `uris`, by name with its prefix; null where the file has no row for a video.

    `file` is relative to the CSV's folder, or absolute; other columns become labels of the type that Arrow infers.
    Raises:  ValueError if the CSV cannot be read, lacks `file`, names a file or column twice, or none of the videos.
    """
    try:
        options = pyarrow.csv.ConvertOptions(column_types={"file": pa.large_string()})
        table: Any = pyarrow.csv.read_csv(path, convert_options=options)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"labels {path} cannot be read as CSV: {error}") from None
    names = table.column_names
    if "file" not in names or len(set(names)) < len(names):
        raise ValueError(f"labels {path} has columns {', '.join(names)}; it needs one named file, and none twice")
    files = [os.path.abspath(path.parent / f) for f in table.column("file").to_pylist()]
    if len(set(files)) < len(files):
        twice = Counter(files).most_common(1)[0][0]
        raise ValueError(f"labels {path} names {twice} twice; keep one row for each file")
    rows = _pc.index_in(uris, value_set=pa.array(files, pa.large_string()))
    matched = len(rows) - rows.null_count
    if not matched:
        raise ValueError(
            f"labels {path} names none of the {len(uris)} videos; its column file is relative to {path.parent}"
        )
    if matched < len(files):
        warnings.warn(f"labels {path}: {len(files) - matched} row(s) name a file that is not indexed", stacklevel=3)
    return {PREFIX + n: table.column(n).combine_chunks().take(rows) for n in names if n != "file"}
