"""One door for YAML, command line and sweep: `resolve(preset, overrides)`."""

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from rayjepa.config.run import RunConfig

_RUN = TypeAdapter(RunConfig)


class ConfigError(ValueError):
    """A user's mistake in the configuration; its text is complete without a traceback."""


@dataclasses.dataclass(frozen=True, slots=True)
class Knob:
    """One line of the help: dotted key, type, default, sentence."""

    key: str
    kind: str
    default: object
    help: str
    words: tuple[str, ...] = ()
    """The texts that are values by themselves: of masks.truncate, "none" is one."""


def presets() -> dict[str, Path]:
    """Names and files of the presets that ship with the package."""
    return shipped("presets")


def models() -> dict[str, Path]:
    """Names and files of the model sizes that ship with the package: keys of the section `model`."""
    return shipped("presets", "model")


def resolve(preset: str | None, overrides: Mapping[str, object]) -> RunConfig:
    """Build the run that a preset with overrides describes.

    `preset` is a shipped name, or the path of a YAML file. `overrides` maps dotted keys (`optim.lr`) or whole sections
    to values; text is read as YAML reads it, so a command line, a file and a sweep give the same run. Text for the
    section `model` is the name of a size, or a YAML file's path, and stands for its keys; what comes later wins.
    Raises:  ConfigError that names the key, its value, and what is allowed or nearest.
    """
    tree: dict[str, Any] = {} if preset is None else _mapping(*read_named("preset", preset, presets()))
    tree = _merge({}, dotted(tree))
    tree = _merge(tree, dotted(overrides))
    try:
        run = _RUN.validate_python(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    if run.phases or run.streams:
        from rayjepa.config.parts import phases_of, streams_of  # each part is resolved in its turn

        for phase in phases_of(run):
            streams_of(phase.run)
    return run


def dump(run: RunConfig) -> dict[str, Any]:
    """Plain nested dictionary of every knob, with `resolve(None, dump(run)) == run`."""
    return cast("dict[str, Any]", _RUN.dump_python(run, mode="python"))


def to_yaml(run: RunConfig) -> str:
    """YAML text of every knob, to be read back by `resolve`."""
    return yaml.safe_dump(lists(dump(run)), sort_keys=False, allow_unicode=True)


def describe() -> list[Knob]:
    """Every knob in the order of the sections."""
    return list(_knobs(RunConfig, ""))


def _knobs(owner: Any, prefix: str) -> Iterator[Knob]:
    info = owner.__pydantic_fields__
    for field in dataclasses.fields(owner):
        kind = info[field.name].annotation
        if dataclasses.is_dataclass(kind):
            yield from _knobs(kind, f"{prefix}{field.name}.")
        else:
            about = info[field.name]
            yield Knob(f"{prefix}{field.name}", _name(kind), about.default, about.description or "", _words(kind))


def _name(kind: Any) -> str:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "|".join(str(p) for p in parts)
    if origin is tuple:
        return "[" + ", ".join("…" if p is Ellipsis else _name(p) for p in parts) + "]"
    if parts:
        return "|".join(_name(p) for p in parts)
    return "none" if kind is type(None) else kind.__name__


def _words(kind: Any) -> tuple[str, ...]:
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return tuple(part for part in parts if isinstance(part, str))
    return tuple(word for part in parts for word in _words(part))


def shipped(*folders: str) -> dict[str, Path]:
    """YAML files in a folder of the package, by name."""
    folder = Path(str(resources.files("rayjepa"))).joinpath(*folders)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_named(what: str, name: str, known: Mapping[str, Path]) -> tuple[Path, object]:
    """File and content of a shipped name, or of a YAML file's path.

    Raises:  ConfigError if it is neither, with the nearest, or if the file is no YAML.
    """
    path = known.get(name, Path(name))
    if not path.is_file():
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; nearest: {near[0]}" if near else ""
        raise ConfigError(f"unknown {what} {name!r}: neither a file nor one of {', '.join(known)}{hint}")
    try:
        return path, yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable as YAML: {error}") from None


def _mapping(path: Path, loaded: object) -> dict[str, Any]:
    if loaded is not None and not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds {type(loaded).__name__}; it must be a mapping of keys")
    return cast("dict[str, Any]", loaded or {})


def dotted(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Dotted keys of a nested mapping; a mapping inside a list is a value."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= dotted(cast("Mapping[str, object]", value), f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _merge(tree: dict[str, Any], flat: Mapping[str, object]) -> dict[str, Any]:
    known = {k.key: k for k in describe()}
    for key, value in _sized(flat):
        if key not in known:
            raise ConfigError(_unknown(key, list(known)))
        at = tree
        *path, last = key.split(".")
        for part in path:
            at = at.setdefault(part, {})
        at[last] = _parse(value, known[key])
    return tree


def _sized(flat: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The pairs of `flat` in order, with the keys of a model's size in the place of its name."""
    for key, value in flat.items():
        if key == "model" and isinstance(value, str):
            yield from dotted(_mapping(*read_named("model", value, models())), "model.").items()
        else:
            yield key, value


def _unknown(key: str, known: list[str]) -> str:
    sections = {k.rsplit(".", 1)[0] for k in known if "." in k}
    if key in sections:
        return f"{key} is a section; its keys are {', '.join(k for k in known if k.startswith(key + '.'))}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if "." not in key:  # its section is missing, or it is one of the few that have none
        lasts = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
        near = [lasts[last] for last in difflib.get_close_matches(key, lasts, n=1, cutoff=0.6)]
    if not near:  # the last part may be right and the section wrong or missing
        near = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]][:1]
    return f"unknown key {key}" + (f"; nearest: {near[0]}" if near else "") + "; `rayjepa pretrain --help` lists all"


def _parse(value: object, knob: Knob) -> object:
    """Text as YAML reads it; text stays text where the knob is text (a path may look like a number)."""
    if not isinstance(value, str) or value in knob.words:
        return value
    if value.strip().lower() in ("none", "null", "") and "none" in knob.kind.split("|"):
        return None
    if "str" in knob.kind.split("|"):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _explain(error: ValidationError) -> str:
    """One line per mistake, each beginning with the dotted key."""
    lines: list[str] = []
    for e in error.errors():
        key = ".".join(str(p) for p in e["loc"] if not (isinstance(p, str) and p[:1].isupper()))
        if e["type"] == "value_error":  # our own sentence, which names the key already
            lines.append(str(e["ctx"]["error"]) if "ctx" in e else e["msg"])
        else:
            lines.append(f"{key}={e['input']!r}: {e['msg'][0].lower()}{e['msg'][1:]}")
    return "\n".join(dict.fromkeys(lines))


def lists(value: Any) -> Any:
    """The same with lists for tuples, which YAML cannot write."""
    if isinstance(value, dict):
        return {k: lists(v) for k, v in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [lists(v) for v in cast("list[Any]", value)]
    return value
