"""What a cluster's nodes offer against what the run asks for."""

from rayjepa.config import RunConfig
from rayjepa.doctor import Finding, error, ok, warning
from rayjepa.on_ray import placement
from rayjepa.on_ray.cluster import SEAT
from rayjepa.on_ray.head import Head
from rayjepa.on_ray.placement import Part, described, listed, unplaced


def capacity(run: RunConfig, head: Head) -> list[Finding]:
    """Nodes, autoscaler, and whether all that the run starts has a place on them, now or once others have ended."""
    nodes = [placement.Node(total=n.resources, free=n.available, labels=n.labels) for n in head.nodes]
    grows = f"autoscaler {head.autoscaler} adds others" if head.autoscaler != "none" else "no autoscaler adds others"
    return [
        ok("nodes", f"{described(nodes)}; {grows}"),
        *_labels(run, head, nodes),
        _room(run, head, nodes),
        *_seats(head, nodes),
    ]


def _labels(run: RunConfig, head: Head, nodes: list[placement.Node]) -> list[Finding]:
    """Labels that the run asks for and no node has."""
    lines: list[Finding] = []
    for key, label in (("train_label", run.cluster.train_label), ("decode_label", run.cluster.decode_label)):
        if label and not any(node.has(label) for node in nodes):
            what = f"no node has the label cluster.{key}={label}"
            remedy = f"`ray start --labels={label}` on those that are meant, or cluster.{key}=none"
            lines.append(_lacking(head, "labels", what, remedy))
    return lines


def _room(run: RunConfig, head: Head, nodes: list[placement.Node]) -> Finding:
    if run.cluster.workers == 0:
        return ok("resources", "none are taken: cluster.workers=0 trains without Ray")
    parts = _parts(run, nodes)
    asked = f"training {parts[0]}, decoding {parts[1]}"
    if lacking := unplaced(parts, nodes, idle=True):
        knobs = "; ".join(part.knobs for part in lacking)
        what = f"{asked}; no place for {listed(lacking)}"
        remedy = f"add nodes (`ray start --address=HEAD:PORT` on each), or ask for less: {knobs}"
        return _lacking(head, "resources", what, remedy)
    if waiting := unplaced(parts, nodes, idle=False):
        what = f"{asked}; others hold what {listed(waiting)} need: the run would wait for them"
        return warning("resources", what, "`ray status` shows what is in use, `ray list actors` by whom")
    return ok("resources", f"{asked}: there is room now")


def _parts(run: RunConfig, nodes: list[placement.Node]) -> tuple[Part, Part]:
    """As a run would have them: GPUs if the configuration says so, else if the nodes have enough."""
    enough = sum(node.total.get("GPU", 0) for node in nodes) >= run.cluster.workers
    gpus = enough if run.cluster.gpus is None else run.cluster.gpus
    return placement.train_part(run, gpus=gpus, labels=True), placement.decode_part(run, labels=True)


def _seats(head: Head, nodes: list[placement.Node]) -> list[Finding]:
    """Custom resource that the drivers of a sweep's trials sit on."""
    if any(SEAT in node.total for node in nodes):
        return []
    what = f"no node offers the resource `{SEAT}`, which a sweep's trials sit on; other verbs do not need it"
    return [_lacking(head, "seats", what, f"ray start --head --resources='{{\"{SEAT}\": 8}}', for 8 trials at once")]


def _lacking(head: Head, name: str, what: str, remedy: str) -> Finding:
    if head.autoscaler != "none" or name == "seats":
        more = "; the autoscaler has to bring nodes that do (`ray status`)" if head.autoscaler != "none" else ""
        return warning(name, what + more, remedy)
    return error(name, what, remedy)
