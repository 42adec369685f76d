"""Keeps what leads up to decoding from running ahead of it: a policy for Ray Data's executor.

Left alone, the executor makes the numbers of all of a run's blocks as fast as it can, as their bytes are next to none:
100,000 in the first half minute, on the thread that should hand clips on.
"""

from ray.data._internal.execution.backpressure_policy import BackpressurePolicy
from ray.data._internal.execution.backpressure_policy.resource_budget_backpressure_policy import (
    ResourceBudgetBackpressurePolicy,
)
from ray.data._internal.execution.interfaces.physical_operator import PhysicalOperator
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer

# Blocks that wait for an actor, at least, and for each actor of the pool.
LEAST, EACH = 16, 4


class InStep(BackpressurePolicy):
    """Lets numbers of blocks be made only while few of them wait for an actor."""

    def can_add_input(self, op: PhysicalOperator) -> bool:
        return not self._is_ahead(op)

    def max_task_output_bytes_to_read(self, op: PhysicalOperator) -> int | None:
        return 0 if self._is_ahead(op) else None

    def _is_ahead(self, op: PhysicalOperator) -> bool:
        if isinstance(op, InputDataBuffer | ActorPoolMapOperator):
            return False
        return any(
            isinstance(below, ActorPoolMapOperator)
            and self._topology[below].total_enqueued_input_blocks()
            > max(LEAST, EACH * sum(pool.current_size() for pool in below.get_autoscaling_actor_pools()))
            for below in op.output_dependencies
        )


# What replaces Ray Data's own list: the budget of object store stays. Its rule on the capacity downstream does not:
# while ranks fill what they hold ready, it takes them for slow, stops decoding, and both wait for each other for ever.
POLICIES = [ResourceBudgetBackpressurePolicy, InStep]
