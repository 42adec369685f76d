"""What a run asks of a cluster, and what of it some nodes could not hold. Arithmetic only: nothing here asks Ray."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rayjepa.config import RunConfig

# Ray counts resources in ten-thousandths.
GRAIN = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Equal bundles of resources, each of which must lie on one node."""

    use: Literal["training", "decoding"]
    count: int
    resources: tuple[tuple[str, float], ...]
    """By resource's name, above 0."""
    label: str | None
    """KEY=VALUE that the node must have; none: any node."""
    knobs: str
    """The knobs that it follows from."""

    def __str__(self) -> str:
        bundle = ", ".join(f"{name}: {amount:g}" for name, amount in self.resources)
        return f"{self.count} x {{{bundle}}}" + (f" with {self.label}" if self.label else "") + f" for {self.use}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of a cluster as Ray sees it."""

    total: Mapping[str, float]
    free: Mapping[str, float]
    """What no task, actor or placement group holds; empty while the node is being given back."""
    labels: Mapping[str, str]

    def has(self, label: str | None) -> bool:
        """Whether the node has this label, KEY=VALUE."""
        return label is None or label in labels_of(self)


def selector(label: str | None) -> dict[str, str]:
    """The label as Ray takes it; empty for none."""
    if label is None:
        return {}
    key, _, value = label.partition("=")
    return {key: value}


def labels_of(node: Node) -> list[str]:
    """A node's labels as KEY=VALUE, without those that tell it from every other node."""
    return sorted(f"{key}={value}" for key, value in node.labels.items() if key != "ray.io/node-id")


def train_part(run: RunConfig, *, gpus: bool, labels: bool) -> Part:
    """The train workers."""
    cluster = run.cluster
    return Part(
        use="training",
        count=cluster.workers,
        resources=(("CPU", cluster.cpus_per_worker), *((("GPU", 1.0),) if gpus else ())),
        label=cluster.train_label if labels else None,
        knobs="cluster.workers, cluster.cpus_per_worker, cluster.train_label",
    )


def decode_part(run: RunConfig, *, labels: bool) -> Part:
    """The decode actors, and one CPU for Ray Data's own tasks beside them."""
    return Part(
        use="decoding",
        count=run.cluster.decoders + 1,
        resources=(("CPU", 1.0),),
        label=run.cluster.decode_label if labels else None,
        knobs="cluster.decoders + 1 for Ray Data's own tasks, cluster.decode_label",
    )


def unplaced(parts: Iterable[Part], nodes: Sequence[Node], *, idle: bool) -> list[Part]:
    """What does not fit: into what the nodes have free, or if `idle` into what they would have if nobody used them.

    Bundles go, largest first, to the first node that holds them, nodes with few GPUs first.
    """
    room = [dict(node.total if idle else node.free) for node in nodes]
    order = sorted(range(len(nodes)), key=lambda n: nodes[n].total.get("GPU", 0))
    left: list[Part] = []
    for part in sorted(parts, key=lambda p: [-dict(p.resources).get(name, 0) for name in ("GPU", "CPU")]):
        missing = part.count
        for n in order:
            if missing and nodes[n].has(part.label):
                missing -= _take(room[n], part, at_most=missing)
        if missing:
            left.append(replace(part, count=missing))
    return left


def _take(room: dict[str, float], part: Part, *, at_most: int) -> int:
    """Take as many of the part's bundles out of `room` as fit; return their number."""
    fits = min((int((room.get(name, 0) + GRAIN) / amount) for name, amount in part.resources), default=at_most)
    taken = min(max(fits, 0), at_most)
    for name, amount in part.resources:
        room[name] = room.get(name, 0) - taken * amount
    return taken


def listed(parts: Iterable[Part]) -> str:
    """The parts as words."""
    return " and ".join(str(part) for part in parts)


def described(nodes: Sequence[Node]) -> str:
    """What the nodes have in all, and which labels."""
    have = {name: sum(node.total.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    seen = Counter(label for node in nodes for label in labels_of(node))
    labels = ", ".join(f"{label} (on {count})" for label, count in sorted(seen.items())) or "none"
    return f"{len(nodes)} node(s) with {have['CPU']:g} CPUs and {have['GPU']:g} GPUs; labels: {labels}"


def refusal(parts: Sequence[Part], lacking: Sequence[Part], nodes: Sequence[Node], *, why: str) -> str:
    """Why the run cannot begin on this cluster, with the numbers and the knobs that they follow from."""
    cpus = sum(node.total.get("CPU", 0) for node in nodes)
    need = sum(part.count * dict(part.resources).get("CPU", 0) for part in parts)
    head = (
        f"the cluster has {cpus:g} CPUs and the run needs {need:g}" if cpus < need else "the cluster has no such nodes"
    )
    asked = " + ".join(f"{part} ({part.knobs})" for part in parts)
    return f"{head}: {asked}. Missing: {listed(lacking)}. There: {described(nodes)}. {why}"
