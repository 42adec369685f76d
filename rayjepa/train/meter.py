"""What happened since the last reading, kept on the device and shared by the ranks in one collective."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rayjepa.config import RunConfig, block_of
from rayjepa.data.batch import ClipBatch
from rayjepa.data.blocks import Timing
from rayjepa.data.clip import ClipSpec
from rayjepa.data.tape import micro_batch_ids
from rayjepa.train.engine import Engine, Step, gather_objects, gather_rows
from rayjepa.train.history import Range, merge
from rayjepa.train.ledger import entries

Metrics = dict[str, float | int]
TOTALS = ("loss/latent", "collapse/prediction_std")
"""What is the same quantity in every stream, whatever its masks, so that a mean over streams says something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """An interval of steps, as all ranks know it."""

    metrics: Metrics
    """Means over the steps that were taken, over micro-batches and ranks; empty if none was."""
    steps: int
    """Steps taken."""
    trained: list[Range]
    """Samples that the ranks say they trained on."""
    refused: list[dict[str, Any]]
    """step, reason, samples of each step that was passed over."""
    failures: list[dict[str, Any]]
    """Fields of each Failure, with step and substitute."""


@dataclass(slots=True)
class _Row:
    """One step on this rank."""

    step: int
    firsts: list[int]
    metrics: list[dict[str, Tensor]]
    began: float
    waited_s: float = 0.0
    took_s: float = 0.0
    feed: list[Timing] = field(default_factory=list[Timing])
    """What decoding its micro-batches took, where that is known."""
    transfer_s: float = 0.0
    refused: str | None = None
    host: dict[str, float] = field(default_factory=dict)


class Feed(NamedTuple):
    """An interval's seconds and bytes on this rank, or their means over ranks."""

    waited_s: float
    took_s: float
    transfer_s: float
    decode_s: float
    idle_s: float
    cpu_s: float
    read_s: float
    read_bytes: float
    actors: float
    """Decode actors that clips came from."""


def _feed(rows: list[_Row]) -> Feed:
    parts = [timing for row in rows for timing in row.feed]
    return Feed(
        waited_s=sum(row.waited_s for row in rows),
        took_s=sum(row.took_s for row in rows),
        transfer_s=sum(row.transfer_s for row in rows),
        decode_s=sum(part.decode_s for part in parts),
        idle_s=sum(part.idle_s for part in parts),
        cpu_s=sum(part.cpu_s for part in parts),
        read_s=sum(part.read_s for part in parts),
        read_bytes=sum(part.read_bytes for part in parts),
        actors=len({part.actor for part in parts}),
    )


class Meter:
    """Takes clips from the stream and checks them; remembers what each step did; `read` empties it."""

    def __init__(self, engine: Engine, run: RunConfig, batches: Iterator[ClipBatch]) -> None:
        self.engine, self.run, self.batches = engine, run, batches
        self.specs: list[ClipSpec] = []
        """Of the step being taken, on this rank."""
        self._rows: list[_Row] = []
        self._failures: list[dict[str, Any]] = []

    def take(self, step: int) -> Iterator[ClipBatch]:
        """The micro-batches of `step` on this rank.

        Raises:  RuntimeError if the stream ends, or holds other samples than the tape says.
        """
        row = _Row(step=step, firsts=[], metrics=[], began=time.perf_counter())
        self._rows.append(row)
        self.specs = []
        for micro in range(self.run.train.accumulation):
            began = time.perf_counter()
            clips = next(self.batches, None)
            row.waited_s += time.perf_counter() - began
            self._check(clips, step=step, micro=micro)
            assert clips is not None
            row.firsts.append(int(clips.index[0]))
            row.transfer_s += clips.transfer_s
            row.feed += [clips.timing] if clips.timing is not None else []
            self.specs.extend(clips.specs)
            self._failures += entries(clips, step=step)
            yield clips

    def saw(self, metrics: dict[str, Tensor], *, stream: str | None = None) -> None:
        """Remember a micro-batch's metrics, on the device: of a named stream as GROUP/STREAM_NAME, and TOTALS."""
        if stream is not None:
            own = {key.replace("/", f"/{stream}_", 1): value for key, value in metrics.items()}
            metrics = own | {key: metrics[key] for key in TOTALS if key in metrics}
        self._rows[-1].metrics.append(metrics)

    def stepped(self, taken: Step, rates: dict[str, float]) -> None:
        """Close the step; `rates` are numbers that are the same on all ranks, of which the last are reported."""
        row = self._rows[-1]
        row.refused, row.took_s = taken.refused, time.perf_counter() - row.began
        row.host = {"optim/grad_norm": taken.grad_norm, **rates}

    def read(self) -> Reading:
        """What the steps since the last reading did; one collective, and one more if a rank has failures to tell of."""
        rows, failures, self._rows, self._failures = self._rows, self._failures, [], []
        good = [row for row in rows if row.refused is None]
        names = sorted({name for row in good for metrics in row.metrics for name in metrics})
        shared = gather_rows(self._row(rows, good, names, len(failures))).cpu()
        if shared[:, 0].any():
            failures = [failure for each in gather_objects(failures) for failure in each]
        firsts = shared[:, -sum(len(row.firsts) for row in rows) :].long() if rows else shared[:, :0].long()
        trained: list[Range] = []
        refused: list[dict[str, Any]] = []
        for row, columns in zip(rows, firsts.split([len(row.firsts) for row in rows], dim=1), strict=True):
            size = self.run.train.clips // (self.engine.world * self.run.train.accumulation)
            samples = [[first, first + size] for first in columns.flatten().tolist()]
            if row.refused is None:
                trained += samples
            else:
                refused.append({"step": row.step, "reason": row.refused, "samples": merge(samples)})
        return Reading(
            metrics=self._metrics(good, names, shared.mean(dim=0).tolist()) if good else {},
            steps=len(good),
            trained=merge(trained),
            refused=refused,
            failures=sorted(failures, key=lambda f: (f["index"], f["attempt"])),
        )

    def _row(self, rows: list[_Row], good: list[_Row], names: list[str], failures: int) -> Tensor:
        """Failures, FEED, mean of each metric, and the first sample of each micro-batch."""
        device = self.engine.device
        feed = _feed(good)
        firsts = [float(first) for row in rows for first in row.firsts]
        means = [self._means(good, names)] if names else []
        front = torch.tensor([float(failures), *feed], dtype=torch.float64, device=device)
        return torch.cat([front, *means, torch.tensor(firsts, dtype=torch.float64, device=device)])

    def _means(self, good: list[_Row], names: list[str]) -> Tensor:
        """Mean of each metric over the micro-batches that have it: streams have their own, the same on every rank."""
        total = torch.zeros(len(names), dtype=torch.float64, device=self.engine.device)
        counts = torch.zeros_like(total)
        seen: dict[tuple[str, ...], list[Tensor]] = {}
        for metrics in (metrics for row in good for metrics in row.metrics):
            seen.setdefault(tuple(sorted(metrics)), []).append(torch.stack([metrics[name] for name in sorted(metrics)]))
        for kind, values in seen.items():
            at = torch.tensor([names.index(name) for name in kind], device=self.engine.device)
            total[at] += torch.stack(values).double().sum(dim=0).to(total.device)
            counts[at] += len(values)
        return total / counts

    def _metrics(self, good: list[_Row], names: list[str], mean: list[float]) -> Metrics:
        _, *shared = mean
        feed, rest = Feed(*shared[: len(Feed._fields)]), shared[len(Feed._fields) :]
        norms = [row.host["optim/grad_norm"] for row in good]
        return (
            dict(zip(names, rest[: len(names)], strict=True))
            | good[-1].host
            | {
                "optim/grad_norm": sum(norms) / len(norms),
                "optim/grad_norm_max": max(norms),
                "rate/clips_per_s": len(good) * self.run.train.clips / feed.took_s,
                "data/wait_ms": 1000 * feed.waited_s / len(good),
                "data/transfer_ms": 1000 * feed.transfer_s / len(good),
                "time/step_ms": 1000 * feed.took_s / len(good),
                "time/device_ms": 1000 * (feed.took_s - feed.waited_s) / len(good),
            }
            | self._decoding(feed, clips=len(good) * self.run.train.clips / self.engine.world)
        )

    def _decoding(self, feed: Feed, *, clips: float) -> Metrics:
        """What decoding `clips` clips took, as the decode actors say; empty where there are none."""
        if not feed.decode_s:
            return {}
        return {
            "data/decode_ms": 1000 * feed.decode_s / clips,
            "data/decode_cpu_ms": 1000 * feed.cpu_s / clips,
            "data/read_ms": 1000 * feed.read_s / clips,
            "data/read_mb": feed.read_bytes / clips / 1e6,
            "data/busy_share": feed.decode_s / (feed.decode_s + feed.idle_s),
            "data/actors": feed.actors,
            "data/blocks_per_s": clips * self.engine.world / feed.took_s / (block_of(self.run) * self.run.micro_batch),
        }

    def _check(self, clips: ClipBatch | None, *, step: int, micro: int) -> None:
        engine = self.engine
        ids = micro_batch_ids(self.run, world=engine.world, rank=engine.rank, step=step, micro=micro)
        where = f"step {step}, rank {engine.rank} of {engine.world}, micro-batch {micro}"
        if clips is None:
            raise RuntimeError(f"{where}: the stream ended; the tape has samples {ids.start} to {ids.stop - 1} here")
        if clips.index.tolist() != list(ids):
            found = clips.index.tolist()
            raise RuntimeError(
                f"{where}: the stream gave samples {_brief(found)}; the tape has {_brief(list(ids))} here. "
                "Nothing was trained on them; resume from the last checkpoint, and report it if it comes again"
            )


def _brief(ids: list[int]) -> str:
    """Ids in a line that stays short."""
    return str(ids) if len(ids) <= 8 else f"[{', '.join(map(str, ids[:4]))}, … {ids[-1]}] ({len(ids)})"
