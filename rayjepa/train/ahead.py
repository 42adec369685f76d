"""Whether what is decoded ahead covers a clip that does not come: said once, when steps have been timed."""

from collections.abc import Mapping

from rayjepa.config import RunConfig, prefetch_of


def seconds_ahead(run: RunConfig, *, step_s: float) -> float:
    """For how long each rank can train on the micro-batches that it holds ready.

    Units:   `step_s` is what a step takes when no clip has to be waited for.
    """
    return prefetch_of(run) * step_s / run.train.accumulation


def longest_wait_s(run: RunConfig, *, step_s: float) -> float:
    """For how long every rank may stand still for one clip that runs into its wall deadline at each try; 0: covered."""
    tries = 1 + run.data.retries
    return max(0.0, tries * run.data.decode_wall_s - seconds_ahead(run, step_s=step_s))


def cover(run: RunConfig, metrics: Mapping[str, float | int]) -> str:
    """A sentence on it for the log, from the metrics of a reporting interval; empty where nothing is decoded ahead."""
    if run.cluster.workers == 0 or "time/step_ms" not in metrics:
        return ""
    step_s = (metrics["time/step_ms"] - metrics["data/wait_ms"]) / 1000
    held = f"prefetch holds {_short(seconds_ahead(run, step_s=step_s))} of clips (cluster.prefetch)"
    wait_s = longest_wait_s(run, step_s=step_s)
    if not wait_s:
        return f"{held}: a clip that hangs is given up before a worker has to wait for it"
    return (
        f"{held}; a clip may take data.decode_wall_s={run.data.decode_wall_s:g} s, {1 + run.data.retries} times over "
        f"(data.retries): one that hangs makes all workers wait up to {_short(wait_s)}"
    )


def _short(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
