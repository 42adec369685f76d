"""The DeepSpeed engine, ZeRO stages 0 to 3: the only file that imports deepspeed (0.19.8).

Parameters stay float32 and bf16 is autocast, so that a parameter and its master have one value and the target can
follow the parameters by name. At stage 3 the target is a second engine, without an optimizer: every rank averages the
shards that it holds, and nothing is gathered for it.

Names that DeepSpeed does not document are used for the norms of its flat groups (`get_grad_norm_direct`, `bit16_groups`
at stages 1 and 2, `fp16_groups` at stage 3), for what a rank holds of a parameter (`_hp_mapping` at stages 1 and 2,
`grad_position` and `fp32_partitioned_groups_flat` at stage 3), to bring parameters in line with their masters
(`_reassign_or_swap_out_partitioned_parameters`), and for its list of modules that are being run (`FWD_MODULE_STACK`);
tests/test_zero.py and tests/test_stages.py fail if one comes to mean something else.
"""

import atexit
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rayjepa.config import RunConfig
from rayjepa.masks import Split
from rayjepa.model import Jepa, Prediction, average_, make_target
from rayjepa.model.vit import Levels
from rayjepa.train.engine import Step, autocast, encoder_tensors, join_group, ranks, share_weights, to_device
from rayjepa.train.footprint import GATHER_BUCKET, REDUCE_BUCKET
from rayjepa.train.optim import (
    GroupNorms,
    Guard,
    adam_state,
    clip_factors,
    joint_norm,
    make_optimizer,
    part_norms,
    set_rates,
)
from rayjepa.train.partition import Partition, full_shape
from rayjepa.train.pieces import Kind, Piece, Tensors, fill_pieces, read_pieces, untrained, whole, write_shard

PERSISTENT = 100_000
"""Elements up to which a parameter stays gathered at stage 3: norms and biases, at any width that we know."""


def deepspeed_config(run: RunConfig) -> dict[str, Any]:
    """DeepSpeed's dictionary: a function of the run alone.

    Two defaults are off because they make stages differ under autocast: another Linear, and gradients reduced in bf16.
    Overlapped communication is off: it has a list of races, and belongs behind a test of equal losses.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": run.micro_batch,
        "gradient_accumulation_steps": run.train.accumulation,
        "gradient_clipping": 0.0,  # ours, in the client optimizer: by parts, and from a step on
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": run.zero.stage,
            "memory_efficient_linear": False,
            "overlap_comm": False,
            "stage3_param_persistence_threshold": PERSISTENT,
            "reduce_bucket_size": REDUCE_BUCKET,
            "allgather_bucket_size": GATHER_BUCKET,
        },
    }
    if run.train.precision == "bf16":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return config


class ZeroEngine:
    """DeepSpeed around the Jepa; target, schedules and checkpoints stay ours.

    At stage 3 parameters of `jepa` and `target` are empty outside their modules' forward passes; to read them, save.
    """

    def __init__(self, run: RunConfig, jepa: Jepa, *, device: torch.device) -> None:
        self.run, self.device, self.stage = run, device, run.zero.stage
        deepspeed = _import_deepspeed(device)
        if join_group(device, always=True):
            atexit.register(dist.destroy_process_group)
        self.rank, self.world = ranks()
        self.partition = Partition(self.rank, self.world)
        self.jepa = share_weights(jepa.to(device))
        self.target = make_target(jepa.encoder)  # before stage 3 takes the encoder apart
        self._client = make_optimizer(jepa, run.optim)
        parts = {id(p): group["part"] for group in self._client.param_groups for p in group["params"]}
        config = deepspeed_config(run)
        with _imports_quietly():  # here too: it imports its optimizers when it first sees ours
            self.engine, self.optimizer, *_ = deepspeed.initialize(
                model=_Tuples(jepa), optimizer=self._client, config=config
            )
            # Without an optimizer: it partitions the target, and gathers each part of it for the forward pass.
            self._follower = deepspeed.initialize(model=self.target, config=config)[0] if self.stage == 3 else None
        self._running: list[nn.Module] = deepspeed.runtime.zero.parameter_offload.FWD_MODULE_STACK
        self._depth = len(self._running)
        self.guard = Guard(max_norm=run.optim.max_norm, device=device, world=self.world)
        self._client.refuses = self._refuses
        self._refused: str | None = None
        self._clip: float | None = None
        if self.stage > 0:
            groups = self.optimizer.fp16_groups if self.stage == 3 else self.optimizer.bit16_groups
            self._norms = GroupNorms([parts[id(group[0])] for group in groups])
            self.optimizer.get_grad_norm_direct = self._norms.kept(self.optimizer.get_grad_norm_direct)
        self._micro = 0

    def forward(
        self,
        views: Float[Tensor, "B 3 frames height width"],
        splits: tuple[Split, ...],
        index: Int64[Tensor, " B"] | None = None,
        *,
        stream: int = 0,
    ) -> Prediction:
        """Predictions beside the target's features."""
        with torch.no_grad(), autocast(self.run, self.device):
            levels = self.target(views)
        self._depth = len(self._running)
        hooked, prediction = self.engine(views, to_device(splits, self.device), levels, index, stream)
        terms = zip(prediction.terms, hooked, strict=True)
        return replace(prediction, terms=tuple(replace(term, prediction=output) for term, output in terms))

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradients of `loss`; after the last micro-batch of a step they are reduced too."""
        self.guard.note(loss)
        self.engine.backward(loss, scale_wrt_gas=False)
        # Recomputing a block stops where backward has what it needs, inside modules that DeepSpeed never sees end.
        del self._running[self._depth :]
        self._micro += 1
        if self._micro < self.run.train.accumulation:
            self.engine.step()  # only counts: DeepSpeed finds the boundary by the number of these calls

    def step(
        self, *, lr: float, weight_decay: float, momentum: float, clip: float | None = None, stop: bool = False
    ) -> Step:
        """Check, clip, update and move the target; or refuse, and change nothing.

        DeepSpeed takes its norms, then calls the client optimizer, which asks `_refuses` and clips. `overflow` makes
        it count a refused step as skipped and clear the gradients by its normal path.
        """
        assert self._micro == self.run.train.accumulation, f"step after {self._micro} micro-batches"
        self._micro, self._refused, self.optimizer.overflow = 0, None, False
        self._clip = clip
        # DeepSpeed takes no norm at stage 0; the gradients are reduced already and the same on all ranks.
        self.guard.agree(norms=part_norms(self.jepa, self.run.optim) if self.stage == 0 else {}, stop=stop)
        if self.stage > 0:
            self._norms.forget()
        set_rates(self.optimizer, lr=lr, weight_decay=weight_decay)
        self.engine.step()
        norm = joint_norm(self._part_norms())
        if self._refused is None and self.optimizer.overflow:  # DeepSpeed skips an invalid norm without asking
            self._refused = self.guard.verdict(norm)
            assert self._refused is not None, f"DeepSpeed skipped a step of gradient norm {norm}"
        if self._refused is None:
            self._move_target(momentum)
        return Step(refused=self._refused, grad_norm=norm, stop=self.guard.stop)

    def save(self, folder: Path) -> None:
        """Write this rank's share of the state."""
        write_shard(folder, self._pieces(), rank=self.rank, world=self.world)

    def load(self, folder: Path) -> None:
        """Take this rank's share of the state from `folder`."""
        read_pieces(folder, list(self._pieces()))
        self._follow_masters()

    def adopt(self, tensors: Tensors) -> None:
        """Take this rank's share of parameters and target from whole tensors."""
        fill_pieces(self._pieces(), tensors)
        self._follow_masters()

    def close(self) -> None:
        """Take DeepSpeed's hooks off the models; the process group stays, for DeepSpeed's next engine needs it."""
        self.engine.destroy()
        if self._follower is not None:
            self._follower.destroy()

    def _follow_masters(self) -> None:
        """Bring the parameters in line with their masters."""
        if self._follower is not None:
            for group in range(len(self.optimizer.fp32_partitioned_groups_flat)):
                self.optimizer._reassign_or_swap_out_partitioned_parameters(group)
            self.optimizer.empty_partition_cache()  # what is gathered now is of before
            self._follower.optimizer.empty_partition_cache()
        elif self.stage > 0:
            self.optimizer.update_lp_params()

    def _refuses(self) -> bool:
        """Asked by the client optimizer, once per flat group of one step: no collective in here."""
        if self._refused is None:
            norms = self._part_norms()
            self._refused = self.guard.verdict(joint_norm(norms))
            self._client.factors = clip_factors(norms, self._clip)
        if self._refused is not None:
            self.optimizer.overflow = True
        return self._refused is not None

    def _part_norms(self) -> dict[str, float]:
        return self.guard.norms if self.stage == 0 else self._norms.by_part()

    def _move_target(self, momentum: float) -> None:
        if self._follower is None:
            self.target.update_(encoder_tensors(self.jepa), momentum=momentum)
            return
        own, new = (self.partition.shares(encoder) for encoder in (self.target.encoder, self.jepa.encoder))
        average_(own, new, momentum=momentum)
        self._follower.optimizer.empty_partition_cache()  # persistent parameters would stay as they were gathered

    def _pieces(self) -> Iterator[Piece]:
        for name, parameter in self.jepa.named_parameters():
            if not parameter.requires_grad:
                continue
            stepped, at, start, length = self._place(parameter)
            state = adam_state(self._client, stepped)
            parts: tuple[tuple[Kind, Tensor], ...] = (
                ("master", stepped),
                ("exp_avg", state["exp_avg"]),
                ("exp_avg_sq", state["exp_avg_sq"]),
            )
            for kind, tensor in parts:
                yield Piece(
                    kind=kind,
                    name=name,
                    shape=full_shape(parameter),
                    start=start,
                    data=tensor.data.view(-1)[at : at + length],
                    replicated=self.stage == 0,
                )
            yield whole("step", name, state["step"])
        yield from untrained(self.jepa, self.target, piece=self.partition.piece)

    def _place(self, parameter: Any) -> tuple[Tensor, int, int, int]:
        """The tensor that is stepped for a parameter, and what this rank has in it: (tensor, at, start, length).

        Elements [at, at + length) of the flattened tensor are [start, start + length) of the flattened parameter.
        """
        if self.stage == 0:
            return parameter, 0, 0, parameter.numel()
        if self.stage == 3:
            group, at, _ = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
            return self.optimizer.fp32_partitioned_groups_flat[group], at, *self.partition.bounds(parameter.ds_numel)
        flats = zip(self.optimizer.bit16_groups, self.optimizer.single_partition_of_fp32_groups, strict=True)
        flat = next(flat for group, flat in flats if any(parameter is p for p in group))
        mapping = parameter._hp_mapping  # a rank's flat cuts through parameters anywhere; none: nothing of it is here
        if mapping is None:
            return flat, 0, 0, 0
        here = mapping.hp_fragment_address
        return flat, here.start, mapping.lp_fragment_address.start, here.numel


class _Tuples(nn.Module):
    """A Jepa that also returns its predictions as a plain tuple.

    DeepSpeed prepares a backward pass (tells its optimizer of the accumulation boundary, among others) in hooks on the
    tensors that it finds in what the model returns; it looks into tuples, and not into our dataclasses. At stage 3 it
    puts tensors of its own in their place, so a loss has to be taken of those.
    """

    def __init__(self, jepa: Jepa) -> None:
        super().__init__()
        self.jepa = jepa

    def forward(
        self, views: Tensor, splits: tuple[Split, ...], levels: Levels, index: Tensor | None, stream: int
    ) -> tuple[tuple[Tensor, ...], Prediction]:
        # Past the Jepa's own hooks, for those of stage 3 cannot look into a dataclass; it holds no parameter itself.
        prediction = self.jepa.forward(views, splits, levels, index, stream=stream)
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
