"""The verb `index`: what sources name as a manifest, on this machine or on a cluster."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rayjepa.cli.counting import counting
from rayjepa.cli.pairs import overrides_from
from rayjepa.config import RunConfig, resolve
from rayjepa.data.index import indexing
from rayjepa.data.index.indexing import Duplicates
from rayjepa.data.index.probing import Look, Spread, Threads, Verify

log = logging.getLogger(__name__)

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")
_KEY = re.compile(r"\w+(\.\w+)+=")


def index(
    words: Sequence[str],
    *,
    out: Path,
    labels: Path | None,
    verify: Verify,
    hashes: bool,
    duplicates: Duplicates,
    fresh: bool,
) -> int:
    """Write the manifest of the sources among `words`, whose other words are key=value; print what it holds."""
    sources, pairs = parted(words)
    if _URL.match(str(out)):
        raise ValueError(f"--out {out} is a URL; write the manifest to a file here, or on a mount, and copy it")
    keys = overrides_from(pairs)
    look = Look(cfg=resolve(None, keys).data, verify=verify, hashes=hashes)
    what = f"index {', '.join(sources)}" + (", decoding all of it" if verify == "full" else "")
    all_cpus = "cluster.decoders" not in keys
    options = {"labels": labels, "duplicates": duplicates, "fresh": fresh}
    try:
        with _spread(resolve(None, keys), look, all_cpus=all_cpus) as spread, counting(what, "files") as progress:
            made = indexing.update(sources, out, look=look, spread=spread, progress=progress, **options)
    except KeyboardInterrupt:
        log.error("stopped: what is finished is kept beside %s; go on with the same command", out)
        return 130
    print(made.videos.summary())
    if made.change is not None:
        print(f"since {out} was written: {made.change}")
    if made.keep_split:
        print(
            f"{made.keep_split} of its videos keep their split, though data.holdout={look.cfg.holdout} would now give "
            "them the other; move the file away to split anew"
        )
    print(f"wrote {out}")
    return 0


def parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sources, NAME=SOURCE among them, and key=value words, whose keys have a dot.

    Raises:  ValueError if there is no source.
    """
    pairs = [word for word in words if _KEY.match(word) and not Path(word).exists()]
    sources = [word for word in words if word not in pairs]
    if not sources:
        raise ValueError("no SOURCE: name a folder, glob, list, shard, file or URL to index")
    return sources, pairs


@contextmanager
def _spread(run: RunConfig, look: Look, *, all_cpus: bool) -> Iterator[Spread]:
    """The actors of the cluster that is named, if one is, else threads here."""
    from rayjepa.on_ray.cluster import address_of, cluster

    if address_of(run) is None:
        yield Threads(look)
        return
    # Nothing is trained: workers would only reserve CPUs.
    alone = replace(run, cluster=replace(run.cluster, workers=0))
    with cluster(alone):
        from rayjepa.on_ray.indexing import Actors

        most = None if all_cpus else run.cluster.most_decoders
        actors = Actors(look, most=most, label=run.cluster.decode_label)
        log.info("up to %d processes of the cluster look at files (cluster.decoders)", actors.most)
        yield actors
