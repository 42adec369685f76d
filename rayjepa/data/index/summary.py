"""What a manifest holds, in a page of lines: by source, codec, size and length, what is bad and what is there twice."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Bool, Float64

from rayjepa.config import DataConfig
from rayjepa.data.choice import images
from rayjepa.data.columns import equals
from rayjepa.data.index.duplicates import SAME, repeated
from rayjepa.data.index.labels import PREFIX
from rayjepa.data.lookup import whole

SPLIT_FROM = 20
"""Usable videos from which on some are held out."""
SIDES = (144, 240, 360, 480, 720, 1080, 2160)
"""Upper bounds in pixels of the classes that short sides are counted in."""
MOST_SOURCES = 8
"""Sources with a line of their own."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_pc = cast("Any", pyarrow.compute)  # its functions are made at import time, unseen by a type checker


def summary(table: pa.Table, cfg: DataConfig | None = None) -> str:
    """Lines for a person on a manifest's table; with `cfg`, the short videos too."""
    usable = equals(whole(table.column("status")), "ok")
    pictures = images(whole(table.column("container"))) & usable
    good, found = int(usable.sum()), int(pictures.sum())
    what = "videos" if not found else "images" if found == good else "videos and images"
    lines = [f"{len(table)} {what}, {_size(_bytes(table).sum())}: {good} usable, {len(table) - good} bad"]
    lines += _by_source(table, usable)
    told = [*_usable(table, usable, pictures, cfg)] if good else []
    told += [*_twice(table), *_bad(table, usable)]
    if labels := [name.removeprefix(PREFIX) for name in table.column_names if name.startswith(PREFIX)]:
        told.append(("labels", ", ".join(labels)))
    width = max((len(key) for key, _ in told), default=0) + 1
    return "\n".join([*lines, *(f"{key + ':':<{width}} {text}" for key, text in told)])


def counts(column: pa.Array) -> str:
    """The five most frequent texts of a column with their counts."""
    values = column.drop_null().value_counts()
    order = _pc.sort_indices(values.field("counts"), sort_keys=[("", "descending")]).slice(0, 5)
    some = [f"{one['values']} ({one['counts']})" for one in values.take(order).to_pylist()]
    return ", ".join([*some, *([f"and {len(values) - 5} others"] if len(values) > 5 else [])])


def named(table: pa.Table, most: int) -> str:
    """The first bad rows, each with its reason."""
    rows = np.flatnonzero(~equals(whole(table.column("status")), "ok"))[:most]
    some = table.select(["uri", "reason"]).take(pa.array(rows)).to_pylist()
    return ", ".join(f"{row['uri']} ({row['reason']})" for row in some)


def _by_source(table: pa.Table, usable: Bool[np.ndarray, " n"]) -> Iterator[str]:
    """A table with a row for each source, if any has a name."""
    source = whole(table.column("source"))
    if source.null_count == len(source):
        return
    coded = source.fill_null("(none)").dictionary_encode()
    codes, names = coded.indices.to_numpy(), coded.dictionary.to_pylist()
    sums = [np.bincount(codes, weights=w, minlength=len(names)) for w in (None, usable, _hours(table), _bytes(table))]
    order = np.argsort(-sums[0], kind="stable")
    shown = [(names[k], *(float(column[k]) for column in sums)) for k in order[:MOST_SOURCES]]
    if rest := order[MOST_SOURCES:].tolist():
        shown.append((f"{len(rest)} others", *(float(column[rest].sum()) for column in sums)))
    width = max(len("source"), *(len(row[0]) for row in shown))
    yield f"  {'source':<{width}} {'videos':>10} {'usable':>10} {'bad':>8} {'hours':>10} {'size':>10}"
    for name, count, ok, hours, size in shown:
        yield f"  {name:<{width}} {count:>10.0f} {ok:>10.0f} {count - ok:>8.0f} {hours:>10.2f} {_size(size):>10}"


def _usable(
    table: pa.Table, usable: Bool[np.ndarray, " n"], pictures: Bool[np.ndarray, " n"], cfg: DataConfig | None
) -> Iterator[tuple[str, str]]:
    """Lines on the videos that can be used."""
    mask = pa.array(usable)
    found = int(pictures.sum())
    yield "codecs", counts(whole(table.column("codec")).filter(mask)) + (f"; {found} images" if found else "")
    if sizes := _sizes(table.select(["width", "height"]).filter(mask)):
        yield "sizes", sizes
    seconds = whole(table.column("duration_s")).to_numpy(zero_copy_only=False)[usable & ~pictures]
    if len(seconds):
        low, early, middle, late, high = np.quantile(seconds, (0, 0.05, 0.5, 0.95, 1))
        yield (
            "length",
            f"{low:.2f} to {high:.2f} s, median {middle:.2f} s, 5 to 95 %: {early:.2f} to {late:.2f} s, "
            f"{seconds.sum() / 3600:.2f} h in all",
        )
    yield "split", _split(table, usable)
    if cfg and (short := int(np.count_nonzero(seconds < (span_s := (cfg.frames - 1) / cfg.fps)))):
        fate = "never drawn" if cfg.short_videos == "skip" else "filled by repeating their last frame"
        yield "short", f"{short} usable videos last less than a clip's {span_s:.2f} s and are {fate}"
    yield from _reading(table, usable)


def _split(table: pa.Table, usable: Bool[np.ndarray, " n"]) -> str:
    split, good = whole(table.column("split")), int(usable.sum())
    train, holdout = (int(np.count_nonzero(usable & equals(split, name))) for name in ("train", "holdout"))
    few = f"fewer than {SPLIT_FROM} usable" if good < SPLIT_FROM else "none by data.holdout and hash of path"
    why = "" if holdout else f" ({few}): health is measured on training videos"
    return f"{train} train, {holdout} holdout{why}"


def _sizes(table: pa.Table) -> str:
    """Counts by short side."""
    short = np.minimum(*(table.column(name).to_numpy() for name in ("width", "height")))
    short = short[short > 0]
    of = np.bincount(np.searchsorted(SIDES, short), minlength=len(SIDES) + 1).tolist()
    names = [f"to {side}p" for side in SIDES] + [f"over {SIDES[-1]}p"]
    return ", ".join(f"{name} ({count})" for name, count in zip(names, of, strict=True) if count)


def _reading(table: pa.Table, usable: Bool[np.ndarray, " n"]) -> Iterator[tuple[str, str]]:
    """Lines on usable videos that are read slowly, or that a full decode found damaged."""
    if linear := int(np.count_nonzero(equals(whole(table.column("seek")), "linear") & usable)):
        yield (
            "seeks",
            f"{linear} usable videos are read from their first packet on, as seeks in them are not exact; "
            "`rayjepa transcode` makes them fast",
        )
    damaged = whole(table.column("damaged")).filter(pa.array(usable)).drop_null().to_numpy()
    if len(damaged):
        hurt, packets = int(np.count_nonzero(damaged)), int(damaged.sum())
        found = f"{packets} damaged packet(s) in {hurt} of them" if hurt else "no packet is damaged"
        yield "decoded in full", f"{len(damaged)} usable videos, {found}"


def _twice(table: pa.Table) -> Iterator[tuple[str, str]]:
    """A line on usable videos that have the bytes of one before them."""
    again, first = repeated(table)
    if not len(again):
        return
    split = whole(table.column("split"))
    across = int(np.count_nonzero(~_pc.equal(*(split.take(pa.array(r)) for r in (again, first))).to_numpy(False)))
    uri = whole(table.column("uri"))
    text = (
        f"{len(again)} usable videos have the bytes of one before them ({_size(_bytes(table)[again].sum())}), first: "
        f"{uri[again[0]].as_py()} = {uri[first[0]].as_py()}"
    )
    if across:
        text += f"; {across} of them are held out and trained on too: index with --duplicates drop"
    yield "duplicates", text


def _bad(table: pa.Table, usable: Bool[np.ndarray, " n"]) -> Iterator[tuple[str, str]]:
    """A line on what cannot be used and why."""
    rows = np.flatnonzero(~usable)
    if not len(rows):
        return
    reasons = whole(table.column("reason")).take(pa.array(rows))
    same = _pc.fill_null(_pc.starts_with(reasons, SAME), False)
    yield "bad", f"{counts(_pc.if_else(same, SAME + 'another', reasons))}; first: {named(table, 1)}"


def _bytes(table: pa.Table) -> Float64[np.ndarray, " n"]:
    return whole(table.column("bytes")).fill_null(0).to_numpy().astype(np.float64)


def _size(count: float) -> str:
    """Bytes for a person."""
    unit = min(int(np.log2(max(count, 1))) // 10, len(_UNITS) - 1)
    return f"{count / 1024**unit:.3g} {_UNITS[unit]}"


def _hours(table: pa.Table) -> Float64[np.ndarray, " n"]:
    return whole(table.column("duration_s")).fill_null(0.0).to_numpy() / 3600
