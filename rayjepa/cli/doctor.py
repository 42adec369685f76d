"""The verb `doctor`: every check, one line each, what to do about those that are not ok; and how a run was fed."""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from rayjepa.config import RunConfig, resolve
from rayjepa.doctor import Finding, State, carried_out, worst

STATUS: dict[State, int] = {"ok": 0, "error": 1, "warning": 3}
"""Exit status by the worst finding; 2 is a mistake in the words."""
COLOURS: dict[State, str] = {"ok": "32", "warning": "33", "error": "31"}
STATE_WIDE, NAME_WIDE = 9, 17


def doctor(
    preset: str,
    overrides: Mapping[str, object],
    *,
    address: str | None,
    storage: str | None,
    insecure: bool,
    out: Path | None,
) -> int:
    """Examine this machine, the runs' storage and, where an address is known, the cluster; return the exit status."""
    run = resolve(preset, overrides)
    address = address or run.cluster.address or os.environ.get("RAY_ADDRESS") or None
    folder = storage or run.out
    found = _shown(_groups(run, folder, address=address, insecure=insecure))
    everything = [finding for findings in found.values() for finding in findings]
    print(_verdict(everything, preset))
    return _ended(found, out, {"preset": preset, "address": address})


def doctor_feed(run_dir: Path, *, out: Path | None) -> int:
    """Say what held back the steps of a run, from its metrics; return the exit status."""
    from rayjepa.doctor.feed import feed_findings

    found = _shown(feed_findings(run_dir).items())
    match worst(finding for findings in found.values() for finding in findings):
        case "error":
            print("the devices wait for clips more than they work")
        case "warning":
            print("the devices wait for clips; the arrows say what to turn")
        case "ok":
            print("the stream keeps up with the devices")
    return _ended(found, out, {"run": str(run_dir)})


def _shown(groups: Iterable[tuple[str, Iterable[Finding]]]) -> dict[str, list[Finding]]:
    """The findings, each printed when it is found."""
    found: dict[str, list[Finding]] = {}
    for group, findings in groups:
        print(group)
        found[group] = []
        for finding in findings:
            found[group].append(finding)
            print("\n".join(_lines(finding)), flush=True)
        print()
    return found


def _ended(found: Mapping[str, list[Finding]], out: Path | None, about: Mapping[str, object]) -> int:
    """The exit status; what was found goes to `out`."""
    state = worst(finding for findings in found.values() for finding in findings)
    if out is not None:
        listed = [{"group": group, **asdict(finding)} for group, findings in found.items() for finding in findings]
        out.write_text(json.dumps({"worst": state, **about, "findings": listed}, indent=2))
    return STATUS[state]


def _groups(
    run: RunConfig, folder: str, *, address: str | None, insecure: bool
) -> Iterator[tuple[str, Iterable[Finding]]]:
    """Title and findings of each group; a finding is found when it is asked for."""
    from rayjepa.doctor.machine import machine_checks
    from rayjepa.doctor.storage import storage_checks

    alone = address is None
    yield "machine", (finding for check in machine_checks(run, alone=alone) for finding in carried_out(check))
    yield "storage", (finding for check in storage_checks(run, folder, alone=alone) for finding in carried_out(check))
    if address is not None:
        from rayjepa.on_ray.examine import examine

        yield f"cluster {address}", examine(run, address, Path(folder).expanduser().absolute(), insecure=insecure)


def _lines(finding: Finding) -> Iterator[str]:
    """The line of a finding, and its remedy below it; on a terminal both are folded to its width."""
    shown = sys.stdout.isatty()
    wide = max(60, shutil.get_terminal_size().columns) if shown else 10**6
    state = f"{finding.state:<{STATE_WIDE}}"
    margin = " " * (2 + STATE_WIDE + NAME_WIDE)
    head, *more = textwrap.wrap(finding.found, wide - len(margin)) or [""]
    yield f"  {_coloured(state, finding.state) if shown else state}{finding.name:<{NAME_WIDE}}{head}"
    yield from (margin + line for line in more)
    if finding.remedy:
        first, *rest = textwrap.wrap(finding.remedy, wide - len(margin) - 2)
        yield f"{margin}→ {first}"
        yield from (f"{margin}  {line}" for line in rest)


def _coloured(text: str, state: State) -> str:
    return f"\033[{COLOURS[state]}m{text}\033[0m"


def _verdict(findings: list[Finding], preset: str) -> str:
    counts = {state: sum(finding.state == state for finding in findings) for state in STATUS}
    said = f"{counts['error']} error(s), {counts['warning']} warning(s), {counts['ok']} ok"
    match worst(findings):
        case "error":
            return f"{said}: a run with preset {preset} would fail or be unsafe here"
        case "warning":
            return f"{said}: a run with preset {preset} can start; read the warnings first"
        case "ok":
            return f"{said}: ready for preset {preset}"
