"""A manifest that changed while a run goes on: refused with what differs, or accepted from the next step on."""

from collections.abc import Sequence
from pathlib import Path

from rayjepa.config import RunConfig, phases_of, streams_of
from rayjepa.data import manifest
from rayjepa.data.difference import Some, difference
from rayjepa.data.eras import Era, kept, read_eras, require_kept, write_eras
from rayjepa.data.manifest import Manifest
from rayjepa.data.tape import Tape
from rayjepa.data.twin import Twin, opened, put
from rayjepa.train.restart import read_state, restart_point


def keep_first(run: RunConfig, path: Path, videos: Manifest | Twin) -> None:
    """Write the manifest of a new run: the one in force, last, and the one that is kept."""
    home = kept(path, videos.fingerprint)
    put(videos, home)
    era = Era(first=0, fingerprint=videos.fingerprint, rows=len(videos), origins=_origins(run))
    write_eras(path, [era])
    manifest.copy(home, path)


def require_same(run: RunConfig, run_dir: Path) -> list[str]:
    """Lines on manifests that the run's was made from and that changed since; the run goes on with its own.

    Raises:  ValueError if the run's own is not the one that it was trained with.
    """
    path = run_dir / "manifest.parquet"
    eras = _eras(run_dir)
    if not eras:  # no step is trained, and an older version wrote it
        return []
    old = kept(path, eras[-1].fingerprint)
    if not path.is_file() and old.is_file():
        raise ValueError(f"{path} is not there any more; put it back (`cp {old} {path}`)")
    now = opened(path, scratch=run.data.scratch)
    if now.fingerprint == eras[-1].fingerprint:
        return [
            _changed(origin, run_dir)
            for origin, was in eras[-1].origins.items()
            if _fingerprint(origin) not in (None, was)
        ]
    what = (
        str(difference(opened(old, scratch=run.data.scratch), now))
        if old.is_file()
        else f"fingerprint {now.fingerprint}, not {eras[-1].fingerprint}"
    )
    back = f"put it back (`cp {old} {path}`)" if old.is_file() else "put it back"
    raise ValueError(
        f"{path} is not the manifest that the run was trained with: {what}. To train on with it from the next step, "
        f"`rayjepa pretrain --resume {run_dir} --accept-manifest {path}`; or {back}"
    )


def accept(run: RunConfig, run_dir: Path, new: Path) -> list[str]:
    """Have the run draw from the manifest `new` from its next step on; return what that means, in lines.

    Raises:  ValueError if `new` is no manifest, leaves the run nothing to train on, holds out what the run may have
             trained on, or if the manifest that the run was trained with is not there any more.
    """
    path, scratch = run_dir / "manifest.parquet", run.data.scratch
    saved = restart_point(run_dir)
    finished = read_state(saved).finished if saved else 0
    videos, known = opened(new, scratch=scratch), _eras(run_dir)
    # Another that was accepted at this very step, or after it, has trained nothing that is left.
    eras = [era for era in known if era.first < finished or era.first == 0]
    if known and videos.fingerprint == known[-1].fingerprint:
        eras = known
    for phase in phases_of(run):
        if finished < phase.stop:
            Tape(phase.run, videos)
    if eras and videos.fingerprint == eras[-1].fingerprint:
        put(videos, path)
        write_eras(path, eras)
        return [f"{new} is the manifest that the run was trained with: nothing to accept"]
    lines: list[str] = []
    if finished:
        _keep_old(path, eras)
        for number, era in enumerate(eras):
            changes = difference(opened(require_kept(path, era.fingerprint), scratch=scratch), videos)
            _refuse_to_examine_trained(changes.to_holdout, new)
            if number == len(eras) - 1:
                lines.append(f"manifest accepted from step {finished} on: {changes}")
    origins = {**(eras[-1].origins if eras else {}), str(new.absolute()): videos.fingerprint}
    era = Era(first=finished, fingerprint=videos.fingerprint, rows=len(videos), origins=origins)
    put(videos, kept(path, videos.fingerprint))
    put(videos, path)
    write_eras(path, [*(eras if finished else []), era])  # last: until then it is a changed manifest, to be accepted
    return lines or [f"manifest accepted: {len(videos):,} rows; no step has been trained yet"]


def _eras(run_dir: Path) -> list[Era]:
    """The run's eras; of a run of an older version, that of its last checkpoint."""
    path = run_dir / "manifest.parquet"
    saved = restart_point(run_dir)
    if (eras := read_eras(path)) or saved is None:
        return eras
    return [Era(first=0, fingerprint=read_state(saved).fingerprint, rows=manifest.head(path).rows)]


def _keep_old(path: Path, eras: Sequence[Era]) -> None:
    """Keep the manifest in force, if an older version of this code did not."""
    home = kept(path, eras[-1].fingerprint)
    if home.is_file() or not path.is_file():
        return
    old = manifest.read(path)
    if old.fingerprint == eras[-1].fingerprint:
        manifest.write(old, home)


def _refuse_to_examine_trained(moved: Some, new: Path) -> None:
    """Raises:  ValueError if a video that may have been trained on would be held out."""
    if moved.number:
        raise ValueError(
            f"{new} holds out {moved.number:,} video(s) that the run may have been trained on, first: {moved.first}: "
            "its health would be that of training videos. Keep their split: index onto the run's manifest (copy it, "
            "then `rayjepa index SOURCE -o COPY`), which leaves each video on its side"
        )


def _origins(run: RunConfig) -> dict[str, str]:
    """Fingerprints of the manifests that the run's videos come from, by path."""
    data = [stream.run.data for stream in streams_of(run)]
    named = [path for cfg in data for path in (cfg.videos, *(source.videos for source in cfg.sources))]
    paths = dict.fromkeys(str(Path(p).expanduser().absolute()) for p in named if p and p.endswith(".parquet"))
    return {path: known for path in paths if (known := _fingerprint(path)) is not None}


def _fingerprint(path: str) -> str | None:
    """What a manifest says of itself, if it is there and can say it."""
    try:
        return manifest.head(path).fingerprint
    except ValueError:
        return None


def _changed(origin: str, run_dir: Path) -> str:
    return (
        f"{origin} has changed since the run began, which goes on with its own copy; to train on with the new one, "
        f"`rayjepa pretrain --resume {run_dir} --accept-manifest {origin}`"
    )
