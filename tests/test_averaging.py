"""Averaging during backward and after it: `python tests/test_averaging.py RANK FILE` is one of two ranks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rayjepa.train.averaging import Averager, _cut

BUCKET = 300
TIMEOUT_S = 100.0
"""Ten times what both ranks take on two idle cores."""


class _Net(nn.Module):
    """Used twice in a pass, as an encoder is by two masks; one parameter has no gradient in some passes."""

    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Parameter(torch.ones(3))
        self.sometimes = nn.Parameter(torch.ones(16))
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))

    def forward(self, x: Tensor, *, all_of_it: bool) -> Tensor:
        for layer in [*self.layers, *self.layers]:
            x = torch.tanh(layer(x))
        return (x * self.sometimes if all_of_it else x).square().mean()


def _gradients(rank: int, *, overlapped: bool) -> tuple[list[Tensor], list[int]]:
    """All averaged gradients of four steps of two backward passes, and how many buckets were early in each."""
    torch.manual_seed(0)
    net, generator = _Net(), torch.Generator().manual_seed(rank)
    averager = Averager(list(net.parameters()), world=2, bucket=BUCKET)
    found: list[Tensor] = []
    early: list[int] = []
    for step in range(4):
        for last in (False, True):
            if last and overlapped:
                averager.expect_last()
            net(torch.randn(8, 16, generator=generator), all_of_it=step % 2 == 0).backward()
        averager.finish()
        early.append(averager.early)
        found += [p.grad.clone() for p in net.parameters() if p.grad is not None]
        averager.clear()
    return found, early


def _written_out(rank: int) -> list[Tensor]:
    """The same sums by one collective for each gradient, after backward."""
    torch.manual_seed(0)
    net, generator = _Net(), torch.Generator().manual_seed(rank)
    found: list[Tensor] = []
    for step in range(4):
        for _ in range(2):
            net(torch.randn(8, 16, generator=generator), all_of_it=step % 2 == 0).backward()
        for parameter in net.parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            dist.all_reduce(gradient)
            found.append(gradient / 2)
        net.zero_grad()
    return found


def _be_rank(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    overlapped, early = _gradients(rank, overlapped=True)
    after, late = _gradients(rank, overlapped=False)
    written = _written_out(rank)
    assert len(overlapped) == len(after) == len(written) == 4 * 14
    for ours, others, theirs in zip(overlapped, after, written, strict=True):
        assert torch.equal(ours, others)
        assert torch.equal(ours, theirs)  # of two ranks: a sum of two numbers has no order
    assert late == [0, 0, 0, 0], late
    buckets = len(_cut(list(_Net().parameters()), BUCKET))
    assert early == [buckets - 1] * 4, (early, buckets)  # the first holds what has no gradient
    dist.destroy_process_group()


@pytest.mark.dist
def test_overlapped_gradients_are_bit_equal_to_those_averaged_after_backward(tmp_path: Path) -> None:
    words = [sys.executable, __file__]
    ranks = [subprocess.Popen([*words, str(rank), str(tmp_path / "meet")]) for rank in range(2)]
    try:
        assert [rank.wait(TIMEOUT_S) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()


def test_buckets_keep_the_order_and_are_whole() -> None:
    tensors = [torch.zeros(n) for n in (5, 3, 9, 1, 1)]
    assert [[t.numel() for t in bucket] for bucket in _cut(tensors, 8)] == [[5, 3], [9], [1, 1]]
    assert [len(bucket) for bucket in _cut(tensors, 1)] == [1] * 5


if __name__ == "__main__":
    _be_rank(int(sys.argv[1]), sys.argv[2])
