"""A set of videos made anew in a folder: what is to be done, one file of it, what has been done, the manifest of it.

The folder holds the new videos, `recipe.json`, `transcoded.jsonl` and at the end `manifest.parquet`. A video is written
under a hidden name, read back, and then renamed, so that what has its name is whole. The record gets one line for each
video that is settled, from the one process that leads the work: no file beside each video, and the lines are what the
manifest is made of, so that nothing has to be read again after a kill. A video that was finished and not recorded is
made once more.
"""

import fcntl
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from rayjepa.data.clip import Failure
from rayjepa.data.columns import SCHEMA
from rayjepa.data.decoder import Decoder
from rayjepa.data.index.labels import PREFIX
from rayjepa.data.index.probing import columns_of
from rayjepa.data.jobs import Job, jobs_of
from rayjepa.data.manifest import Manifest
from rayjepa.data.recipe import Recipe
from rayjepa.data.video import Probe

RECIPE, RECORD, MANIFEST = "recipe.json", "transcoded.jsonl", "manifest.parquet"
UNFINISHED = ".unfinished"
"""Ending of a hidden file that is being written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one job; a line of the record."""

    uri: str
    name: str
    source: tuple[int, int, float]
    columns: dict[str, Any]
    """Columns of the manifest that are known of the new video; status and reason if there is none."""
    kind: str | None = None
    """Kind of the failure; none: it was made."""
    cpu_s: float = 0.0
    """CPU seconds of decoding, encoding and reading back."""
    unwritten: str | None = None
    """Why the folder took no more: nothing is wrong with the video."""

    @property
    def is_made(self) -> bool:
        return self.columns["status"] == "ok"


@dataclass(slots=True)
class Work:
    """A folder that this process alone writes to, and what is left to be done in it."""

    folder: Path
    jobs: list[Job]
    settled: dict[str, Outcome]
    """By uri, whether made or not."""
    record: TextIO = field(repr=False)

    def settle(self, outcome: Outcome) -> None:
        """Take note of an outcome, on disk too.

        Raises:  RuntimeError if the folder takes no more.
        """
        if outcome.unwritten is not None:
            raise RuntimeError(_cannot_write(self.folder, outcome.unwritten))
        with _writing(self.folder):
            self.record.write(json.dumps(asdict(outcome)) + "\n")
            self.record.flush()
        self.settled[outcome.uri] = outcome


@contextmanager
def work_in(folder: Path, videos: Manifest, recipe: Recipe, *, source: Path | None = None) -> Iterator[Work]:
    """The work of making `videos` anew in `folder`, going on where an earlier call has stopped.

    `source` is the folder that the videos were listed from, if there is one.
    Raises:  ValueError if the folder holds something else, or sources; RuntimeError if it cannot be written to, or
             another process writes to it.
    """
    folder = Path(os.path.abspath(folder.expanduser()))
    jobs = jobs_of(videos)
    _refuse_sources(folder, jobs, source)
    _refuse_others(folder, recipe)
    with _locked(folder) as record:
        if not (folder / RECIPE).exists():
            draft = folder / f".{uuid.uuid4().hex}{UNFINISHED}"
            with _writing(folder):
                draft.write_text(json.dumps(asdict(recipe), indent=1) + "\n")
                os.replace(draft, folder / RECIPE)
        sweep(folder)
        settled = _settled(folder, record, jobs)
        try:
            yield Work(folder, [job for job in jobs if job.uri not in settled], settled, record)
        finally:
            sweep(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[TextIO]:
    """The record, which no other process has open like this."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        record = (folder / RECORD).open("a+", encoding="utf-8")
    with record:
        try:
            fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another `rayjepa transcode` writes to {folder}; wait for it, or stop it") from None
        yield record


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what a disk or its rights refuse into a sentence."""
    try:
        yield
    except OSError as error:
        raise RuntimeError(_cannot_write(folder, error.strerror or str(error))) from error


def _cannot_write(folder: Path, reason: str) -> str:
    return (
        f"cannot write videos to {folder}: {reason}. What is finished stays: make room or the folder writable, and run "
        "the same command again"
    )


def sweep(folder: Path) -> None:
    """Remove what was being written when its writer was killed."""
    with os.scandir(folder) as entries:
        unfinished = [e.path for e in entries if e.name.endswith(UNFINISHED) and _is_ours(e.name)]
    for path in unfinished:
        Path(path).unlink(missing_ok=True)


def make(decoder: Decoder, job: Job, *, folder: Path, recipe: Recipe) -> Outcome:
    """Make one video anew; whatever is wrong with it, or with the folder, is an outcome."""
    path = folder / job.name
    partial = folder / f".{uuid.uuid4().hex}{UNFINISHED}"
    try:
        out = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            made = decoder.transcode(job.uri, out, recipe, job.place)
            if isinstance(made, Failure):
                return _failed(job, made)
            if "unwritten" in made:
                return _unwritten(job, made["unwritten"])
            os.fsync(out)
        finally:
            os.close(out)
        probe = decoder.probe(str(partial))
        if isinstance(probe, Failure):
            return _failed(job, probe)
        if probe.frames != made["frames"]:
            reason = f"what was made of it has {probe.frames} frames by its index, and {made['frames']} were written"
            return _bad(job, "content", reason)
        os.replace(partial, path)
    except OSError as error:
        return _unwritten(job, error.strerror or str(error))
    finally:
        partial.unlink(missing_ok=True)
    return Outcome(**_fields(job), columns=_columns(probe, made["bytes"]), cpu_s=made["cpu_s"])


def manifest_of(videos: Manifest, work: Work) -> Manifest:
    """The manifest of what was made: the same rows with their splits and labels; what was not made is a bad row.

    Rows of images are the same.
    """
    rows: list[dict[str, Any]] = []
    for row, is_image in zip(videos.table.select(SCHEMA.names).to_pylist(), videos.images.tolist(), strict=True):
        kept = {name: row[name] for name in ("uri", "bytes", "split", "source", "stream", "status", "reason")}
        if row["status"] == "bad" or is_image:
            rows.append(row if is_image else kept)
            continue
        outcome = work.settled[row["uri"]]
        place = {"uri": str(work.folder / outcome.name), "origin": row["uri"]} if outcome.is_made else {}
        rows.append({**kept, **outcome.columns, **place})
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    for name in videos.table.column_names:
        if name.startswith(PREFIX):
            table = table.append_column(name, videos.table.column(name))
    return Manifest(table)


def _refuse_sources(folder: Path, jobs: Sequence[Job], source: Path | None) -> None:
    """New videos beside old ones would be taken for sources the next time."""
    real = folder.resolve()
    if source is not None and real.is_relative_to(source.resolve()):
        raise ValueError(f"{folder} lies in the folder of the videos, {source}; choose a folder outside of it")
    if beside := next((job.uri for job in jobs if os.path.dirname(job.uri) == str(real)), None):
        raise ValueError(f"{folder} holds the source {beside}; choose another folder")


def _refuse_others(folder: Path, recipe: Recipe) -> None:
    """A folder is new, or empty, or of this recipe."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; choose another name")
    if not folder.is_dir() or all(_is_ours(path.name) for path in folder.iterdir()):
        return  # new, or left before it had a recipe, and so before it had a video
    try:
        before = json.loads((folder / RECIPE).read_text())
    except (OSError, ValueError):
        raise ValueError(
            f"{folder} holds other things than transcoded videos; choose a folder that is new, or empty"
        ) from None
    now = asdict(recipe)
    if before != now:
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        others = ", ".join(f"{name} {before.get(name)} and not {now.get(name)}" for name in names)
        raise ValueError(f"{folder} was made by another recipe ({others}); choose another folder, or the same recipe")


def _is_ours(name: str) -> bool:
    return name == RECORD or (name.startswith(".") and name.endswith(UNFINISHED))


def _settled(folder: Path, record: TextIO, jobs: Sequence[Job]) -> dict[str, Outcome]:
    """Outcomes of the record that still hold: of the same source, and with their file whole; or bad for good."""
    by_uri = {job.uri: job for job in jobs}
    with os.scandir(folder) as entries:
        sizes = {e.name: e.stat().st_size for e in entries if e.name.endswith(".mp4")}
    settled: dict[str, Outcome] = {}
    record.seek(0)
    whole = 0
    for line in record:
        if not line.endswith("\n"):
            break  # the writer was killed within it
        whole += len(line.encode())
        fields = json.loads(line)
        outcome = Outcome(**{**fields, "source": tuple(fields["source"])})
        settled.pop(outcome.uri, None)
        job = by_uri.get(outcome.uri)
        if job is None or job.source != outcome.source:
            continue
        if sizes.get(outcome.name) == outcome.columns["bytes"] if outcome.is_made else outcome.kind == "content":
            settled[outcome.uri] = outcome
    record.truncate(whole)
    return settled


def _fields(job: Job) -> dict[str, Any]:
    return {"uri": job.uri, "name": job.name, "source": job.source}


def _failed(job: Job, failure: Failure) -> Outcome:
    return _bad(job, failure.kind, f"{failure.reason} ({failure.stage}, {failure.kind})")


def _bad(job: Job, kind: str, reason: str) -> Outcome:
    return Outcome(**_fields(job), columns={"status": "bad", "reason": f"not transcoded: {reason}"}, kind=kind)


def _unwritten(job: Job, reason: str) -> Outcome:
    return Outcome(**_fields(job), columns={"status": "bad", "reason": reason}, kind="io", unwritten=reason)


def _columns(probe: Probe, size: int) -> dict[str, Any]:
    """What the manifest says of a video that was made: it was read back whole."""
    return {**columns_of(probe), "bytes": size, "damaged": 0}
