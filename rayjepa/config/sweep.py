"""A sweep before it starts: preset, space and overrides as one checked plan, and the run of each of its trials."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from rayjepa.config.resolve import ConfigError, describe, dotted, dump, lists, resolve
from rayjepa.config.run import RunConfig
from rayjepa.config.space import Axis, Space, Value, dump_space, parse_space

CORNERS = 512
"""Combinations of the axes' ends that are checked all together; of more, each pair of axes is."""
INNER = 64
"""Values of an axis of whole numbers up to which each is checked."""
MEASURE = "decides what the score is measured on, so scores of two trials would not compare"
HOW = "does not change what is learned"
NO_AXIS = {
    "name": "is given to each trial by the sweep",
    "out": "is given to each trial by the sweep",
    "seed": "would reward luck",
    "train.steps": "is the time axis of early stopping; give all trials the same under `fixed`",
    "cluster.": HOW,
    "report.": HOW,
    "checkpoint.": HOW,
    "zero.": HOW,
    "health.": MEASURE,
    "model.width": MEASURE + " (the ceiling is min(clips, model.width))",
    "model": MEASURE + " (the ceiling is min(clips, model.width)); give all trials the same under `fixed`",
    "data.": MEASURE,
}
"""Why a key, or a section, is no axis."""
FREE_DATA = ("data.flip", "data.clips_per_video", "data.window_scale", "data.window_aspect")
"""Keys of data that held-out clips do not obey."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What a sweep does, whole: it is written to sweep.yaml, and a resume goes by that alone."""

    preset: str
    space: Space
    base: RunConfig
    """The run of every trial but for its axes: preset, the space's `fixed`, and the command line's overrides."""

    def trial(self, knobs: Mapping[str, Value], *, name: str, out: Path) -> RunConfig:
        """The run of one trial, in the folder `out`/`name`.

        Raises:  ConfigError if the knobs do not go together.
        """
        return resolve(None, {**dotted(dump(self.base)), **knobs, "name": name, "out": str(out)})

    def defaults(self) -> dict[str, Value] | None:
        """The base's own values of the axes, if all of them lie on the axes."""
        flat = dotted(dump(self.base))
        own = {axis.key: cast("Value", flat[axis.key]) for axis in self.space.axes}
        return own if all(axis.holds(own[axis.key]) for axis in self.space.axes) else None


def plan_sweep(preset: str, space: Space, overrides: Mapping[str, object]) -> Sweep:
    """The sweep of a preset over a space, every end of every axis resolved.

    Raises:  ConfigError that names the axis, its value, and what is allowed.
    """
    names = {axis.key for axis in space.axes}
    for key in (*dotted(overrides), *dotted(space.fixed)):
        if key in names:
            raise ConfigError(f"{key} is an axis of the space: it cannot be given a value too")
    sweep = Sweep(preset=preset, space=space, base=resolve(preset, {**dotted(space.fixed), **dotted(overrides)}))
    kinds = {knob.key: knob.kind for knob in describe()} | {"model": "str"}  # a size, by its name
    for axis in space.axes:
        _check(sweep, axis, kinds.get(axis.key))
    for knobs in _corners(space.axes):
        _resolved(sweep, knobs)
    return sweep


def sweep_text(sweep: Sweep) -> str:
    """YAML text of a sweep, to be read back by `read_sweep`."""
    tree = {"preset": sweep.preset, "space": dump_space(sweep.space), "base": dump(sweep.base)}
    return yaml.safe_dump(lists(tree), sort_keys=False, allow_unicode=True)


def read_sweep(path: Path) -> Sweep:
    """The sweep in a file.

    Raises:  ConfigError if it is none, or does not fit this version.
    """
    try:
        tree = yaml.safe_load(path.read_text())
        return Sweep(preset=tree["preset"], space=parse_space(tree["space"]), base=resolve(None, tree["base"]))
    except (OSError, KeyError, TypeError, yaml.YAMLError, ConfigError) as error:
        raise ConfigError(f"{path} does not describe a sweep of this version of rayjepa: {error}") from None


def differences(run: RunConfig) -> dict[str, Any]:
    """What of a run differs from the defaults, nested as a preset is; not its name, folder and cluster address."""
    tree: dict[str, Any] = {}
    plain = dotted(dump(RunConfig()))
    for key, value in dotted(dump(run)).items():
        if value == plain[key] or key in ("name", "out", "cluster.address"):
            continue
        section, _, last = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[last] = value
    return cast("dict[str, Any]", lists(tree))


def _check(sweep: Sweep, axis: Axis, kind: str | None) -> None:
    """Every end, every choice and, where they are few, every whole number between the ends."""
    if kind is not None:
        for prefix, reason in NO_AXIS.items():
            covers = axis.key.startswith(prefix) if prefix.endswith(".") else axis.key == prefix
            if covers and axis.key not in FREE_DATA:
                raise ConfigError(f"{axis.key} is no axis of a sweep: it {reason}")
        if "int" in kind.split("|") and "float" not in kind.split("|") and axis.kind not in ("int", "choice"):
            raise ConfigError(f"{axis.key} takes whole numbers: use int or choice, not {axis.kind}")
    first = {other.key: other.values[0] for other in sweep.space.axes}
    for value in _inner(axis):
        _resolved(sweep, first | {axis.key: value})
    if inert := _inert(axis.key, sweep.base):
        raise ConfigError(f"{axis.key} would have no effect on any trial: {inert}")


def _inner(axis: Axis) -> tuple[Value, ...]:
    if axis.kind == "int" and axis.step is not None:
        count = round((axis.high - axis.low) / axis.step) + 1
        if count <= INNER:
            return tuple(int(axis.low + i * axis.step) for i in range(count))
    return axis.values


def _inert(key: str, run: RunConfig) -> str:
    """Why a knob changes nothing in this run; empty if it does."""
    kind, blocks = run.masks.kind, ("multiblock", "ijepa")
    if key in ("masks.ratio", "masks.predict") and kind in blocks:
        return f"masks.kind={kind} does not obey it; add masks.kind=tube (or random) to `fixed` or the command line"
    if key in ("masks.truncate", "masks.group_size") and kind not in blocks:
        return f"masks.kind={kind} does not obey it; only multiblock and ijepa do"
    if key == "masks.group_size" and run.masks.truncate == "none" and not run.masks.same_positions:
        return "masks.truncate=none does not obey it"
    for other in blocks:
        if key.startswith(f"masks.{other}") and kind != other:
            return f"masks.kind={kind} does not obey it; only {other} does"
    return ""


def _corners(axes: tuple[Axis, ...]) -> Iterator[dict[str, Value]]:
    """Combinations of the axes' ends: mistakes that no axis shows alone."""
    ends = [[(axis.key, value) for value in axis.values] for axis in axes]
    if math.prod(len(values) for values in ends) <= CORNERS:
        yield from (dict(corner) for corner in itertools.product(*ends))
        return
    first = dict(values[0] for values in ends)
    for one, other in itertools.combinations(ends, 2):
        yield from (first | dict(pair) for pair in itertools.product(one, other))


def _resolved(sweep: Sweep, knobs: Mapping[str, Value]) -> None:
    try:
        sweep.trial(knobs, name="trial", out=Path("trials"))
    except ConfigError as error:
        if any(str(error).startswith(f"unknown key {key}") for key in knobs):
            raise
        guilty = [key for key in knobs if key in str(error)] or list(knobs)
        said = ", ".join(f"{key}={knobs[key]}" for key in guilty)
        raise ConfigError(f"the space allows {said}, which no run can have: {error}") from None
