"""The verb `job`: another verb as the driver of a Ray job, whose folder and node may be gone when it ends."""

import argparse
import json
import logging
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from rayjepa import __version__
from rayjepa.cli import VERBS, arguments, guarded, overrides_from
from rayjepa.cli.index import parted
from rayjepa.config import RunConfig, resolve
from rayjepa.data.index.sources import named
from rayjepa.data.storage.remote import is_remote
from rayjepa.on_ray.submission import LEAST_WAIT_S, STOP_WAIT

log = logging.getLogger(__name__)

STOP_WAIT_S = 600
"""Seconds that `rayjepa submit` gives a stopped job to save: a step and a checkpoint of a large model fit into it."""
SENDER = "RAYJEPA_SENT_BY"
"""Version of the rayjepa that submitted the job."""


def job(verb: str, words: Sequence[str]) -> int:
    """Run a verb on the cluster that runs this job; return the verb's exit status, after a line with its results."""
    args = arguments([verb, *words])
    if not os.environ.get("RAY_ADDRESS"):
        raise ValueError(
            f"no cluster runs this job: RAY_ADDRESS is not set. Send it with `rayjepa submit {verb} …`; "
            f"without a cluster, `rayjepa {verb} …`"
        )
    if (sender := os.environ.get(SENDER, __version__)) != __version__:
        raise RuntimeError(
            f"rayjepa {__version__} is installed on this cluster and the job was sent by {sender}; "
            "install the same on both sides"
        )
    if verb != "index" and (wait_s := float(os.environ.get(STOP_WAIT) or 3)) < LEAST_WAIT_S:
        log.warning(
            "warning: %s is %g s here: `ray job stop` kills this job that long after it asked it to stop, perhaps "
            'before a checkpoint is saved. Submit with --runtime-env-json \'{"env_vars": {"%s": "%d"}}\', as '
            "`rayjepa submit` does",
            STOP_WAIT,
            wait_s,
            STOP_WAIT,
            STOP_WAIT_S,
        )
    results = results_of(args)
    status = guarded(lambda: VERBS[verb](args))
    print(_said_of(verb, results), flush=True)
    return status


def results_of(args: argparse.Namespace, *, name: str | None = None) -> Path:
    """Where the job of these words leaves its results; a run without a name gets `name`, else preset and time.

    Raises:  ValueError if a path in the words would not outlive the job, or a key is wrong.
    """
    if args.verb == "index":
        sources, pairs = parted([*args.sources, *args.overrides])
        for source in sources:
            _need_absolute("SOURCE", named(source)[1], "/shared/clips")
        _need_absolute("--out", str(args.out), "/shared/clips.parquet")
        if args.labels is not None:
            _need_absolute("--labels", str(args.labels), "/shared/labels.csv")
        resolve(None, overrides_from(pairs))
        return args.out
    pairs = overrides_from(args.overrides)
    if "cluster.address" in pairs:
        raise ValueError("cluster.address: a job runs on the cluster that it was sent to; leave it out")
    if args.resume is not None:
        _need_absolute("--resume", str(args.resume), "/shared/runs/NAME")
        if args.verb == "pretrain" and args.accept_manifest is not None:
            _need_absolute("--accept-manifest", str(args.accept_manifest), "/shared/clips.parquet")
        return args.resume
    preset = args.preset or "demo"
    run = resolve(preset, pairs) if args.verb == "pretrain" else _swept(args, preset, pairs)
    _need_absolute("out", run.out, "out=/shared/runs")
    _need_absolute("data.cache", run.data.cache, "data.cache=/shared/cache")
    if run.data.videos is not None:
        _need_absolute("data.videos", run.data.videos, "data.videos=/shared/clips.parquet")
    if run.name is not None:
        return Path(run.out).expanduser() / run.name
    if args.verb == "pretrain" and args.or_resume:
        raise ValueError("--or-resume needs name=…: the name says which run is to be continued")
    name = name or f"{Path(preset).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    args.overrides = [*args.overrides, f"name={name}"]
    return Path(run.out).expanduser() / name


def _swept(args: argparse.Namespace, preset: str, pairs: Mapping[str, object]) -> RunConfig:
    """What the trials of a sweep have in common."""
    from rayjepa.config.space import read_space
    from rayjepa.config.sweep import plan_sweep

    if args.metric is not None:
        from rayjepa.health.scores import score_of

        score_of(args.metric)
    return plan_sweep(preset, read_space(args.space or "demo"), pairs).base


def _need_absolute(key: str, value: str, example: str) -> None:
    if not is_remote(value) and not Path(value).expanduser().is_absolute():
        raise ValueError(
            f"{key}={value} is relative: a job's folder goes with the job, and other nodes do not see it. "
            f"Give a path that every node sees, such as {example}"
        )


def _said_of(verb: str, results: Path) -> str:
    """The last line of the job's log."""
    if not results.exists():
        return f"results: none; {results} was not made"
    try:
        state = json.loads((results / "outcome.json").read_text())["state"]
    except (OSError, ValueError):  # a manifest, or a folder that another driver has
        return f"results: {results}"
    more = "" if state == "finished" else f"; go on with: rayjepa submit {verb} --resume {results}"
    return f"results: {results} ({state}){more}"
