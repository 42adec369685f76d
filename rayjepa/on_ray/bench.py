"""`rayjepa bench feed`: how fast clips come, stage by stage, in one cluster and in interleaved rounds."""

import dataclasses
import threading
import time
from pathlib import Path

import ray

from rayjepa.config import RunConfig
from rayjepa.data import manifest
from rayjepa.data.decoder import Decoder
from rayjepa.data.tape import Tape
from rayjepa.on_ray.stream import stream


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FeedRound:
    """One interleaved round, in clips per second of wall time."""

    decode: float
    """Decoders alone, as many as the stream's decode actors, nothing behind them."""
    stream: float
    """The same clips through Ray Data into trainers that take and drop, from their first batch on."""
    first_batch_s: float
    """Seconds from the stream's start to its first batch."""


def rounds(run: RunConfig, *, manifest_path: Path, count: int, clips: int) -> list[FeedRound]:
    """Measure `count` rounds of about `clips` clips on the connected cluster."""
    steps = max(2, -(-clips // run.train.clips))
    short = dataclasses.replace(run, train=dataclasses.replace(run.train, steps=steps))
    return [_round(short, manifest_path) for _ in range(count)]


def _round(run: RunConfig, manifest_path: Path) -> FeedRound:
    decode = decode_alone(run, manifest_path)
    streamed, first = stream_alone(run, manifest_path)
    return FeedRound(decode=decode, stream=streamed, first_batch_s=first)


def decode_alone(run: RunConfig, manifest_path: Path) -> float:
    """Clips per second of `cluster.decoders` decoders with nothing behind them; their start-up is not counted."""
    tape = Tape(run, manifest.read(manifest_path))
    blocks = [range(i, i + run.micro_batch) for i in range(0, run.samples, run.micro_batch)]
    lock, ready = threading.Lock(), threading.Barrier(run.cluster.decoders + 1)

    def work() -> None:
        with Decoder(run.data) as decoder:
            decoder.clips([tape.spec(0)], tape.spec)
            ready.wait()
            while True:
                with lock:
                    if not blocks:
                        return
                    block = blocks.pop(0)
                decoder.clips([tape.spec(i) for i in block], tape.spec)

    threads = [threading.Thread(target=work) for _ in range(run.cluster.decoders)]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    return run.samples / (time.monotonic() - began)


def stream_alone(run: RunConfig, manifest_path: Path) -> tuple[float, float]:
    """Clips per second of the stream into null trainers after their first batch, and seconds to that batch."""
    splits = stream(run, manifest_path=manifest_path, start=0).streaming_split(run.ranks, equal=True)
    began = time.time()
    results = ray.get([_drain.remote(split, run.micro_batch, run.cluster.prefetch) for split in splits])
    first = max(r[0] for r in results)
    clips = sum(r[2] for r in results)
    return clips / (max(r[1] for r in results) - first), first - began


@ray.remote(num_cpus=0)
def _drain(split: ray.data.DataIterator, size: int, prefetch: int) -> tuple[float, float, int]:
    """Take and drop; (time of the first batch, time of the end, clips after the first batch)."""
    first, clips = 0.0, 0
    for batch in split.iter_batches(batch_size=size, prefetch_batches=prefetch, batch_format="numpy"):
        if not first:
            first = time.time()
        else:
            clips += len(batch["index"])
    return first, time.time(), clips
