"""A sweep on Ray Tune: trials side by side, each the trainer of every run, none waiting for another's CPUs."""

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, TuneConfig

from rayjepa.config import RunConfig
from rayjepa.config.sweep import Sweep
from rayjepa.data.manifest import Manifest
from rayjepa.data.twin import Twin
from rayjepa.on_ray import waiting
from rayjepa.on_ray.cluster import SEAT, is_embedded, parts_of, use_gpus
from rayjepa.on_ray.placement import Part, described, listed, unplaced
from rayjepa.on_ray.search import Halving, Search
from rayjepa.on_ray.trial import Trial

log = logging.getLogger(__name__)

# Ray Tune's own tables and checks: the study and the run folders say it all, and a failed trial has no metric.
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def search(
    sweep: Sweep,
    sweep_dir: Path,
    videos: Manifest | Twin,
    *,
    owner: str,
    watch: Callable[[threading.Thread], None],
) -> None:
    """Run the trials that the sweep's study lacks on the connected cluster; `watch` has the main thread meanwhile.

    Raises:  RuntimeError if not even one trial fits, with the numbers; or what Ray Tune failed by.
    """
    os.environ.update(QUIET)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    at_once = room(sweep.base, sweep.space.concurrent)
    proposals = Search(sweep, sweep_dir, videos)
    halving = Halving(sweep, proposals)
    tuner = tune.Tuner(
        tune.with_resources(Trial, seat(sweep.base)),
        tune_config=TuneConfig(
            search_alg=proposals,
            scheduler=halving,
            num_samples=proposals.left,
            max_concurrent_trials=at_once,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        # Ray Tune's own records; never the source of truth, so a name of their own for each driver.
        run_config=tune.RunConfig(
            name=owner,
            storage_path=str(sweep_dir / "ray"),
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            failure_config=FailureConfig(max_failures=sweep.base.cluster.max_failures),
            verbose=0,
        ),
    )
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            tuner.fit()
        except BaseException as error:  # noqa: BLE001  handed to the main thread, which decides
            errors.append(error)

    waiting = threading.Thread(target=wait, name="ray-tune", daemon=True)
    waiting.start()
    watch(waiting)
    if errors:
        raise RuntimeError(f"{type(errors[0]).__name__}: {errors[0]}") from errors[0]


def seat(run: RunConfig) -> dict[str, float]:
    """What a trial's driver reserves: a seat; and, if it trains in its own process, what training takes.

    A seat is not a CPU: drivers that took CPUs could leave none for the workers that they wait for.
    """
    if run.cluster.workers:
        return {SEAT: 1}
    train: dict[str, float] = {SEAT: 1, "CPU": run.cluster.cpus_per_worker}
    has_gpu = run.cluster.gpus is not False and ray.cluster_resources().get("GPU", 0) >= 1
    return train | {"GPU": 1} if has_gpu else train


def room(run: RunConfig, wanted: int) -> int:
    """How many trials of this run the connected cluster holds at once, or may grow to hold, at most `wanted`.

    Raises:  RuntimeError if no driver of a trial could be placed, with the remedy.
    """
    seats = int(ray.cluster_resources().get(SEAT, 0))
    if seats < 1:
        raise RuntimeError(
            f"no node of the cluster has the resource `{SEAT}`, on which trials' drivers run: start its head with "
            f"`ray start --head --resources='{{\"{SEAT}\": {wanted}}}'`, one for each trial at once"
        )
    parts, nodes = parts_of(run, gpus=use_gpus(run)), waiting.read_status().nodes

    def times(number: int) -> list[Part]:
        return [replace(part, count=part.count * number) for part in parts]

    fits = max((n for n in range(1, wanted + 1) if not unplaced(times(n), nodes, idle=True)), default=1)
    if fits < wanted and not is_embedded() and waiting.can_grow(times(wanted)):
        fits = wanted
    fits = min(fits, seats)
    if fits < wanted:
        why = f"{SEAT}: {seats}" if seats == fits else f"a trial needs {listed(parts)}; there are {described(nodes)}"
        log.warning("%d trial(s) at once and not %d: %s", fits, wanted, why)
    return fits
