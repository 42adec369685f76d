"""`rayjepa bench feed`: how fast clips come, stage by stage, in one cluster and in interleaved rounds."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray

from rayjepa.config import RunConfig, phases_of, prefetch_of
from rayjepa.data import manifest
from rayjepa.data.decoders import Decoders
from rayjepa.data.tape import Tape
from rayjepa.on_ray.stream import stream


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FeedRound:
    """One interleaved round, in clips per second of wall time."""

    decode: float
    """Decoders alone, as many as the stream's decode actors, nothing behind them."""
    stream: float
    """The same clips through Ray Data into trainers that take and drop."""
    first_batch_s: float
    """Seconds from the stream's start to its first batch."""


def rounds(run: RunConfig, *, manifest_path: Path, count: int, clips: int) -> list[FeedRound]:
    """Measure `count` rounds of about `clips` clips on the connected cluster."""
    steps = max(8, -(-clips // run.train.clips))
    main = phases_of(run)[0].run
    short = dataclasses.replace(main, train=dataclasses.replace(run.train, steps=steps))
    return [_round(short, manifest_path) for _ in range(count)]


def _round(run: RunConfig, manifest_path: Path) -> FeedRound:
    decode = decode_alone(run, manifest_path)
    streamed, first = stream_alone(run, manifest_path)
    return FeedRound(decode=decode, stream=streamed, first_batch_s=first)


def decode_alone(run: RunConfig, manifest_path: Path) -> float:
    """Clips per second of `cluster.decoders` decoders with nothing behind them, over what `stream_alone` times."""
    tape = Tape(run, manifest.read(manifest_path))
    blocks = [range(i, i + run.micro_batch) for i in range(0, run.samples, run.micro_batch)]
    lock, ready, done = threading.Lock(), threading.Barrier(run.cluster.decoders), list[float]()

    def work() -> None:
        try:
            with Decoders(run) as decoder:
                decoder.clips([tape.spec(0)], tape.spec)
                ready.wait()
                while True:
                    with lock:
                        if not blocks:
                            return
                        block = blocks.pop(0)
                    decoder.clips([tape.spec(i) for i in block], tape.spec)
                    done.append(time.monotonic())
        except BaseException:
            ready.abort()  # the others must not wait for this one
            raise

    with ThreadPoolExecutor(run.cluster.decoders) as pool:
        threads = [pool.submit(work) for _ in range(run.cluster.decoders)]
    failed = [
        error for t in threads if (error := t.exception()) and not isinstance(error, threading.BrokenBarrierError)
    ]
    if failed:
        raise failed[0]
    quarter = len(done) // 4
    return (len(done) - 1 - quarter) * run.micro_batch / (done[-1] - done[quarter])


def stream_alone(run: RunConfig, manifest_path: Path) -> tuple[float, float]:
    """Clips per second of the stream into null trainers, and seconds to its first batch.

    The rate is of the last three quarters: what was decoded ahead of the first batch must not count.
    """
    splits = stream(run, manifest_path=manifest_path, start=0).streaming_split(run.ranks, equal=True)
    began = time.time()
    taken = ray.get([_drain.remote(split, run.micro_batch, prefetch_of(run)) for split in splits])
    quarter = len(taken[0]) // 4
    from_s, to_s = max(times[quarter] for times in taken), max(times[-1] for times in taken)
    clips = sum(len(times) - 1 - quarter for times in taken) * run.micro_batch
    return clips / (to_s - from_s), max(times[0] for times in taken) - began


@ray.remote(num_cpus=0)
def _drain(split: ray.data.DataIterator, size: int, prefetch: int) -> list[float]:
    """Take and drop; the time of each batch."""
    return [time.time() for _ in split.iter_batches(batch_size=size, prefetch_batches=prefetch, batch_format="numpy")]
