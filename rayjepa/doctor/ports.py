"""Which of Ray's ports on this machine the network can reach, read from /proc."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rayjepa.doctor.finding import Check, Finding, ok, warning
from rayjepa.doctor.token import MODE

LISTEN = "0A"
EVERYWHERE = {"00000000", "0" * 32}
"""0.0.0.0 and ::, as the kernel's tables write them."""
RAYS = re.compile(r"/gcs_server\b|/raylet\b|^ray::|\bray/dashboard/|\bray/autoscaler/|\bray\.util\.client\.server\b")
"""Command lines of Ray's processes."""
ASKS = re.compile(rb"(?:^|\0)" + MODE.encode() + rb"=(?i:token)\0")
AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""Of every node; other processes of that form are workers."""
CODE = {"gcs_server", "raylet"}
"""Programs that start what they are told to. Of the others a process title hides the environment."""
SHOWN = 3
"""Ports that are named of each program."""


@dataclass(frozen=True, slots=True, order=True)
class Port:
    number: int
    program: str
    asks_token: bool
    """Its process was started with RAY_AUTH_MODE=token."""


def port_checks() -> list[Check]:
    return [Check("open ports", lambda: open_ports(list(rays_ports())))]


def open_ports(ports: list[Port]) -> Finding:
    """What Ray's processes here offer to the network, whatever cluster they belong to."""
    if not ports:
        return ok("open ports", "no process of Ray here listens on all addresses")
    numbers: dict[str, list[str]] = {}
    for port in ports:
        numbers.setdefault(port.program, []).append(str(port.number))
    listed = "; ".join(f"{program} {_few(found)}" for program, found in sorted(numbers.items()))
    found = f"on all addresses: {listed}"
    if bare := [str(port.number) for port in ports if port.program in CODE and not port.asks_token]:
        what = f"{found}; {_few(bare)} ask for no token: who reaches them runs code as this user"
        remedy = f"export {MODE}=token before `ray start`, on all nodes; and let a firewall admit the nodes alone"
        return warning("open ports", what, remedy)
    return ok("open ports", f"{found}; they ask for the token, but for metrics")


def rays_ports() -> Iterator[Port]:
    """Ports on all addresses that processes of Ray listen on, as far as this user can see them."""
    sockets = {inode: port for name in ("tcp", "tcp6") for inode, port in listeners(Path("/proc/net") / name)}
    found: set[Port] = set()
    for process in Path("/proc").glob("[0-9]*") if sockets else ():
        with suppress(OSError):  # it ended, or belongs to somebody else
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if RAYS.search(command):
                asks = ASKS.search((process / "environ").read_bytes()) is not None
                for handle in os.listdir(process / "fd"):
                    with suppress(OSError):
                        inode = os.readlink(process / "fd" / handle).removeprefix("socket:[").removesuffix("]")
                        if inode in sockets:
                            found.add(Port(sockets[inode], program(command), asks))
    yield from sorted(found)


def listeners(table: Path) -> Iterator[tuple[str, int]]:
    """Inode and port of each socket in the kernel's table that listens on all addresses."""
    try:
        rows = table.read_text().splitlines()[1:]
    except OSError:
        return
    for row in rows:
        fields = row.split()
        address, _, port = fields[1].partition(":")
        if fields[3] == LISTEN and address in EVERYWHERE:
            yield fields[9], int(port, 16)


def program(command: str) -> str:
    """What the process is: `raylet`, `gcs_server`, `dashboard.py`, `ray::DashboardAgent`, or a `worker`."""
    words = [Path(word).name for word in command.split()]
    name = next((word for word in words if not word.startswith(("python", "-"))), words[0])
    return name if not name.startswith("ray::") or name in AGENTS else "worker"


def _few(numbers: list[str]) -> str:
    return ", ".join(numbers[:SHOWN]) + (f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else "")
