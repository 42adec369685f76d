"""The verb `pretrain`: from words to a finished run, or to one that can be resumed."""

import logging
import threading
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path

from rayjepa.cli.derived import derived, require_one_model, warnings_of
from rayjepa.cli.display import display
from rayjepa.cli.stopping import stop_on_signal
from rayjepa.cli.videos import videos_of
from rayjepa.config import RunConfig, describe, resolve, settled
from rayjepa.data.twin import opened
from rayjepa.train import folder
from rayjepa.train.accepting import accept, require_same
from rayjepa.train.outcome import Outcome

log = logging.getLogger(__name__)


def pretrain(preset: str, overrides: Mapping[str, object]) -> int:
    """Train a new run."""
    run = resolve(preset, overrides)
    require_one_model(run)
    require_init(run)
    videos = videos_of(run)
    run_dir, run = folder.create(run, videos, preset=Path(preset).stem)
    del videos  # from here on everybody has the run's own, mapped
    return _train(run, run_dir)


def pretrain_or_resume(preset: str, overrides: Mapping[str, object]) -> int:
    """Train a new run, or continue the one of this name: the same words serve a launcher that starts them again.

    Raises:  ValueError if the run of this name has another configuration.
    """
    run = settled(resolve(preset, overrides))
    if run.name is None:
        raise ValueError("--or-resume needs name=…: the name says which run is to be continued")
    run_dir = Path(run.out).expanduser() / run.name
    if not run_dir.exists():
        return pretrain(preset, overrides)
    saved, _ = folder.reopen(run_dir, {})
    pairs = [(knob.key, attrgetter(knob.key)(saved), attrgetter(knob.key)(run)) for knob in describe()]
    changed = [f"{key}: {old} -> {new}" for key, old, new in pairs if old != new and key != "out"]
    if changed:
        raise ValueError(
            f"{run_dir} has another configuration ({'; '.join(changed)}): choose another name=…, or change it "
            f"openly with `rayjepa pretrain --resume {run_dir} key=value`"
        )
    log.info("%s exists: continuing it", run_dir)
    return resume(run_dir, {})


def resume(run_dir: Path, overrides: Mapping[str, object], *, new: Path | None = None) -> int:
    """Continue a run from its last checkpoint, or from the start if it has none; over the manifest `new` if given."""
    run, changed = folder.reopen(run_dir, overrides)
    for line in changed:
        log.info("changed on resume: %s", line)
    require_one_model(run)
    if new is not None and (alive := folder.driver_alive(run_dir)):
        raise RuntimeError(f"{run_dir.name} is being trained by {alive}; stop that first, then accept another manifest")
    told = require_same(run, run_dir) if new is None else accept(run, run_dir, new.expanduser())
    for line in told:
        log.info("%s", line)
    if _finished(run_dir) >= run.steps:
        whole = f"{len(run.phases) + 1} phases with {run.steps} steps" if run.phases else f"train.steps={run.steps}"
        more = "one more phase, or a longer last one," if run.phases else "a larger one"
        log.info("%s has finished all of %s; %s trains on", run_dir, whole, more)
        return 0
    return _train(run, run_dir.resolve())


def _train(run: RunConfig, run_dir: Path) -> int:
    from rayjepa.report import write_report

    owner = folder.claim(run_dir)
    log.info("run %s", run_dir)
    videos = opened(run_dir / "manifest.parquet", scratch=run.data.scratch)
    for line in derived(run, videos, finished=_finished(run_dir)):
        log.info("%s", line)
    for line in warnings_of(run):
        log.warning("warning: %s", line)

    def nothing_to_save() -> bool:
        """Before rank 0 says anything no step can have been trained."""
        return not (run_dir / "progress.json").exists()

    with stop_on_signal(run_dir, says="saving, then stopping", at_once=nothing_to_save) as stopped:
        try:
            outcome = _in_process(run, run_dir, owner) if run.cluster.workers == 0 else _on_ray(run, run_dir, owner)
        except KeyboardInterrupt:
            folder.conclude(run_dir, "stopped", finished=_finished(run_dir))
            log.error("stopped; continue with: rayjepa pretrain --resume %s", run_dir)
            raise
        except (RuntimeError, ValueError) as error:
            folder.conclude(run_dir, "failed", finished=_finished(run_dir), reason=str(error))
            _page(write_report, run_dir)
            _say_traces(run_dir)
            log.error("continue with: rayjepa pretrain --resume %s", run_dir)
            raise
    state = "finished" if outcome.finished >= run.steps else "failed" if outcome.reason else "stopped"
    folder.conclude(run_dir, state, finished=outcome.finished, reason=outcome.reason)
    page = _page(write_report, run_dir)
    _say_traces(run_dir)
    if state == "finished":
        log.info("finished %d steps; checkpoint %s", outcome.finished, outcome.checkpoint)
        log.info("report %s", page)
        return 0
    if outcome.reason:
        log.error("rayjepa: %s", outcome.reason)
    log.error(
        "%s at step %d of %d; continue with: rayjepa pretrain --resume %s",
        state,
        outcome.finished,
        run.steps,
        run_dir,
    )
    return 130 if stopped.asked else 1


def require_init(run: RunConfig) -> None:
    """Raises:  ValueError if model.init holds no weights for the run's model: known before anything is started."""
    if run.model.init is not None:
        from rayjepa.interop.start import require_start  # torch, which takes seconds to import

        require_start(run)


def _on_ray(run: RunConfig, run_dir: Path, owner: str) -> Outcome:
    from rayjepa.on_ray.cluster import cluster

    with cluster(run, logs=run_dir / "ray-logs"):
        from rayjepa.on_ray.trainer import fit

        def watch(waiting: threading.Thread) -> None:
            with display(run, run_dir) as refresh:
                while waiting.is_alive():
                    waiting.join(0.5)
                    refresh()
                    folder.beat(run_dir)

        return fit(run, run_dir, owner=owner, watch=watch)


def _in_process(run: RunConfig, run_dir: Path, owner: str) -> Outcome:
    from rayjepa.train.session import alone

    done = threading.Event()

    def refresh_until_done() -> None:
        with display(run, run_dir) as refresh:
            while not done.wait(0.5):
                refresh()
                folder.beat(run_dir)
            refresh()

    # The loop keeps the main thread, so that a debugger and Ctrl-C find it there.
    showing = threading.Thread(target=refresh_until_done, name="display", daemon=True)
    showing.start()
    try:
        return alone(run, run_dir, owner=owner)
    finally:
        done.set()
        showing.join()


def _say_traces(run_dir: Path) -> None:
    """Where the traces of profile.steps are, those of earlier attempts too."""
    for trace in sorted((run_dir / "profile").glob("*.json.gz")):
        table = trace.name.removesuffix(".json.gz") + ".txt"
        log.info("trace %s: open it at ui.perfetto.dev or in chrome://tracing; a table is in %s", trace, table)


def _finished(run_dir: Path) -> int:
    """Steps that the last checkpoint holds."""
    from rayjepa.train.checkpoint import finished_steps, restart_point

    saved = restart_point(run_dir)
    return 0 if saved is None else finished_steps(saved)


def _page(write_report: Callable[[Path], Path], run_dir: Path) -> Path | None:
    """The report; its failure must not hide how the run ended."""
    try:
        return write_report(run_dir)
    except (OSError, ValueError) as error:
        log.warning("no report: %s", error)
        return None
