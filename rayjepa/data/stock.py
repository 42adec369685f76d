"""The videos that one stream draws from: by source, each with its weight, and those that are held out."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int64

from rayjepa.config import DataConfig, Stream
from rayjepa.config.parts import VIDEO
from rayjepa.data.choice import READ, Choice, Videos, images, is_null
from rayjepa.data.columns import equals
from rayjepa.data.lookup import whole
from rayjepa.data.manifest import span_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Videos of which each comes once before any comes again."""

    name: str | None
    """As the manifest has it; none: all videos of the stream, whatever their sources."""
    weight: float
    """Share of the stream's samples over the sum of all weights."""
    rows: Int64[np.ndarray, " m"]
    """Rows of the manifest, rising; mapped, if the manifest is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What a stream has to draw from."""

    sources: tuple[Source, ...]
    """At least one, none of them empty, all weights above 0."""
    held_out: Int64[np.ndarray, " m"]
    """Rows for health and probes."""
    held_out_is_train: bool
    """No video is held out, so these are training videos."""


def stock_of(stream: Stream, videos: Videos) -> Stock:
    """The videos of `stream`: those of its own data.videos or, if it has none, of the run's.

    Raises:  ValueError if no video is left to train on, or sources and weights do not fit.
    """
    data = stream.run.data
    weights: dict[str, float] = {source.name: source.weight for source in data.sources if source.weight}
    names = tuple(sorted(weights)) if data.sources else None
    train, held_out = (_choice(stream, split) for split in ("train", "holdout"))
    if names is None:
        rows = videos.chosen(train)[None]
        sources = (Source(name=None, weight=1.0, rows=rows),)
    else:
        parts = {name: rows for name, rows in videos.chosen(replace(train, by_source=True)).items() if len(rows)}
        _require_fit(stream, videos, parts)
        sources = tuple(Source(name=name, weight=weights[name], rows=parts[name]) for name in weights)
        rows = videos.chosen(replace(train, sources=names))[None]
    if not len(rows):
        raise ValueError(_why_empty(stream, videos))
    out = videos.chosen(held_out if names is None else replace(held_out, sources=names))[None]
    return Stock(sources=sources, held_out=out if len(out) else rows, held_out_is_train=len(out) == 0)


def _choice(stream: Stream, split: Any) -> Choice:
    data = stream.run.data
    return Choice(
        stream=stream.source,
        split=split,
        images=data.frames == 1,  # an image that is repeated to a clip is no clip
        least_s=span_s(data) if data.short_videos == "skip" else 0.0,
    )


def _require_fit(stream: Stream, videos: Videos, train: Mapping[str | None, Any]) -> None:
    """Raises:  ValueError if a source has no weight, or a weight no source that could be trained on."""
    where, data = _where(stream), stream.run.data
    weights: dict[str, float] = {source.name: source.weight for source in data.sources}
    if loose := [name for name in train if name is not None and name not in weights]:
        count = sum(len(train[name]) for name in loose)
        raise ValueError(
            f"{where}data.sources gives no weight to {', '.join(loose)} ({count:,} training videos of the manifest); "
            f"add {{name: {loose[0]}, weight: W}}, where weight 0 leaves it out"
        )
    if None in train:
        raise ValueError(
            f"{where}{len(train[None]):,} training videos have no source, so data.sources gives them no weight; index "
            "them again as `rayjepa index NAME=SOURCE`, or name them by data.sources[].videos"
        )
    empty = [name for name, weight in weights.items() if weight and name not in train]
    if not empty:
        return
    held_out = videos.chosen(replace(_choice(stream, "holdout"), by_source=True))
    known = [name for name in {**train, **held_out} if name is not None]
    lost = empty[0]
    if lost in held_out and len(held_out[lost]):
        raise ValueError(
            f"{where}all {len(held_out[lost])} usable videos of source {lost} are held out; lower data.holdout, or "
            "give it weight 0"
        )
    near = difflib.get_close_matches(lost, known, n=1, cutoff=0)
    raise ValueError(
        f"{where}data.sources[{lost}] names a source of which the manifest has no video to train on; "
        + (f"it has {', '.join(sorted(known))} (nearest: {near[0]})" if near else "no video of it names a source")
    )


def _where(stream: Stream) -> str:
    return "" if stream.name == VIDEO else f"stream {stream.name}: "


def _why_empty(stream: Stream, videos: Videos) -> str:
    """One sentence with the remedy."""
    data, where = stream.run.data, _where(stream)
    own = usable = train = moving = 0
    longest = 0.0
    for table in videos.scan(READ):
        of = {name: whole(table.column(name)) for name in READ}
        mine = is_null(of["stream"]) if stream.source is None else equals(of["stream"], stream.source)
        good = mine & equals(of["status"], "ok")
        kept = good & equals(of["split"], "train")
        own, usable, train = own + int(mine.sum()), usable + int(good.sum()), train + int(kept.sum())
        moving += int((kept & ~images(of["container"])).sum())
        longest = max([longest, *of["duration_s"].to_numpy(zero_copy_only=False)[kept].tolist()])
    if not usable:
        return f"{where}none of the manifest's {own} videos is usable; index a source that holds videos"
    if not train:
        return (
            f"{where}all {usable} usable videos are held out; index them again with data.holdout below {data.holdout}"
        )
    if data.frames > 1 and not moving:
        return (
            f"{where}all {train} training files are images, and clips have data.frames={data.frames}; set it to 1, or "
            "name videos by data.videos"
        )
    return _too_short(where, train, longest, data)


def _too_short(where: str, train: int, longest: float, data: DataConfig) -> str:
    return (
        f"{where}all {train} training videos last less than a clip's {span_s(data):.2f} s (longest: {longest:.2f} s) "
        "and data.short_videos=skip; set it to repeat, lower data.frames or raise data.fps"
    )
