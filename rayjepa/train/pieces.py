"""The shard files of a checkpoint: named tensors in pieces that know nothing of ranks or engines."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Kind = Literal["master", "exp_avg", "exp_avg_sq", "step", "target", "buffer"]
Key = tuple[str, str]
"""(kind, name)"""
Tensors = Mapping[Key, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one rank holds of a named tensor: a live view, without padding.

    Shapes:  data is 1-D, elements [start, start + len) of the flattened tensor of `shape`; it may be empty, so that
             every rank knows every name.
    """

    kind: Kind
    name: str
    shape: tuple[int, ...]
    start: int
    data: Tensor
    replicated: bool
    """Every rank holds this same piece."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a stretch of a named tensor lies."""

    start: int
    length: int
    file: Path
    key: str


def whole(kind: Kind, name: str, tensor: Tensor) -> Piece:
    """The piece of a tensor that every rank holds in full."""
    return Piece(kind=kind, name=name, shape=tuple(tensor.shape), start=0, data=tensor.data.view(-1), replicated=True)


def untrained(
    jepa: nn.Module, target: nn.Module, *, piece: Callable[[Kind, str, Tensor], Piece] = whole
) -> Iterator[Piece]:
    """Pieces of what no optimizer steps: frozen parameters, saved buffers, and the target under the encoder's names."""
    trained = {name for name, parameter in jepa.named_parameters() if parameter.requires_grad}
    for name, tensor in jepa.state_dict(keep_vars=True).items():
        if name not in trained:
            yield piece("buffer", name, tensor)
    for name, tensor in target.state_dict(keep_vars=True).items():
        yield piece("target", name.removeprefix("encoder."), tensor)


def shard_path(folder: Path, rank: int) -> Path:
    """The file of one rank."""
    return folder / f"shard-{rank:05d}.safetensors"


def write_shard(folder: Path, pieces: Iterable[Piece], *, rank: int, world: int) -> None:
    """Write what `rank` owns of its pieces, synced to disk; pieces that all ranks hold are cut evenly between them."""
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for piece in pieces:
        shapes[f"{piece.kind}|{piece.name}"] = list(piece.shape)
        start, data = piece.start, piece.data
        if piece.replicated:
            low, high = cut(data.numel(), rank=rank, world=world)
            start, data = start + low, data[low:high]
        if data.numel():
            tensors[f"{piece.kind}|{piece.name}|{start}"] = data.detach().cpu().clone()
    path = shard_path(folder, rank)
    save_file(tensors, path, metadata={"shapes": json.dumps(shapes)})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_index(folder: Path, *, shards: int) -> tuple[dict[Key, tuple[int, ...]], dict[Key, list[Stored]]]:
    """Full shape and stored pieces of every tensor, from the headers of all shards.

    Raises:  RuntimeError if a shard is missing or torn, or if a tensor is not covered exactly once.
    """
    shapes: dict[Key, tuple[int, ...]] = {}
    stored: dict[Key, list[Stored]] = {}
    for rank in range(shards):
        path = shard_path(folder, rank)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                for text, shape in json.loads(metadata["shapes"]).items():
                    kind, name = text.split("|")
                    shapes[kind, name] = tuple(shape)
                for key in file.keys():  # noqa: SIM118  not a mapping
                    kind, name, start = key.split("|")
                    length = file.get_slice(key).get_shape()[0]
                    stored.setdefault((kind, name), []).append(Stored(int(start), length, path, key))
        except Exception as error:  # safetensors raises its own type, the file system others
            raise RuntimeError(f"{path} of {shards} shard(s) cannot be read: {error}") from error
    for key, shape in shapes.items():
        _covered(folder, key, stored.setdefault(key, []), math.prod(shape))
    return shapes, stored


@torch.no_grad()
def read_pieces(folder: Path, pieces: Sequence[Piece]) -> None:
    """Fill the live views of `pieces` from the shards in `folder`; only what overlaps is read.

    Raises:  RuntimeError naming every tensor that is missing, not expected, or of another shape.
    """
    shards = len(list(folder.glob("shard-*.safetensors")))
    shapes, stored = read_index(folder, shards=shards)
    _same_tensors(folder, {(p.kind, p.name): p.shape for p in pieces}, shapes)
    files = {path: safe_open(path, framework="pt") for path in (shard_path(folder, r) for r in range(shards))}
    steps: dict[int, tuple[str, float]] = {}
    for piece in pieces:
        for part in stored[piece.kind, piece.name]:
            low, high = max(part.start, piece.start), min(part.start + part.length, piece.start + piece.data.numel())
            if low >= high:
                continue
            data = files[part.file].get_slice(part.key)[low - part.start : high - part.start]
            if data.dtype != piece.data.dtype:
                raise RuntimeError(f"{folder}: {piece.kind} of {piece.name} is {data.dtype}, here {piece.data.dtype}")
            if piece.kind == "step":
                _same_step(folder, piece, float(data[0]), steps)
            piece.data[low - piece.start : high - piece.start].copy_(data)


@torch.no_grad()
def fill_pieces(pieces: Iterable[Piece], tensors: Tensors) -> None:
    """Fill the live views of `pieces` from whole tensors, as far as there are any; the others stay as they are."""
    for piece in pieces:
        tensor = tensors.get((piece.kind, piece.name))
        if tensor is not None:
            assert tuple(tensor.shape) == piece.shape, f"{piece.name} is {tuple(tensor.shape)}, here {piece.shape}"
            piece.data.copy_(tensor.reshape(-1)[piece.start : piece.start + piece.data.numel()])


def _same_step(folder: Path, piece: Piece, value: float, seen: dict[int, tuple[str, float]]) -> None:
    """ZeRO counts steps once for many parameters, so their counts have to be equal."""
    name, first = seen.setdefault(piece.data.data_ptr(), (piece.name, value))
    if first != value:
        raise RuntimeError(
            f"{folder}: {name} was stepped {first:.0f} times and {piece.name} {value:.0f} times, "
            "but this engine counts both together; load it with train.engine=plain"
        )


def cut(length: int, *, rank: int, world: int) -> tuple[int, int]:
    """Bounds of the rank's even share of `length` elements."""
    each = -(-length // world)
    return min(length, rank * each), min(length, (rank + 1) * each)


def _covered(folder: Path, key: Key, parts: list[Stored], length: int) -> None:
    parts.sort(key=lambda part: part.start)
    at = 0
    for part in parts:
        if part.start != at:
            wrong = "is missing" if part.start > at else "is there twice"
            raise RuntimeError(f"{folder}: {key[0]} of {key[1]} {wrong} at element {min(at, part.start)} of {length}")
        at += part.length
    if at != length:
        raise RuntimeError(f"{folder}: {key[0]} of {key[1]} ends at element {at} of {length}")


def _same_tensors(folder: Path, here: dict[Key, tuple[int, ...]], there: dict[Key, tuple[int, ...]]) -> None:
    def listed(keys: Iterable[Key]) -> str:
        names = sorted(f"{kind} of {name}" for kind, name in keys)
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    wrong: list[str] = []
    if missing := here.keys() - there.keys():
        wrong.append(f"lacks {listed(missing)}")
    if extra := there.keys() - here.keys():
        wrong.append(f"has {listed(extra)}, which this model has not")
    for key in sorted(here.keys() & there.keys()):
        if here[key] != there[key]:
            wrong.append(f"has {key[0]} of {key[1]} with shape {list(there[key])}, here {list(here[key])}")
    if wrong:
        raise RuntimeError(f"{folder} does not fit this model: it {'; it '.join(wrong[:6])}")
