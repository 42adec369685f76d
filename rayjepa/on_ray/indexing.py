"""Files looked at by a pool of actors, wherever the cluster has CPUs: rows of a listing in, rows of a manifest out."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import ray
import ray.data
import ray.exceptions
from ray.data import ActorPoolStrategy, DataContext

from rayjepa.data.columns import SCHEMA
from rayjepa.data.decoder import Decoder
from rayjepa.data.index.probing import Look, described
from rayjepa.data.index.shards import members
from rayjepa.on_ray.placement import selector

Columns = dict[str, Any]

ROWS = 64
"""Files in one block: some tenths of a second of work, and so the order of the answer's delay."""
WAVE = 1 << 18
"""Files in one execution: its blocks are in the object store before the first is looked at."""


class ProbeActor:
    """Rows of a listing in, rows of the manifest out; owns one decoder child for its life."""

    def __init__(self, look: Look) -> None:
        self.look = look
        self.decoder = Decoder(look.cfg).__enter__()

    def __call__(self, rows: Columns) -> Columns:
        """Shapes:  table (n,) -> table (n,): Arrow tables as bytes, of listed rows and of the manifest's."""
        return {"table": np.array([self._looked_at(data) for data in rows["table"]], object)}

    def _looked_at(self, data: bytes) -> bytes:
        found = [described(row, self.decoder, self.look) for row in _unpacked(data).to_pylist()]
        return _packed(pa.Table.from_pylist(found, schema=SCHEMA))


class ShardActor:
    """Shards in, what is in each out."""

    def __call__(self, rows: Columns) -> Columns:
        """Shapes:  table (n,) -> table (n,): Arrow tables as bytes, each of one shard."""
        shards = [_unpacked(data).to_pylist()[0] for data in rows["table"]]
        inside = [members(shard["uri"], shard["bytes"], shard["modified"]) for shard in shards]
        return {"table": np.array([_packed(table) for table in inside], object)}


class Actors:
    """Looks at files on the connected cluster."""

    def __init__(self, look: Look, *, most: int | None, label: str | None) -> None:
        """`most` actors of one CPU each, none: as many as the cluster has; on nodes with `label`, if there is one."""
        self.look, self.label = look, label
        self.most = most or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def members(self, shards: pa.Table) -> Iterator[pa.Table]:
        """What each shard holds, in any order.

        Raises:  RuntimeError if the actors cannot work.
        """
        return self._mapped(ShardActor, (), shards, size=1)

    def probed(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Rows of the manifest, in any order.

        Raises:  RuntimeError if the actors cannot work.
        """
        for first in range(0, len(rows), WAVE):
            yield from self._mapped(ProbeActor, (self.look,), rows.slice(first, WAVE), size=ROWS)

    def _mapped(self, actor: Callable[..., Any], words: tuple[Any, ...], rows: pa.Table, *, size: int) -> Iterator[Any]:
        _settle(self.label)
        pieces = [_packed(rows.slice(first, size)) for first in range(0, len(rows), size)]
        most = min(self.most, len(pieces))
        pool = ActorPoolStrategy(  # half at once, since Ray Data adds the others one by one
            min_size=max(1, most // 2), max_size=most, max_tasks_in_flight_per_actor=2
        )
        done = (
            ray.data.from_arrow(pa.table({"table": pa.array(pieces, pa.large_binary())}))
            .repartition(target_num_rows_per_block=1)
            .map_batches(actor, fn_constructor_args=words, batch_size=None, compute=pool, num_cpus=1)
        )
        try:
            for batch in done.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
                yield from map(_unpacked, batch["table"])
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise RuntimeError(f"the actors that look at files have failed: {cause}") from error


def _settle(label: str | None) -> None:
    """Settings of Ray Data for this use."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans and progress are not for this display
    context = DataContext.get_current()
    context.execution_options.preserve_order = False  # a long video must not hold up what is found of short ones
    context.execution_options.label_selector = selector(label) or None
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    # An actor may die with its node; Ray Data starts another and retries its block.
    context.max_consecutive_actor_init_deaths = 3


def _packed(table: pa.Table) -> bytes:
    """A table as bytes: Ray Data would make one schema of all blocks, and labels differ from shard to shard."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _unpacked(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()
