"""A space of knobs to search: axes by dotted key, read from YAML and checked without running anything."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from rayjepa.config.resolve import ConfigError, read_named, shipped

Kind = Literal["uniform", "loguniform", "quniform", "int", "choice"]
Value = float | int | str | bool | None
KINDS: dict[Kind, str] = {
    "uniform": "[low, high]",
    "loguniform": "[low, high], low above 0",
    "quniform": "[low, high, step]",
    "int": "[low, high] or [low, high, step], both ends included",
    "choice": "[value, value, …]",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One knob and the values it may take."""

    key: str
    """Dotted key of the knob."""
    kind: Kind
    values: tuple[Value, ...]
    """Lowest and highest value, or all of a choice."""
    step: float | int | None = None
    """Distance of neighbours, of kinds quniform and int."""

    @property
    def low(self) -> float | int:
        """Lowest value of an axis of numbers."""
        return cast("float | int", self.values[0])

    @property
    def high(self) -> float | int:
        """Highest value of an axis of numbers."""
        return cast("float | int", self.values[-1])

    def holds(self, value: object) -> bool:
        """Whether a trial may have this value."""
        if self.kind == "choice":
            return any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in self.values)
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        if self.step is None:
            return True
        steps = (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-9)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What a sweep searches, by which number, and how long."""

    axes: tuple[Axis, ...]
    grace_steps: int
    """Finished steps before a trial may be stopped early."""
    metric: str = "collapse/rankme"
    """Held-out health metric that trials are chosen by."""
    mode: Literal["max", "min"] = "max"
    """Whether a higher or a lower metric is better."""
    trials: int = 16
    """Trials in all."""
    concurrent: int = 2
    """Trials at once."""
    reduction: float | int = 2
    """Of the trials that come to a rung, about one in so many goes on; rungs are at grace_steps x reduction^k."""
    seed: int = 0
    """Of the search."""
    fixed: Mapping[str, object] = dataclasses.field(default_factory=dict[str, object])
    """Overrides that every trial has, such as fewer steps; those of the command line come after them."""

    def __post_init__(self) -> None:
        if not self.axes:
            raise ConfigError("axes is empty: a space needs at least one knob to search")
        for name in ("grace_steps", "trials", "concurrent"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} must be at least 0")
        if not self.reduction > 1:
            raise ConfigError(f"reduction={self.reduction:g} must be above 1")


def spaces() -> dict[str, Path]:
    """Names and files of the spaces that ship with the package."""
    return shipped("presets", "spaces")


def read_space(name: str) -> Space:
    """The space of a shipped name or a YAML file.

    Raises:  ConfigError that names the file, the field or axis, its value, and what is allowed or nearest.
    """
    path, loaded = read_named("space", name, spaces())
    try:
        return parse_space(loaded)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_space(loaded: object) -> Space:
    """The space that a mapping describes.

    Raises:  ConfigError as of `read_space`.
    """
    if not isinstance(loaded, Mapping):
        raise ConfigError("a space is a mapping with `axes` and `grace_steps`")
    tree = dict(cast("Mapping[str, Any]", loaded))
    fields = {f.name: f for f in dataclasses.fields(Space)}
    for name in tree:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1, cutoff=0.5)
            hint = f"; nearest: {near[0]}" if near else ""
            raise ConfigError(f"unknown field {name}{hint}; a space has {', '.join(fields)}")
    for name in ("axes", "grace_steps"):
        if name not in tree:
            raise ConfigError(f"{name} is missing")
    for name, value in tree.items():
        _typed(name, value)
    axes = cast("Mapping[str, Any]", tree.pop("axes"))
    return Space(axes=tuple(_axis(key, text) for key, text in axes.items()), **tree)


def dump_space(space: Space) -> dict[str, Any]:
    """Plain mapping with `parse_space(dump_space(space)) == space`."""
    axes = {axis.key: {axis.kind: [*axis.values, *([] if axis.step is None else [axis.step])]} for axis in space.axes}
    return {
        "axes": axes,
        **{f.name: getattr(space, f.name) for f in dataclasses.fields(Space) if f.name not in ("axes", "fixed")},
        "fixed": dict(space.fixed),
    }


def _typed(name: str, value: object) -> None:
    match name:
        case "axes":
            fits, form = isinstance(value, Mapping), "a mapping such as {masks.ratio: {uniform: [0.6, 0.9]}}"
        case "fixed":
            fits, form = isinstance(value, Mapping), "a mapping such as {train.steps: 100}"
        case "metric":
            fits, form = isinstance(value, str), "a name"
        case "mode":
            fits, form = value in ("max", "min"), "max or min"
        case "reduction":
            fits, form = isinstance(value, int | float) and not isinstance(value, bool), "a number above 1"
        case _:
            fits, form = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    if not fits:
        raise ConfigError(f"{name}={value!r} must be {form}")


def _axis(key: str, text: object) -> Axis:
    if not isinstance(text, Mapping) or len(cast("Mapping[str, Any]", text)) != 1:
        kinds = ", ".join(f"{kind}: {form}" for kind, form in KINDS.items())
        raise ConfigError(f"{key}: write one kind with its values; kinds are {kinds}")
    kind, values = next(iter(cast("Mapping[str, Any]", text).items()))
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1, cutoff=0.4)
        hint = f"; nearest: {near[0]}" if near else ""
        raise ConfigError(f"{key}: unknown kind {kind}{hint}; kinds are {', '.join(KINDS)}")
    if not isinstance(values, list | tuple):
        raise ConfigError(f"{key}: {kind}={values!r} must be {KINDS[kind]}")
    items = list(cast("list[Any]", values))
    return _choice(key, items) if kind == "choice" else _range(key, kind, items)


def _choice(key: str, values: list[Any]) -> Axis:
    if len(values) < 2 or len({repr(v) for v in values}) < len(values):
        raise ConfigError(f"{key}: choice={values} must be at least two different values; one goes under `fixed`")
    for value in values:
        if not isinstance(value, int | float | str | bool | None):
            raise ConfigError(f"{key}: a choice is between single values, not {value!r}")
    return Axis(key=key, kind="choice", values=tuple(values))


def _range(key: str, kind: Kind, values: list[Any]) -> Axis:
    counts = {"quniform": (3,), "int": (2, 3)}.get(kind, (2,))
    if len(values) not in counts:
        raise ConfigError(f"{key}: {kind}={values} must be {KINDS[kind]}")
    low, high, *rest = (_number(key, kind, value) for value in values)
    step = rest[0] if rest else 1 if kind == "int" else None
    if low >= high:
        said = "one value goes under `fixed`" if low == high else "write the lower one first"
        raise ConfigError(f"{key}: the bounds {low}, {high} do not rise; {said}")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"{key}: loguniform needs bounds above 0, not {low}")
    if step is not None:
        steps = (high - low) / step if step > 0 else 0.5
        if not math.isclose(steps, round(steps), abs_tol=1e-9):
            raise ConfigError(f"{key}: steps of {step} do not lead from {low} to {high}")
    return Axis(key=key, kind=kind, values=(low, high), step=step)


def _number(key: str, kind: Kind, value: object) -> float | int:
    """A bound, also where YAML reads it as text (1e-4); whole for kind int."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
        if not math.isfinite(number) or (kind == "int" and number != int(number)):
            raise ValueError
    except ValueError:
        whole = "whole " if kind == "int" else ""
        raise ConfigError(f"{key}: {value!r} is not a {whole}number; {kind} takes {KINDS[kind]}") from None
    return int(number) if kind == "int" else number
