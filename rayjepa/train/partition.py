"""What a rank holds of a module under ZeRO-3, which cuts every parameter evenly over the ranks.

DeepSpeed keeps a rank's share in the parameter's `ds_tensor`, ceil(numel / world) elements of which the last ranks' end
is padding: uninitialised memory, never to be compared, averaged or saved. Nothing here imports deepspeed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn

from rayjepa.train.pieces import Kind, Piece, cut, whole


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """Shape of a tensor before it was partitioned, if it is."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


@dataclass(frozen=True, slots=True)
class Partition:
    """One rank's place in the cut."""

    rank: int
    world: int

    def bounds(self, numel: int) -> tuple[int, int]:
        """First element of a flattened tensor that this rank holds, and how many it holds; there may be none."""
        low, high = cut(numel, rank=self.rank, world=self.world)
        return low, high - low

    def share(self, tensor: Tensor) -> Tensor:
        """Live view of this rank's elements, without padding; a tensor that is not partitioned is whole."""
        if not hasattr(tensor, "ds_tensor"):
            return tensor.data.view(-1)
        _, length = self.bounds(tensor.ds_numel)  # pyright: ignore[reportAttributeAccessIssue]
        return tensor.ds_tensor.data.view(-1)[:length]  # pyright: ignore[reportAttributeAccessIssue]

    def shares(self, module: nn.Module) -> Mapping[str, Tensor]:
        """`share` of every parameter and buffer, by name."""
        return {name: self.share(t) for name, t in chain(module.named_parameters(), module.named_buffers())}

    def piece(self, kind: Kind, name: str, tensor: Tensor) -> Piece:
        """The piece of a checkpoint that this rank holds of a tensor."""
        if not hasattr(tensor, "ds_tensor"):
            return whole(kind, name, tensor)
        start, _ = self.bounds(tensor.ds_numel)  # pyright: ignore[reportAttributeAccessIssue]
        return Piece(
            kind=kind, name=name, shape=full_shape(tensor), start=start, data=self.share(tensor), replicated=False
        )
