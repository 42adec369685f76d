"""A run on Ray: the tape as a dataset, the loop in a worker group, restarts by Ray Train; a trainer for each phase."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import ray
import ray.exceptions
import ray.train
import ray.train.torch
from ray.data import DataContext, ExecutionOptions
from ray.train import DataConfig, FailureConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from rayjepa.config import RunConfig, phase_at
from rayjepa.on_ray.cluster import is_embedded, parts_of, use_gpus
from rayjepa.on_ray.placement import Part, selector
from rayjepa.on_ray.store import fitted, refuse_too_small
from rayjepa.on_ray.stream import batches, stream, taken
from rayjepa.on_ray.waiting import BRIEF_S, Notice, read_status, wait_for_room, waits_for
from rayjepa.report.reading import read_json
from rayjepa.train import attempts, history, shortage
from rayjepa.train.checkpoint import finished_steps, restart_point
from rayjepa.train.outcome import Outcome, goes_on
from rayjepa.train.session import take_part, tape_of

log = logging.getLogger(__name__)


# How often the nodes are looked at while a run trains: what it lacks is said once it has lacked it for some seconds.
LOOK_S = 5.0


def fit(run: RunConfig, run_dir: Path, *, owner: str, watch: Callable[[threading.Thread], None]) -> Outcome:
    """Train the run on the connected cluster, phase by phase, until it ends; `watch` has the main thread meanwhile.

    `watch` gets the thread that waits for Ray, and returns once that thread is done. As long as the cluster has no room
    for the whole run, nothing is started, and the log says what is missing.
    Raises:  RuntimeError with the first cause if the worker group failed more often than cluster.max_failures.
    """
    gpus = use_gpus(run)
    context = DataContext.get_current()
    context.enable_progress_bars = context.enable_operator_progress_bars = False
    parts = parts_of(run, gpus=gpus)
    if not is_embedded():
        nodes = read_status().nodes
        run = fitted(run, nodes, parts[0])
        refuse_too_small(run, nodes)
    results: list[Outcome] = []
    errors: list[BaseException] = []
    ended = threading.Event()

    def wait() -> None:
        try:
            room = wait_for_room(parts, stopped=lambda: ended.is_set() or _stop_asked(run_dir))
            outcome = _saved(run_dir)
            while room and not ended.is_set():
                trainer = _trainer(run, run_dir, owner=owner, gpus=gpus, parts=parts)
                outcome = _accompany(trainer, run_dir, parts, ended)
                room = goes_on(run, run_dir, outcome)
            results.append(outcome)
        except BaseException as error:  # noqa: BLE001  handed to the main thread, which decides
            errors.append(error)

    waiting = threading.Thread(target=wait, name="ray-train", daemon=True)
    waiting.start()
    try:
        watch(waiting)
    except BaseException:
        # The thread must not meet a Ray that is gone: it would start one of its own.
        ended.set()
        waiting.join(2 * LOOK_S)
        raise
    if errors:
        raise RuntimeError(shortage.completed(cause(errors[0]), run)) from errors[0]
    return results[0]


def _trainer(run: RunConfig, run_dir: Path, *, owner: str, gpus: bool, parts: tuple[Part, Part]) -> TorchTrainer:
    """A worker group of its own, with processes of its own, for the phase that the restart point is in."""
    train, decode = parts
    begun = len(attempts.read_attempts(run_dir))
    return _Trainer(
        _rank,
        train_loop_config={"run": run, "run_dir": str(run_dir), "owner": owner, "gpus": gpus},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=run.cluster.workers,
            use_gpu=gpus,
            resources_per_worker=dict(train.resources),
            label_selector=selector(train.label) or None,
        ),
        # Ray's own records; never the source of truth, so a name of their own for each trainer of each driver.
        run_config=ray.train.RunConfig(
            name=f"{owner}-{begun}",
            storage_path=str(run_dir / "ray"),
            failure_config=FailureConfig(max_failures=run.cluster.max_failures),
            callbacks=[_Restarts(str(run_dir))],
        ),
        datasets={"train": _Tapes(run, str(run_dir), owner)},
        # Locality would hand a block to the rank beside it: the round robin, and with it the tape, needs it off. The
        # label binds all that Ray Data starts, its reads too, and goes to the autoscaler with what it asks for.
        dataset_config=DataConfig(
            enable_shard_locality=False,
            execution_options=ExecutionOptions(preserve_order=True, label_selector=selector(decode.label) or None),
        ),
    )


def _accompany(trainer: TorchTrainer, run_dir: Path, parts: tuple[Part, Part], ended: threading.Event) -> Outcome:
    """What training comes to, or what is saved if its user stops it while it waits for nodes and cannot hear.

    Ray Train starts a worker group again after a failure, and waits for its nodes without a word.
    """
    results: list[Outcome] = []
    errors: list[BaseException] = []

    def train() -> None:
        try:
            results.append(cast("Outcome", trainer.fit().return_value))
        except BaseException as error:  # noqa: BLE001  raised below
            errors.append(error)

    training = threading.Thread(target=train, name="ray-train-fit", daemon=True)
    training.start()
    notice = Notice(patience_s=BRIEF_S)
    while training.is_alive() and not ended.is_set():
        training.join(LOOK_S)
        try:
            now = read_status()
            lacked_s = notice(waits_for(*parts, now), now)
        except ray.exceptions.RayError:  # a control store that does not answer shows in training soon enough
            continue
        if lacked_s > BRIEF_S and _unheard_s(run_dir) > BRIEF_S:
            return _saved(run_dir)
    if errors:
        raise errors[0]
    return results[0] if results else _saved(run_dir)


def _stop_asked(run_dir: Path) -> bool:
    return (run_dir / "stop").exists()


def _unheard_s(run_dir: Path) -> float:
    """For how many seconds the file `stop` has been there without a sign of life from rank 0.

    A checkpoint may take long, and is not to be cut off because another run of the job waits for nodes.
    """
    if not _stop_asked(run_dir) or read_json(run_dir / "progress.json").get("state") == "saving":
        return 0.0
    signs = [path for path in (run_dir / "stop", run_dir / "progress.json") if path.exists()]
    return time.time() - max(path.stat().st_mtime for path in signs)


def _saved(run_dir: Path) -> Outcome:
    """A run that was stopped before it could train on: what its last checkpoint holds."""
    saved = restart_point(run_dir)
    return Outcome(finished=finished_steps(saved) if saved else 0, checkpoint=str(saved) if saved else None)


class _Trainer(TorchTrainer):
    """Without Ray's cleaner of placement groups, for which every run would wait 12 s at its end.

    The cleaner asks the dashboard each second whether the controller lives, and an embedded cluster has none. It is not
    missed: a placement group ends with its job, and a sweep gives back what a dead trial held.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


class _Tapes:
    """Called by Ray Train at every start of a worker group: opens an attempt and gives its phase's tape from there.

    The restart point is evaluated here and nowhere else, and decides the phase; the ranks read the attempt's record.
    """

    def __init__(self, run: RunConfig, run_dir: str, owner: str) -> None:
        self.run, self.run_dir, self.owner = run, run_dir, owner

    def __call__(self) -> ray.data.Dataset:
        folder = Path(self.run_dir)
        shortage.refuse_to_repeat(folder, owner=self.owner)
        attempt = history.begin_attempt(folder, owner=self.owner, world=self.run.ranks)
        phase, clips = phase_at(self.run, attempt.start), self.run.train.clips
        return stream(
            phase.run,
            manifest_path=folder / "manifest.parquet",
            start=attempt.start * clips,
            first=phase.first * clips,
        )


class _Restarts(UserCallback):
    """Writes why a worker group ended beside its attempt's record, where display and report find it."""

    def __init__(self, run_dir: str) -> None:
        self.run_dir = run_dir

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train in its controller, before it decides on a restart."""
        newest = max(attempts.read_attempts(Path(self.run_dir)), default=1)
        reasons = {rank: cause(error) for rank, error in sorted(worker_exceptions.items())}
        attempts.record_end(Path(self.run_dir), newest, reasons)


def _rank(config: dict[str, Any]) -> Outcome:
    """What each worker runs."""
    run, folder = config["run"], Path(config["run_dir"])
    attempt = history.newest_attempt(folder, owner=config["owner"])
    phase = phase_at(run, attempt.start)
    tape = tape_of(phase, folder, start=attempt.start)
    shard = ray.train.get_dataset_shard("train")
    assert shard is not None, "the trainer was given this dataset"
    blocks = taken(shard, phase.run)

    def report(metrics: dict[str, Any], saved: Path | None) -> None:
        # Ray takes about one report per poll, so it hears of checkpoints only; it gets their path and not the folder,
        # which is ours to write and to prune.
        if saved is not None:
            ray.train.report({**metrics, "checkpoint": str(saved)})

    return take_part(
        run,
        folder,
        attempt,
        batches(blocks, tape, micro_batch=phase.run.micro_batch),
        tape=tape,
        device=ray.train.torch.get_device() if config["gpus"] else None,
        report=report,
    )


def cause(error: BaseException) -> str:
    """The exception that Ray wrapped, several layers deep, as one message that a user can act on."""
    inner: Any = error
    while True:
        failures = getattr(inner, "worker_failures", None)
        deeper = min(failures.values(), key=_is_aftermath) if failures else getattr(inner, "_base_exc", None)
        deeper = deeper or getattr(inner, "cause", None) or getattr(inner, "controller_failure", None)
        if deeper is None:
            break
        inner = deeper
    if isinstance(inner, ray.exceptions.ActorDiedError):
        return "a worker's process died (killed, out of memory, or its node was lost)"
    text = str(inner).strip()
    if isinstance(inner, ray.exceptions.OutOfMemoryError):
        return f"{shortage.KILLED}: Ray ended a worker ({text.partition('. ')[0]})"
    return text if type(inner) in (RuntimeError, ValueError) and text else f"{type(inner).__name__}: {text}"


def _is_aftermath(error: BaseException) -> bool:
    """Whether it may be what other ranks meet in a collective when one is out of memory."""
    return not cause(error).startswith(shortage.SHORT)
