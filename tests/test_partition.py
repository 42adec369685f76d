import pytest
import torch
from torch import nn

from rayjepa.train.partition import Partition


def _partitioned(full: torch.Tensor, here: Partition) -> nn.Parameter:
    """A parameter as DeepSpeed leaves it: empty, with this rank's share padded by what memory happened to hold."""
    each = -(-full.numel() // here.world)
    padded = torch.full((each * here.world,), float("nan"))
    padded[: full.numel()] = full.flatten()
    parameter = nn.Parameter(torch.empty(0))
    parameter.ds_tensor = padded[here.rank * each : (here.rank + 1) * each].clone()
    parameter.ds_shape, parameter.ds_numel = full.shape, full.numel()
    return parameter


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(4, 6), (7,), (1,)])
def test_the_pieces_of_all_ranks_are_the_tensor_without_its_padding(shape: tuple[int, ...], world: int) -> None:
    full = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    pieces = [Partition(r, world).piece("target", "x", _partitioned(full, Partition(r, world))) for r in range(world)]
    assert {(piece.shape, piece.replicated) for piece in pieces} == {(shape, False)}
    assert torch.equal(torch.cat([piece.data for piece in pieces]), full.flatten())
    at = 0
    for piece in pieces:
        assert piece.start == at
        at += len(piece.data)


def test_a_share_is_a_live_view() -> None:
    here = Partition(1, 2)
    parameter = _partitioned(torch.zeros(5), here)
    here.share(parameter).fill_(3)
    assert parameter.ds_tensor.tolist()[:2] == [3, 3]  # type: ignore[union-attr]
    assert torch.isnan(parameter.ds_tensor[2])  # type: ignore[index]


def test_what_is_not_partitioned_is_whole_on_every_rank() -> None:
    module = nn.BatchNorm1d(3)
    shares = Partition(1, 2).shares(module)
    assert shares.keys() == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert shares["running_var"].tolist() == [1, 1, 1]
    piece = Partition(1, 2).piece("buffer", "running_var", module.running_var)  # type: ignore[arg-type]
    assert (piece.replicated, piece.start, len(piece.data)) == (True, 0, 3)
