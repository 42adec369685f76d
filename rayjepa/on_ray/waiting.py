"""Waiting for a cluster's nodes: what Ray's control store says of them, and of what its autoscaler is about to do."""

import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.util

from rayjepa.on_ray.head import Autoscaler, autoscaler_of
from rayjepa.on_ray.placement import Node, Part, listed, selector, unplaced

log = logging.getLogger(__name__)

# A message each this often, as long as something is missing.
EVERY_S = 30.0
# An autoscaler looks at its cluster every five seconds; beside a head that has just been started it may still boot.
VERDICT_S = 60.0
# What is missing for less than this is on its way: a group that is being placed, an actor that a node has accepted.
BRIEF_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What Ray's control store knows of the cluster at one moment."""

    nodes: tuple[Node, ...]
    groups: frozenset[str]
    """Placement groups that wait for room; an id ends with that of its job."""
    queued: Counter[tuple[str | None, float]]
    """Actors and tasks that wait for room, by label and CPUs."""
    launching: Counter[str]
    """Nodes that the autoscaler has asked for and that are not there yet, by node type."""
    failures: tuple[str, ...]
    """Why nodes could not be started."""
    asked: int
    """Bundles that all runs together want the cluster to be large enough for."""
    denied: bool
    """The autoscaler could never bring them: its node types or their maxima are too small."""
    version: int
    """Counts the times that the control store was asked."""
    judged: int
    """The version that the autoscaler saw last."""


def read_status() -> Status:
    """The cluster at this moment."""
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated import autoscaler_pb2

    proto: Any = autoscaler_pb2  # generated, without types
    reply = proto.GetClusterStatusReply()
    client: Any = GcsClient(ray.get_runtime_context().gcs_address)
    reply.ParseFromString(client.get_cluster_status(timeout_s=10))
    state, scaler = reply.cluster_resource_state, reply.autoscaling_state
    status = proto.NodeStatus.Value
    ready = {status("RUNNING"), status("IDLE")}
    launches = [(r.ray_node_type_name, r.count) for r in scaler.pending_instance_requests]
    launches += [(i.ray_node_type_name, 1) for i in scaler.pending_instances]
    return Status(
        nodes=tuple(
            Node(
                total=dict(node.total_resources),
                free=dict(node.available_resources) if node.status in ready else {},
                labels=dict(node.labels),
            )
            for node in state.node_states
            if node.status != status("DEAD")
        ),
        groups=frozenset(gang.details.split(":")[0] for gang in state.pending_gang_resource_requests),
        queued=sum((_shape(entry) for entry in state.pending_resource_requests), Counter()),
        launching=sum((Counter({kind: count}) for kind, count in launches), Counter()),
        failures=tuple(f"{r.count} x {r.ray_node_type_name}: {r.reason}" for r in scaler.failed_instance_requests),
        asked=sum(r.count for c in state.cluster_resource_constraints for r in c.resource_requests),
        denied=len(scaler.infeasible_cluster_resource_constraints) > 0,
        version=state.cluster_resource_state_version,
        judged=scaler.last_seen_cluster_resource_state_version,
    )


def _shape(entry: Any) -> Counter[tuple[str | None, float]]:
    """A demand of tasks or actors as (label, CPUs), with how many there are."""
    wanted = [f"{c.label_key}={c.label_values[0]}" for s in entry.request.label_selectors for c in s.label_constraints]
    return Counter({(wanted[0] if wanted else None, entry.request.resources_bundle.get("CPU", 0.0)): entry.count})


def autoscaler() -> Autoscaler:
    """Which autoscaler the connected cluster has."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    return autoscaler_of(_internal_kv_get(DEBUG_AUTOSCALING_STATUS), is_v2=is_autoscaler_v2(fetch_from_server=True))


def can_grow(parts: Sequence[Part]) -> bool:
    """Whether the autoscaler says that the cluster could hold the parts, were nobody else on it.

    Only its version 2 says so; of version 1 it is taken for granted.
    """
    kind = autoscaler()
    if kind != "v2":
        return kind == "v1"
    bundles, selectors = _bundles(parts)
    with _asked(bundles, selectors):
        version, until = read_status().version, time.monotonic() + VERDICT_S
        while (now := read_status()).judged <= version:
            if time.monotonic() > until:
                log.warning("the cluster's autoscaler has not answered for %.0f s: is it running?", VERDICT_S)
                return False
            time.sleep(0.5)
    # With the wishes of other runs in the sum, a no is no answer about this one.
    return not now.denied or now.asked > len(bundles)


@contextmanager
def _asked(bundles: list[dict[str, float]], selectors: list[dict[str, str]]) -> Iterator[None]:
    """Tell the autoscaler, for the time of the block, that the cluster should be large enough for these bundles.

    By the actor through which Ray Train and Ray Data ask, as the autoscaler keeps one wish at a time.
    """
    from ray.data._internal.cluster_autoscaler import ResourceRequestPriority

    name = f"rayjepa-{uuid.uuid4().hex}"
    coordinator = _coordinator()
    ray.get(
        coordinator.request_resources.remote(
            requester_id=name,
            resources=bundles,
            label_selectors=selectors,
            expire_after_s=VERDICT_S * 2,
            priority=ResourceRequestPriority.LOW,
        )
    )
    try:
        yield
    finally:
        ray.get(coordinator.cancel_request.remote(name))


def _coordinator() -> Any:
    """The cluster's one actor by which all who train and stream tell the autoscaler what they want."""
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator

    return get_or_create_autoscaling_coordinator()


def _bundles(parts: Sequence[Part]) -> tuple[list[dict[str, float]], list[dict[str, str]]]:
    every = [part for part in parts for _ in range(part.count)]
    return [dict(part.resources) for part in every], [selector(part.label) for part in every]


class Notice:
    """Says in the log what is missing: after `patience_s`, and then every half a minute."""

    def __init__(self, *, patience_s: float) -> None:
        self.patience_s, self._since_s, self._due_s = patience_s, 0.0, 0.0

    def __call__(self, missing: Sequence[Part], now: Status) -> float:
        """Take note of what is missing now; return for how many seconds something has been."""
        clock = time.monotonic()
        if not missing:
            self._since_s = 0.0
            return 0.0
        if not self._since_s:
            self._since_s, self._due_s = clock, clock + self.patience_s
        if clock >= self._due_s:
            self._due_s = clock + EVERY_S
            log.info("%s", message(missing, now, since_s=clock - self._since_s))
        return clock - self._since_s


def message(missing: Sequence[Part], now: Status, *, since_s: float) -> str:
    """What a run waits for, and whether it is on its way."""
    have = {name: sum(node.total.get(name, 0) for node in now.nodes) for name in ("CPU", "GPU")}
    free = {name: sum(node.free.get(name, 0) for node in now.nodes) for name in have}
    held = ", ".join(f"{have[name] - free[name]:g} of {have[name]:g} {name}s" for name in have)
    coming = ", ".join(f"{count} x {kind}" for kind, count in sorted(now.launching.items()))
    parts = [
        f"waiting for nodes since {since_s:.0f} s: missing {listed(missing)}",
        f"in use on {len(now.nodes)} node(s): {held}",
        f"the autoscaler is starting {coming}" if coming else "no nodes are on their way",
        *(f"could not start {reason[:200]}" for reason in now.failures[-1:]),
    ]
    return "; ".join(parts)


def wait_for_room(parts: Sequence[Part], *, stopped: Callable[[], bool]) -> bool:
    """Return True once all parts fit into what is free at one moment, False if `stopped` says so before.

    The wish is a placement group of this job: an autoscaler brings nodes for it, and it ends with this process.
    """
    now = read_status()
    if not unplaced(parts, now.nodes, idle=False):
        return True
    bundles, selectors = _bundles(parts)
    group = ray.util.placement_group(bundles, strategy="PACK", bundle_label_selector=selectors)
    notice = Notice(patience_s=0)
    try:
        while not group.wait(1):
            if stopped():
                return False
            now = read_status()
            notice(unplaced(parts, now.nodes, idle=False), now)
    finally:
        ray.util.remove_placement_group(group)
    # It looks at the nodes every 20 s, and Ray Data would begin without those that have just come.
    ray.get(_coordinator().get_reserved_resources.remote("", recompute=True))
    log.info("%d node(s) are there", len(read_status().nodes))
    return True


def waits_for(train: Part, decode: Part, now: Status) -> list[Part]:
    """What a run that has begun lacks at this moment: its train workers, or decode actors."""
    job = ray.get_runtime_context().get_job_id()
    wanted = [train] if any(group.endswith(job) for group in now.groups) else []
    if queued := now.queued[decode.label, 1.0]:
        from ray._private.state import actors

        starting = [
            actor["ActorClassName"]
            for state in ("PENDING_CREATION", "RESTARTING")
            for actor in actors(job_id=ray.JobID(bytes.fromhex(job)), actor_state_name=state).values()
        ]
        # Ray Data's name for an actor of a pool has that of its class; others of the cluster may queue as well.
        ours = sum("DecodeActor" in name for name in starting)
        wanted.append(replace(decode, count=min(queued, ours)))
    return unplaced(wanted, now.nodes, idle=False)
