"""How a manifest of many rows behaves: seconds to write, map and look up; memory of a process that draws from it."""

import os
import random
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from rayjepa.config import RunConfig
from rayjepa.data import manifest
from rayjepa.data.columns import SCHEMA
from rayjepa.data.eras import open_tape
from rayjepa.data.manifest import Manifest

LOOKS = 20_000
"""Samples that are looked up at random places."""
HELD_OUT = 0.1
"""Share of the rows that are held out."""
_JOIN: Any = getattr(pyarrow.compute, "binary_join_element_wise")  # noqa: B009  made at import time

Figures = dict[str, float]


def repeated(videos: Manifest, rows: int, links: Path) -> Manifest:
    """A manifest of so many rows: those of `videos` over and over, each under a path of its own.

    A path leads through one of many links in `links` to the folder of the videos, which are all in one.
    """
    table = videos.table.filter(pa.array(videos.usable))
    folders = {os.path.dirname(uri) for uri in table.column("uri").to_pylist()}
    (folder,) = folders
    copies = -(-rows // len(table))
    links.mkdir(parents=True, exist_ok=True)
    drawn = random.Random(0)
    names = [str(links / f"{drawn.getrandbits(96):024x}") for _ in range(copies)]
    for name in names:
        os.symlink(folder, name)
    place = pa.array(np.arange(rows) % len(table))
    copy = pa.array(np.arange(rows) // len(table))
    files = pa.array([os.path.basename(uri) for uri in table.column("uri").to_pylist()])
    uris = _JOIN(pa.array(names).take(copy), files.take(place), "/").cast(pa.large_string())
    held_out = np.random.default_rng(0).random(rows) < HELD_OUT
    split = pa.DictionaryArray.from_arrays(held_out.astype(np.int8), ["train", "holdout"]).cast(pa.string())
    columns = {name: table.column(name).combine_chunks().take(place) for name in SCHEMA.names if name != "uri"}
    return Manifest(pa.table({**columns, "uri": uris, "split": split}, schema=SCHEMA))


def made(videos: Manifest, rows: int, home: Path) -> Figures:
    """Write a manifest of `rows` to `home`; what that took."""
    began = time.monotonic()
    table = repeated(videos, rows, home / "links")
    generated = time.monotonic()
    manifest.write(table, home / "manifest.parquet")
    return {
        "generate, s": generated - began,
        "write, s": time.monotonic() - generated,
        "file, MB": (home / "manifest.parquet").stat().st_size / 1e6,
    }


def read_whole(home: Path) -> Figures:
    """What it takes to read the manifest into memory, which is what its twin saves."""
    began = time.monotonic()
    table = manifest.read(home / "manifest.parquet")
    return {"read into memory, s": time.monotonic() - began, "in memory, MB": table.table.nbytes / 1e6}


def drawn_from(run: RunConfig, home: Path) -> Figures:
    """Seconds to open the twin and make a tape of it, microseconds of a sample, and this process's memory then."""
    before = memory()
    began = time.monotonic()
    tape = open_tape(run, home / "manifest.parquet")
    opened = time.monotonic()
    peak = memory()["peak"]
    generator = random.Random(0)
    samples = [generator.randrange(run.samples) for _ in range(LOOKS)]
    looked, used = time.monotonic(), time.process_time()
    for sample in samples:
        tape.spec(sample)
    looked, used = time.monotonic() - looked, time.process_time() - used
    return {
        "open and tape, s": opened - began,
        "most resident until then, MB": peak,
        "a sample, us": 1e6 * looked / LOOKS,
        "a sample, us of CPU": 1e6 * used / LOOKS,
        "private after that, MB more": memory()["private"] - before["private"],
    }


def apart(act: Callable[..., Figures], *words: Any) -> Figures:
    """What `act` returns in a fresh process, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(act, *words).result()


def memory(pid: int | None = None) -> Figures:
    """Memory of a process in MB: `resident`, the most that it ever was, and `private`, which it shares with no other.

    Private is what is not of a file: pages of a mapped file count in `resident`, and are the node's, not the process's.
    """
    text = Path(f"/proc/{pid or os.getpid()}/status").read_text()
    names = {"resident": "VmRSS", "peak": "VmHWM", "private": "RssAnon"}
    found = {name: re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE) for name, key in names.items()}
    return {name: int(match[1]) / 1e3 for name, match in found.items() if match}


def below(pid: int) -> dict[int, str]:
    """The processes that a process started, and those that they did, with their names."""
    parents: dict[int, tuple[int, str]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            name = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it has ended meanwhile
            continue
        parents[int(stat.parent.name)] = parent, name
    found: dict[int, str] = {}
    ring = {pid}
    while ring:
        ring = {child for child, (parent, _) in parents.items() if parent in ring and child not in found}
        found |= {child: parents[child][1] for child in ring}
    return found
