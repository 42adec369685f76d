"""Videos made anew by a pool of actors: jobs in, outcomes out, in whatever order they are done."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import ray.exceptions
from ray.data import ActorPoolStrategy, DataContext

from rayjepa.config import DataConfig, RunConfig
from rayjepa.data.clip import Place
from rayjepa.data.decoder import Decoder
from rayjepa.data.jobs import Job
from rayjepa.data.recipe import Recipe
from rayjepa.data.transcode import Outcome, make

Columns = dict[str, Any]


class TranscodeActor:
    """Jobs in, outcomes out; owns one decoder child, which also encodes, for its life."""

    def __init__(self, cfg: DataConfig, folder: str, recipe: Recipe) -> None:
        self.decoder = Decoder(cfg).__enter__()
        self.folder, self.recipe = Path(folder), recipe

    def __call__(self, rows: Columns) -> Columns:
        """Shapes:  job (n,) JSON text -> outcome (n,) JSON text."""
        outcomes = [make(self.decoder, job_of(text), folder=self.folder, recipe=self.recipe) for text in rows["job"]]
        return {"outcome": np.array([json.dumps(asdict(outcome)) for outcome in outcomes], object)}


def outcomes(run: RunConfig, jobs: Sequence[Job], *, folder: Path, recipe: Recipe) -> Iterator[Outcome]:
    """What becomes of each job, as soon as it is known, on the connected cluster.

    Raises:  RuntimeError if the actors cannot work.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans and progress are not for this display
    context = DataContext.get_current()
    context.execution_options.preserve_order = False  # a long video must not hold up the record of short ones
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    # An actor may die with its node; Ray Data starts another and retries its block.
    context.max_consecutive_actor_init_deaths = 3
    table = pa.table({"job": [json.dumps(asdict(job)) for job in jobs]})
    actors = ActorPoolStrategy(size=min(run.cluster.decoders, len(jobs)), max_tasks_in_flight_per_actor=2)
    done = (
        ray.data.from_arrow(table)
        .repartition(target_num_rows_per_block=1)
        .map_batches(
            TranscodeActor,
            fn_constructor_args=(run.data, str(folder), recipe),
            batch_size=None,
            compute=actors,
            num_cpus=1,
        )
    )
    try:
        for batch in done.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
            for text in batch["outcome"]:
                fields = json.loads(text)
                yield Outcome(**{**fields, "source": tuple(fields["source"])})
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise RuntimeError(f"the transcoding actors have failed: {cause}") from error


def job_of(text: str) -> Job:
    """The job that a row of the stream holds."""
    fields = json.loads(text)
    place = None if fields["place"] is None else Place(*fields["place"][:4])
    return Job(**{**fields, "source": tuple(fields["source"]), "place": place})
