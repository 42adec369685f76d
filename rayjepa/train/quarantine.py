"""The quarantine: one row for each attempt at a clip that was given up, in a file beside the run's page.

Derived from the history, which survives kills and knows what was undone. Whoever writes the page writes this file: the
command line when a run ends in whatever way, and `rayjepa report` at any time. Checkpoints do not: they would read the
whole history each time, to say what it says already.
"""

import os
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from rayjepa.train.history import Table

NAME = "quarantine.parquet"
"""In the run's folder."""
LINES = {"failure": "training", "held_out": "health"}
"""Kinds of the history's lines that are rows here, and what their clips were for."""
SCHEMA: Any = pa.schema(
    [
        ("index", pa.int64()),  # sample of the run; health: place in the list of held-out clips
        ("attempt", pa.int32()),  # 0, or n for the n-th substitute
        ("uri", pa.large_string()),
        ("video", pa.int64()),  # row of the manifest
        ("stage", pa.string()),  # open | demux | decode | convert | child
        ("kind", pa.string()),  # content | io | deadline | crash
        ("reason", pa.string()),
        ("substitute", pa.large_string()),  # path of the video that was taken in the end
        ("clips", pa.string()),  # training | health
        ("step", pa.int64()),  # that trained on the sample; health: after which the attempt began
        ("attempt_of_run", pa.int32()),  # life of the worker group
        ("undone", pa.bool_()),  # a later life took the step back
    ]
)


def quarantine(table: Table) -> pa.Table:
    """The rows of a run, in the order of attempts of the run, steps, samples and attempts at them."""
    rows = [
        {**line, "kind": line.get("failure_kind"), "clips": LINES[line["kind"]]}
        for line in table.lines
        if line["kind"] in LINES
    ]
    names = ("attempt_of_run", "step", "index", "attempt")
    rows.sort(key=lambda row: tuple(row.get(name, 0) for name in names))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_quarantine(run_dir: Path, table: Table) -> Path:
    """Write RUN/quarantine.parquet, without rows if nothing failed; a reader sees the old file or the new one."""
    path = run_dir / NAME
    half = path.with_name(f".{NAME}.{uuid.uuid4().hex}")
    try:
        pyarrow.parquet.write_table(quarantine(table), half, compression="zstd")
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
    return path
