"""Placement groups whose owner was killed: Ray keeps them until the whole job ends."""

import logging
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

log = logging.getLogger(__name__)


def remove_orphans() -> int:
    """Give back what placement groups of this job hold if the actor that made them is dead; return their number.

    A trial's driver that is killed takes Ray Train's controller and workers with it, but not their placement group.
    Ray's own cleaner asks the dashboard, which an embedded cluster has not, who is dead; the control store knows too.
    """
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    proto: Any = gcs_pb2  # generated, without types
    job = ray.get_runtime_context().get_job_id()
    removed = 0
    accessor: Any = state._connect_and_get_accessor()
    for record in accessor.get_placement_group_table():
        group = proto.PlacementGroupTableData.FromString(record)
        gone = group.state == proto.PlacementGroupTableData.REMOVED
        by_an_actor = not ray.ActorID(group.creator_actor_id).is_nil()  # Ray counts a group of the job itself as dead
        if by_an_actor and group.creator_actor_dead and not gone and group.creator_job_id.hex() == job:
            log.warning("a trial's driver died: giving back what its workers held")
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
            removed += 1
    return removed
