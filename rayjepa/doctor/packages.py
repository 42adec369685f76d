"""Python and the packages against what this one asks for."""

import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rayjepa.doctor.finding import Check, Finding, error, ok

SHOWN = ("ray", "torch", "deepspeed", "av", "numpy", "pyarrow")
"""Packages whose versions are listed even when all is well."""
OPTIONAL = {"optuna-dashboard": "shows a sweep while it runs"}


def package_checks() -> list[Check]:
    return [Check("python", python), Check("packages", packages), Check("optional packages", optional)]


def python() -> Finding:
    """The interpreter against the package's own minimum."""
    version, place = platform.python_version(), sys.prefix
    allowed = str(_own().get("requires_python", ""))
    if not SpecifierSet(allowed).contains(version, prereleases=True):
        remedy = f"python{allowed.lstrip('>=')} -m venv .venv, and install rayjepa there"
        return error("python", f"{version} in {place}; this package needs {allowed}", remedy)
    return ok("python", f"{version} in {place}")


def packages() -> Finding:
    """Every package that this one requires, with the extras it asks for, against the versions it allows."""
    amiss = sorted(set(unmet(metadata.requires("rayjepa") or [])))
    if amiss:
        remedy = "pip install -c cluster/constraints.txt . (in the repository), or: pip install " + " ".join(
            f"'{line.split(':')[0]}'" for line in amiss
        )
        return error("packages", "; ".join(amiss), remedy)
    return ok("packages", ", ".join(f"{name} {metadata.version(name)}" for name in SHOWN))


def optional() -> list[Finding]:
    """What is good to have; its absence is no fault."""
    lines: list[Finding] = []
    for name, use in OPTIONAL.items():
        version = installed(name)
        found = f"{name} {version}" if version else f"{name} is not installed: it {use} (pip install {name})"
        lines.append(ok("optional", found))
    return lines


def installed(name: str) -> str | None:
    """Version of a package; None if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def unmet(requirements: list[str], extras: tuple[str, ...] = ("",)) -> Iterator[str]:
    """`requirement: what is there instead`, for each that is not met; the extras of a requirement are followed once."""
    for line in requirements:
        wanted = Requirement(line)
        if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        version = installed(wanted.name)
        if version is None:
            yield f"{wanted.name}{wanted.specifier}: not installed"
        elif not wanted.specifier.contains(version, prereleases=True):
            yield f"{wanted.name}{wanted.specifier}: {version} is installed"
        elif wanted.extras:
            own = [need for need in metadata.requires(wanted.name) or [] if "extra" in need]
            yield from unmet(own, tuple(wanted.extras))


def _own() -> dict[str, Any]:
    try:
        return metadata.metadata("rayjepa").json
    except metadata.PackageNotFoundError:
        raise RuntimeError("rayjepa is used from its folder and was not installed: pip install -e .") from None
