"""What a cluster's head says of itself and its nodes."""

import json
from dataclasses import dataclass
from typing import Literal

Autoscaler = Literal["none", "v1", "v2"]
"""`none`: the cluster's nodes are those that people start."""


def autoscaler_of(v1_status: bytes | str | None, *, is_v2: bool) -> Autoscaler:
    """Which autoscaler the cluster has, from what its control store holds.

    Without one the head runs a monitor of version 1 too, which makes up a type node_ID for each node that it sees.
    """
    if is_v2:
        return "v2"
    report = json.loads(v1_status or "{}").get("autoscaler_report") or {}
    kinds = [*(report.get("active_nodes") or ()), *(report.get("idle_nodes") or ())]
    return "v1" if any(not kind.startswith("node_") for kind in kinds) else "none"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """One node that is alive, as the head has it."""

    id: str
    address: str
    is_head: bool
    resources: dict[str, float]
    available: dict[str, float]
    labels: dict[str, str]
    session: str
    """Folder of its logs, sockets and spilled objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The head and its nodes at one moment."""

    ray: str
    python: str
    dashboard: str | None
    """HOST:PORT as the head sees it; none: it runs without."""
    autoscaler: Autoscaler
    """Version of the autoscaler that adds nodes."""
    nodes: tuple[Node, ...]
