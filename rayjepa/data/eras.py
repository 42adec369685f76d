"""The manifests of a run: one at its beginning, and each that was accepted for it later, from a step on.

RUN/manifest.parquet                   the one in force
RUN/manifests/FINGERPRINT.parquet      each that samples were drawn from
RUN/manifests/eras.json                from which step on
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from rayjepa.config import RunConfig
from rayjepa.data import manifest
from rayjepa.data.choice import Videos
from rayjepa.data.tape import Tape
from rayjepa.data.twin import opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Era:
    """Steps whose samples are drawn from one manifest: from `first` on, up to the next era's."""

    first: int
    fingerprint: str
    rows: int
    origins: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the manifests that it was made from, by path: a later change of theirs is worth a line."""


def read_eras(manifest_path: Path) -> list[Era]:
    """The eras of the run that the manifest belongs to, in order; none: an older version of this code began it."""
    path = _folder(manifest_path) / "eras.json"
    return [Era(**era) for era in json.loads(path.read_text())] if path.is_file() else []


def write_eras(manifest_path: Path, eras: Sequence[Era]) -> None:
    """Replace the list; a reader sees the old or the new one."""
    path = _folder(manifest_path) / "eras.json"
    path.parent.mkdir(exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text(json.dumps([dataclasses.asdict(era) for era in eras], indent=1))
    half.replace(path)


def kept(manifest_path: Path, fingerprint: str) -> Path:
    """Where a run keeps the manifest of this fingerprint for good."""
    return _folder(manifest_path) / f"{fingerprint}.parquet"


def era_at(eras: Sequence[Era], step: int) -> Era:
    """The era that a step's samples are of."""
    return next(era for era in reversed(eras) if era.first <= max(step, 0))


def open_tape(run: RunConfig, manifest_path: Path, *, first: int = 0, start: int | None = None) -> Tape:
    """The tape of a run, or of the phase of one whose samples follow the `first`, over the manifests of its eras.

    Their twins are made on this node if they are not there. Samples before `start` are not asked for: a manifest that
    only they were drawn from is not opened.
    Raises:  ValueError if a manifest is not there or is not the one that the run was trained with, or leaves a stream
             without videos; RuntimeError if the scratch folder cannot be used.
    """
    eras, scratch = read_eras(manifest_path), run.data.scratch
    videos = opened(manifest_path, scratch=scratch)
    if eras and videos.fingerprint != eras[-1].fingerprint:
        raise ValueError(
            f"{manifest_path} has fingerprint {videos.fingerprint}, and the run goes on with {eras[-1].fingerprint}; "
            f"`rayjepa pretrain --resume {manifest_path.parent}` says what differs, and how to accept it"
        )
    since = first if start is None else start
    before: list[tuple[int, Videos]] = []
    for era, after in pairwise(eras):
        if (stop := after.first * run.train.clips) > since:
            before.append((stop, opened(require_kept(manifest_path, era.fingerprint), scratch=scratch)))
    return Tape(run, videos, first=first, before=before)


def require_kept(manifest_path: Path, fingerprint: str) -> Path:
    """Where a manifest that the run was trained with is.

    Raises:  ValueError if it is not there any more.
    """
    path = kept(manifest_path, fingerprint)
    if not path.is_file() or manifest.head(path).fingerprint != fingerprint:
        raise ValueError(
            f"{path} is not there any more, or another: the run's earlier steps were drawn from it; put the manifest "
            f"of fingerprint {fingerprint} back under this name"
        )
    return path


def _folder(manifest_path: Path) -> Path:
    return manifest_path.parent / "manifests"
