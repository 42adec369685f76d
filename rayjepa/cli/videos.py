"""The videos of a run, from the words that name them: read, indexed or made, and merged into one manifest."""

import logging
from dataclasses import dataclass
from pathlib import Path

from rayjepa.cli.counting import counting
from rayjepa.config import DataConfig, RunConfig, Stream, phases_of, streams_of
from rayjepa.data import synthetic
from rayjepa.data.index import indexing
from rayjepa.data.index.paths import FILE
from rayjepa.data.index.probing import Verify
from rayjepa.data.index.sources import is_manifest
from rayjepa.data.manifest import Manifest
from rayjepa.data.merge import merged, of_source
from rayjepa.data.tape import Tape
from rayjepa.data.twin import Twin, in_memory, opened

log = logging.getLogger(__name__)


def videos_of(run: RunConfig) -> Manifest | Twin:
    """The manifest of a run, of all that its streams draw from: read, indexed, or of synthetic videos made now.

    Raises:  ValueError if a stream would have nothing to train on, a video be trained on and held out, or masks leave
             nothing, in any phase.
    """
    from rayjepa.masks import splits_for

    streams = streams_of(run)
    wanted = dict.fromkeys(part for stream in streams for part in _parts_of(stream, run))
    if len(wanted) == 1 and (part := next(iter(wanted))).is_plain:
        videos = _videos(part, run)
    else:
        videos = merged([(part.stream, _of_source(in_memory(_videos(part, run)), part.source)) for part in wanted])
    _require_apart(videos)
    for phase in phases_of(run):
        sample = Tape(phase.run, videos).spec(0)
        for stream in streams_of(phase.run):
            splits_for(stream.run, step=phase.first, specs=[sample])
    return videos


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Videos that a run names."""

    videos: str | None
    """As data.videos names them; none: synthetic ones."""
    stream: str | None
    """The stream that they are of; none: the run."""
    source: str | None
    """The source that they are of; none: their manifest says it, if it is to be known."""

    @property
    def is_plain(self) -> bool:
        """Whether their manifest is that of the run as it is."""
        return self.stream is None and self.source is None


def _parts_of(stream: Stream, run: RunConfig) -> list[_Part]:
    """What a stream draws from: data.videos, and the videos of its sources."""
    data = stream.run.data if stream.source is not None else run.data
    own = [source for source in data.sources if source.videos is not None and source.weight]
    parts = [_Part(videos=source.videos, stream=stream.source, source=source.name) for source in own]
    if data.videos is not None or len(own) < len([source for source in data.sources if source.weight]) or not own:
        parts.insert(0, _Part(videos=data.videos, stream=stream.source, source=None))
    return parts


def _videos(part: _Part, run: RunConfig) -> Manifest | Twin:
    data = next((s.run.data for s in streams_of(run) if s.source == part.stream), run.data)
    where = "" if part.stream is None else f"stream {part.stream}: "
    where += "" if part.source is None else f"source {part.source}: "
    source = part.videos or str(_synthetic(data))
    if is_manifest(source):
        videos = opened(Path(source.removeprefix(FILE)).expanduser(), scratch=run.data.scratch)
    else:
        videos = indexed(source, data)
    log.info("%s%s", where, videos.summary())
    return videos


def _of_source(videos: Manifest, source: str | None) -> Manifest:
    return videos if source is None else of_source(videos, source)


def _require_apart(videos: Manifest | Twin) -> None:
    """Warn of paths that a stream would draw twice a pass.

    Raises:  ValueError if one is trained on and held out too.
    """
    found = videos.repeats
    if found.leaks:
        raise ValueError(
            f"{found.leaks:,} path(s) of the manifest are trained on in one row and held out in another, first: "
            f"{found.leak}; make it again with `rayjepa index`, which has each path once"
        )
    if found.twice:
        log.warning(
            "warning: %s row(s) repeat the path of another, first: %s; each is drawn once a pass, so these videos come "
            "more often than others",
            f"{found.twice:,}",
            found.first,
        )


def indexed(source: str, cfg: DataConfig, *, labels: Path | None = None, verify: Verify = "quick") -> Manifest:
    """The manifest of a source, with a line of progress."""
    what = f"index {source}" if verify == "quick" else f"index {source}, decoding all of it"
    with counting(what, "files") as progress:
        return indexing.index(source, cfg=cfg, labels=labels, verify=verify, hashes=False, progress=progress)


def _synthetic(cfg: DataConfig) -> Path:
    home = Path(cfg.cache).expanduser()
    with counting(f"synthetic videos in {home}", "files") as progress:
        return synthetic.make(home, cfg.synthetic_videos, progress=progress)
