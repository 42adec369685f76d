"""The DeepSpeed engine, ZeRO stages 0 to 2: the only file that imports deepspeed (0.19.8).

Parameters stay float32 and bf16 is autocast, so that a parameter and its master have one value and the target can
follow `p.data` by name. Two private names of DeepSpeed are read: `_global_grad_norm` (the norm, before it clips) and
`_hp_mapping` (what a rank holds of a parameter); tests/test_zero.py has a test of each.
"""

import atexit
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rayjepa.config import RunConfig
from rayjepa.masks import Split
from rayjepa.model import Jepa, Prediction, make_target
from rayjepa.model.vit import Levels
from rayjepa.train.engine import Step, autocast, encoder_tensors, join_group, ranks, to_device
from rayjepa.train.optim import Guard, adam_state, make_optimizer, set_rates
from rayjepa.train.pieces import Kind, Piece, read_pieces, untrained, whole, write_shard


def deepspeed_config(run: RunConfig) -> dict[str, Any]:
    """DeepSpeed's dictionary: a function of the run alone.

    Two defaults are off because they make stages differ under autocast: another Linear, and gradients reduced in bf16.
    Overlapped communication is off: it has a list of races, and belongs behind a test of equal losses.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": run.micro_batch,
        "gradient_accumulation_steps": run.train.accumulation,
        "gradient_clipping": run.optim.clip or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": run.zero.stage,
            "memory_efficient_linear": False,
            "overlap_comm": False,
            "reduce_bucket_size": 100_000_000,  # elements; DeepSpeed's default of 5e8 costs 2 GB in float32
            "allgather_bucket_size": 200_000_000,
        },
    }
    if run.train.precision == "bf16":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return config


class ZeroEngine:
    """DeepSpeed around the Jepa; target, schedules and checkpoints stay ours."""

    def __init__(self, run: RunConfig, jepa: Jepa, *, device: torch.device) -> None:
        self.run, self.device, self.jepa, self.stage = run, device, jepa, run.zero.stage
        deepspeed = _import_deepspeed(device)
        if join_group(device, always=True):
            atexit.register(dist.destroy_process_group)
        self.rank, self.world = ranks()
        self._client = make_optimizer(jepa, run.optim)
        with _imports_quietly():  # here too: it imports its optimizers when it first sees ours
            self.engine, self.optimizer, _, _ = deepspeed.initialize(
                model=_Tuples(jepa), optimizer=self._client, config=deepspeed_config(run)
            )
        self.target = make_target(jepa.encoder).to(device)  # after initialize, which broadcasts rank 0's weights
        self.guard = Guard(max_norm=run.optim.max_norm, device=device, world=self.world)
        self._client.refuses = self._refuses
        self._refused: str | None = None
        self._micro = 0

    def forward(
        self,
        views: Float[Tensor, "B 3 frames height width"],
        splits: tuple[Split, ...],
        index: Int64[Tensor, " B"] | None = None,
    ) -> Prediction:
        """Predictions beside the target's features."""
        with torch.no_grad(), autocast(self.run, self.device):
            levels = self.target(views)
        _, prediction = self.engine(views, to_device(splits, self.device), levels, index)
        return prediction

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradients of `loss`; after the last micro-batch of a step they are reduced too."""
        self.guard.note(loss)
        self.engine.backward(loss, scale_wrt_gas=False)
        self._micro += 1
        if self._micro < self.run.train.accumulation:
            self.engine.step()  # only counts: DeepSpeed finds the boundary by the number of these calls

    def step(self, *, lr: float, weight_decay: float, momentum: float, stop: bool = False) -> Step:
        """Check, clip, update and move the target; or refuse, and change nothing.

        DeepSpeed takes its norm and clips, then calls the client optimizer, which asks `_refuses`. `overflow` makes
        it count a refused step as skipped and clear the gradients by its normal path.
        """
        assert self._micro == self.run.train.accumulation, f"step after {self._micro} micro-batches"
        self._micro, self._refused, self.optimizer.overflow = 0, None, False
        self.guard.agree(norm=self._norm_at_stage_0() if self.stage == 0 else None, stop=stop)
        set_rates(self.optimizer, lr=lr, weight_decay=weight_decay)
        self.engine.step()
        norm = self._norm()
        if self._refused is None and self.optimizer.overflow:  # DeepSpeed skips an invalid norm without asking
            self._refused = self.guard.verdict(norm)
            assert self._refused is not None, f"DeepSpeed skipped a step of gradient norm {norm}"
        if self._refused is None:
            self.target.update_(encoder_tensors(self.jepa), momentum=momentum)
        return Step(refused=self._refused, grad_norm=norm, stop=self.guard.stop)

    def save(self, folder: Path) -> None:
        """Write this rank's share of the state."""
        write_shard(folder, self._pieces(), rank=self.rank, world=self.world)

    def load(self, folder: Path) -> None:
        """Take this rank's share of the state from `folder`, and bring the parameters in line with their masters."""
        read_pieces(folder, list(self._pieces()))
        if self.stage > 0:
            self.optimizer.update_lp_params()

    def close(self) -> None:
        """Take DeepSpeed's hooks off the model; the process group stays, for DeepSpeed's next engine needs it."""
        self.engine.destroy()

    def _refuses(self) -> bool:
        """Asked by the client optimizer, once per flat group of one step: no collective in here."""
        if self._refused is None:
            self._refused = self.guard.verdict(self._norm())
        if self._refused is not None:
            self.optimizer.overflow = True
        return self._refused is not None

    def _norm(self) -> float:
        return self.guard.norm if self.stage == 0 else float(self.optimizer._global_grad_norm)

    def _norm_at_stage_0(self) -> Tensor:
        """DeepSpeed computes none there; the gradients are reduced already and the same on all ranks."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.jepa.parameters() if p.grad is not None])

    def _pieces(self) -> Iterator[Piece]:
        named = [(name, p) for name, p in self.jepa.named_parameters() if p.requires_grad]
        if self.stage == 0:
            for name, parameter in named:
                state = adam_state(self._client, parameter)
                yield whole("master", name, parameter)
                yield whole("exp_avg", name, state["exp_avg"])
                yield whole("exp_avg_sq", name, state["exp_avg_sq"])
                yield whole("step", name, state["step"])
        else:
            flats = self.optimizer.single_partition_of_fp32_groups
            group_of = {id(p): g for g, group in enumerate(self.optimizer.bit16_groups) for p in group}
            for name, parameter in named:
                yield from self._partitioned(name, parameter, flats[group_of[id(parameter)]])
        yield from untrained(self.jepa, self.target)

    def _partitioned(self, name: str, parameter: Tensor, flat: Tensor) -> Iterator[Piece]:
        """A rank's flat partition cuts through parameters anywhere; no mapping means that none of this one is here."""
        state = adam_state(self._client, flat)
        mapping = parameter._hp_mapping  # pyright: ignore[reportAttributeAccessIssue]
        at, start, length = 0, 0, 0
        if mapping is not None:
            at, length = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
            start = mapping.lp_fragment_address.start
        parts: tuple[tuple[Kind, Tensor], ...] = (
            ("master", flat),
            ("exp_avg", state["exp_avg"]),
            ("exp_avg_sq", state["exp_avg_sq"]),
        )
        for kind, tensor in parts:
            data = tensor.data.view(-1)[at : at + length]
            shape = tuple(parameter.shape)
            yield Piece(kind=kind, name=name, shape=shape, start=start, data=data, replicated=False)
        yield whole("step", name, state["step"])


class _Tuples(nn.Module):
    """A Jepa that also returns its predictions as a plain tuple.

    DeepSpeed prepares a backward pass (tells its optimizer of the accumulation boundary, among others) in hooks on the
    tensors that it finds in what the model returns; it looks into tuples, and not into our dataclasses. All tests of
    stages 0 to 2 passed without the hooks too, but that is not a way in which DeepSpeed is made to be used.
    """

    def __init__(self, jepa: Jepa) -> None:
        super().__init__()
        self.jepa = jepa

    def forward(
        self, views: Tensor, splits: tuple[Split, ...], levels: Levels, index: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Prediction]:
        prediction = self.jepa(views, splits, levels, index)
        return tuple(term.prediction for term in prediction.terms), prediction


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed for this device, quiet, and without its shared-memory collectives, which it would compile first."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when it is imported
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))  # it insists, also where there is no launcher
    # For the whole process, since entering a filter at each step would make Python forget which warnings it has shown.
    names = "all_gather_into_tensor|reduce_scatter_tensor|_all_gather_base|_reduce_scatter_base"
    warnings.filterwarnings("ignore", message=f".*({names})", category=FutureWarning)
    with _imports_quietly():
        import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _imports_quietly() -> Iterator[None]:
    """DeepSpeed imports parts of PyTorch that are deprecated; that is between those two."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield
