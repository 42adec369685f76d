"""The verb `sweep`: from a space to a table of trials and the best as a preset, or to a sweep that can be resumed."""

import dataclasses
import logging
import threading
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rayjepa.cli.derived import warnings_of
from rayjepa.cli.pretrain import require_init
from rayjepa.cli.stopping import stop_on_signal
from rayjepa.cli.trials import show, table, trials_display
from rayjepa.cli.videos import videos_of
from rayjepa.config import RunConfig
from rayjepa.config.space import Space, read_space
from rayjepa.config.sweep import Sweep, plan_sweep, read_sweep, sweep_text
from rayjepa.data.manifest import Manifest
from rayjepa.data.twin import Twin, opened, put
from rayjepa.report.sweep import Row
from rayjepa.train import folder

log = logging.getLogger(__name__)


def sweep(
    preset: str,
    space: str,
    overrides: Mapping[str, object],
    *,
    trials: int | None = None,
    concurrent: int | None = None,
    metric: str | None = None,
) -> int:
    """Run a new sweep; nothing starts before preset, space, overrides and metric are found to go together."""
    from rayjepa.health.scores import score_of

    changed = _changed(read_space(space), trials=trials, concurrent=concurrent, metric=metric)
    score = score_of(changed.metric)
    if changed.mode != score.mode:
        raise ValueError(f"mode={changed.mode} with metric={score.name} would search for a collapse; use {score.mode}")
    plan = plan_sweep(preset, changed, overrides)
    for line in _warnings(plan):
        log.warning("warning: %s", line)
    require_init(plan.base)
    videos = videos_of(plan.base)
    name = plan.base.name or f"sweep-{Path(preset).stem}-{Path(space).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    return _run(plan, _create(plan, videos, name), videos)


def resume(sweep_dir: Path, *, trials: int | None = None, concurrent: int | None = None) -> int:
    """Continue a sweep: trials that ended stay, the others go on from their last checkpoints."""
    if not (sweep_dir / "sweep.yaml").is_file():
        known = sorted(path.parent.name for path in sweep_dir.glob("*/sweep.yaml"))
        hint = f"; it holds the sweeps {', '.join(known[:5])}" if known else ""
        raise ValueError(f"{sweep_dir} is not a sweep folder: it has no sweep.yaml{hint}")
    plan = read_sweep(sweep_dir / "sweep.yaml")
    plan = dataclasses.replace(plan, space=_changed(plan.space, trials=trials, concurrent=concurrent))
    return _run(plan, sweep_dir.resolve(), opened(sweep_dir / "manifest.parquet", scratch=plan.base.data.scratch))


def _changed(space: Space, **fields: Any) -> Space:
    """The space with what the command line says otherwise."""
    return dataclasses.replace(space, **{name: value for name, value in fields.items() if value is not None})


def _warnings(plan: Sweep) -> list[str]:
    """What is likely not meant, at either end of each axis too."""
    space, run = plan.space, plan.base
    found: dict[str, None] = {}
    first = {axis.key: axis.values[0] for axis in space.axes}
    for axis in space.axes:
        for value in axis.values:
            trial = plan.trial(first | {axis.key: value}, name="trial", out=Path("trials"))
            found |= dict.fromkeys(warnings_of(trial))
    if space.grace_steps >= run.steps:
        found[f"grace_steps={space.grace_steps} is not below {_steps(run)}: no trial is stopped early"] = None
    elif run.health.every_steps > run.steps // 2:
        found[f"health.every_steps={run.health.every_steps}: a trial is examined too seldom to be stopped early"] = None
    return list(found)


def _steps(run: RunConfig) -> str:
    return f"the {run.steps} steps of all phases" if run.phases else f"train.steps={run.steps}"


def _create(plan: Sweep, videos: Manifest | Twin, name: str) -> Path:
    """Make the sweep's folder: its plan and its videos.

    Raises:  ValueError if the folder exists or cannot be written.
    """
    sweep_dir = (Path(plan.base.out).expanduser() / name).resolve()
    try:
        sweep_dir.mkdir(parents=True)
    except FileExistsError:
        if plan.base.name is None:  # two sweeps in one second
            return _create(plan, videos, f"{name}-{uuid.uuid4().hex[:4]}")
        raise ValueError(
            f"{sweep_dir} exists: a sweep is never overwritten. Continue it with `rayjepa sweep --resume {sweep_dir}`, "
            "or choose another name=…"
        ) from None
    except OSError as error:
        raise ValueError(f"out={plan.base.out}: cannot make {sweep_dir} ({error.strerror})") from None
    put(videos, sweep_dir / "manifest.parquet")
    (sweep_dir / "sweep.yaml").write_text(sweep_text(plan))
    return sweep_dir


def _run(plan: Sweep, sweep_dir: Path, videos: Manifest | Twin) -> int:
    from rayjepa.report.sweep import best_of, read_rows

    owner = folder.claim(sweep_dir)
    folder.replace_text(sweep_dir / "sweep.yaml", sweep_text(plan))
    space, reason = plan.space, ""
    log.info("sweep %s", sweep_dir)
    sizes = space.trials, plan.base.steps, space.concurrent
    log.info("%d trials of %d steps, %d at once, by %s", *sizes, space.metric)
    with stop_on_signal(sweep_dir, says="trials save, then the sweep stops") as stop:
        try:
            _search(plan, sweep_dir, videos, owner)
        except (RuntimeError, ValueError) as error:
            reason = str(error)
            log.error("continue with: rayjepa sweep --resume %s", sweep_dir)
            raise
        except KeyboardInterrupt:
            pass  # asked for twice: what is saved can be resumed
        finally:
            rows = read_rows(sweep_dir)
            best = best_of(rows, mode=space.mode)
            ended = sum(row.state not in ("running", "waiting") for row in rows)
            all_ended = ended >= space.trials
            state = "failed" if reason or (all_ended and best is None) else "finished" if all_ended else "stopped"
            folder.conclude(sweep_dir, state, finished=ended, reason=reason)
    _tell(plan, sweep_dir, rows, best)
    if not all_ended:
        log.error("%d of %d trials have ended", ended, space.trials)
        log.error("continue with: rayjepa sweep --resume %s", sweep_dir)
        return 130 if stop.asked else 1
    if best is None:
        log.error("rayjepa: every trial failed; the first reason is likely the reason of all. Try one alone:")
        log.error("rayjepa pretrain --resume %s", rows[0].run_dir)
        return 1
    return 0


def _tell(plan: Sweep, sweep_dir: Path, rows: Sequence[Row], best: Row | None) -> None:
    """The table, and where the best and the study are."""
    from rayjepa.report.sweep import write_best

    if rows:
        show(table(rows, plan, best))
    if best is not None:
        log.info("best trial so far: %d", best.number)
        sign = 1 if plan.space.mode == "max" else -1
        if best.metric is not None and best.floor is not None and sign * (best.metric - best.floor) < 0:
            log.warning("warning: even the best is under its floor, an untrained encoder: trials may be too short")
        log.info("as a preset: rayjepa pretrain --preset %s", write_best(sweep_dir, plan, best))
    log.info("study: optuna-dashboard sqlite:///%s", sweep_dir / "study.db")


def _search(plan: Sweep, sweep_dir: Path, videos: Manifest | Twin, owner: str) -> None:
    from rayjepa.report.sweep import read_rows

    ended = [row for row in read_rows(sweep_dir) if row.state not in ("running", "waiting")]
    if len(ended) >= plan.space.trials:
        log.info("all %d trials have ended; a larger --trials adds more", plan.space.trials)
        return
    from rayjepa.on_ray.cluster import cluster

    with cluster(plan.base, logs=sweep_dir / "ray-logs", trials=plan.space.concurrent):
        from rayjepa.on_ray.sweep import search

        def watch(waiting: threading.Thread) -> None:
            with trials_display(plan, sweep_dir) as refresh:
                while waiting.is_alive():
                    waiting.join(0.5)
                    refresh()
                    folder.beat(sweep_dir)

        search(plan, sweep_dir, videos, owner=owner, watch=watch)
