"""What a cluster's head says of itself and its nodes."""

from dataclasses import dataclass
from typing import Literal


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
    autoscaler: Literal["v1", "v2"] | None
    """Version of the autoscaler that adds nodes; none: there are only those that were started by hand."""
    nodes: tuple[Node, ...]
