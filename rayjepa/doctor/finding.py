"""What a check says, and how one is carried out: never a traceback, never for ever."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "error"]
PATIENCE_S = 10.0
"""What one check may take before it counts as failed: a dead mount answers never."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table, and what to do about it."""

    name: str
    state: State
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Finding:
    return Finding(name, "ok", found)


def warning(name: str, found: str, remedy: str) -> Finding:
    return Finding(name, "warning", found, remedy)


def error(name: str, found: str, remedy: str) -> Finding:
    return Finding(name, "error", found, remedy)


def worst(findings: Iterable[Finding]) -> State:
    """The gravest state among them; ok if there is none."""
    present = {finding.state for finding in findings}
    return "error" if "error" in present else "warning" if "warning" in present else "ok"


@dataclass(frozen=True, slots=True)
class Check:
    """A question to the machine, not asked yet."""

    name: str
    ask: Callable[[], Finding | list[Finding]]
    patience_s: float = PATIENCE_S


def carried_out(check: Check) -> list[Finding]:
    """What the check found; an error that names it if it fails itself, or has no answer in time."""
    answers: list[list[Finding]] = []

    def ask() -> None:
        try:
            said = check.ask()
            answers.append(said if isinstance(said, list) else [said])
        except Exception as failure:  # noqa: BLE001  a check that fails is a finding, and the others go on
            text = " ".join(str(failure).split())
            what = f"the check itself failed: {type(failure).__name__}: {text}"
            answers.append([error(check.name, what, f"find out by hand; nothing is known of: {check.name}")])

    # Of a thread, so that one stuck in the kernel holds up neither the others nor the end of this process.
    asking = threading.Thread(target=ask, name=f"check {check.name}", daemon=True)
    asking.start()
    asking.join(check.patience_s)
    if answers:
        return answers[0]
    what = f"no answer in {check.patience_s:g} s"
    return [error(check.name, what, "a mount, a driver or a host hangs: `ps -eo pid,state,wchan,cmd | grep ' D '`")]
