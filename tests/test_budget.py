"""The plan's arithmetic against what PyTorch and DeepSpeed do: `python tests/test_budget.py ENGINE…` is one rank."""

import gc
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_clips import made_clips, take_step
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rayjepa.config import RunConfig, resolve
from rayjepa.masks import Split, splits_for
from rayjepa.model import build, make_target, sizes
from rayjepa.objective import score
from rayjepa.train.budget import GPUS, budget, flops, gpu_named
from rayjepa.train.engine import make_engine
from rayjepa.train.footprint import (
    ENGINES,
    GATHER_BUCKET,
    REDUCE_BUCKET,
    Counts,
    Engine,
    activations,
    engine_of,
    memory,
)
from rayjepa.train.zero import _import_deepspeed, deepspeed_config
from rayjepa.views import to_views

CPU = torch.device("cpu")
TIMEOUT_S = 200.0
"""Five times what all engines take at two ranks on two idle cores."""
# V-JEPA 2's encoders (width, depth, heads, ratio) on 16 frames of 256 px, with the mean token counts of its masks in
# groups of 24: GFLOP of target, context, predictor, and in all, with and without recomputation.
PUBLISHED = [
    (1024, 24, 16, 4.0, (1656, 422, 217, 3573, 4212)),
    (1280, 32, 16, 4.0, (3272, 858, 218, 6498, 7574)),
    (1408, 40, 22, 48 / 11, (5088, 1358, 218, 9815, 11391)),
]
COUNTS = ((501, 966), (133, 1441))


def _vit(width: int, depth: int, heads: int, ratio: float) -> RunConfig:
    return resolve(
        None,
        {"model": {"width": width, "depth": depth, "heads": heads, "mlp_ratio": ratio}, "cluster.workers": 1},
    )


def _counts(splits: tuple[Split, ...]) -> Counts:
    return [(split.context.shape[1], split.target.shape[1]) for split in splits]


@pytest.mark.parametrize(("width", "depth", "heads", "ratio", "giga"), PUBLISHED)
def test_flops_are_those_of_the_reference_less_one_tokenising(width, depth, heads, ratio, giga) -> None:
    run = _vit(width, depth, heads, ratio)
    found = flops(run, COUNTS)
    again = 2 * 2048 * 1536 * width  # it tokenises once for each mask, we once for all
    target, context, predictor, model, hardware = giga
    assert found.target / 1e9 == pytest.approx(target, abs=1)
    assert (found.context + again) / 1e9 == pytest.approx(context, abs=1)
    assert found.predictor / 1e9 == pytest.approx(predictor, abs=1)
    assert (found.model + 3 * again) / 1e9 == pytest.approx(model, abs=2)
    assert (found.model + found.recomputed) / 1e9 == pytest.approx(hardware, rel=0.015)  # it recomputes all, we blocks


SHAPES = [
    {"data.frames": 4, "data.size_px": 32},
    {"data.frames": 8, "data.size_px": 48, "model.depth": 3, "model.mlp_ratio": 3.0, "masks.kind": "random"},
    {"model.width": 48, "model.heads": 4, "predictor.depth": 2, "predictor.mlp_ratio": 2.0, "masks.kind": "tube"},
    {"masks.kind": "ijepa", "masks.ijepa.min_context": 4},  # one context for four targets
    {"masks.truncate": "none"},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_flops_are_what_pytorch_counts_but_for_the_pixels_gradient(shape: dict[str, object]) -> None:
    """With attention written out in products, since fused kernels compute scores again in backward."""
    run = resolve("tiny", {"cluster.workers": 0, **shape})
    clips = made_clips(run, range(3))
    splits = splits_for(run, step=0, specs=clips.specs)
    found = flops(run, _counts(splits))
    jepa, views = build(run), to_views(clips, run, device=CPU)
    target = make_target(jepa.encoder)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward, torch.no_grad():
        levels = target(views)
    assert forward.get_total_flops() == 3 * found.target
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as trained:
        loss = score(jepa(views, splits, levels, None), run.objective).loss
        assert trained.get_total_flops() == 3 * (found.context + found.predictor)
        loss.backward()
    patch = 3 * run.model.tubelet * run.model.patch_px**2
    pixels = 2 * math.prod(run.grid) * patch * run.model.width
    assert forward.get_total_flops() + trained.get_total_flops() == 3 * (found.model - pixels)


@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_what_autograd_keeps(recompute: bool) -> None:
    """In float32, where the CPU keeps what a GPU does; under autocast a GPU's norms take float32 and a CPU's do not."""
    shape = {"data.frames": 8, "data.size_px": 64, "model.width": 96, "model.depth": 12, "model.heads": 3}
    small = {"predictor.width": 48, "predictor.depth": 6}
    run = resolve(
        "tiny",
        {"cluster.workers": 0, "train.checkpoint_blocks": recompute, "train.clips": 3, **shape, **small},
    )
    jepa = build(run)
    clips = made_clips(run, range(3))
    views, splits = to_views(clips, run, device=CPU), splits_for(run, step=0, specs=clips.specs)
    with torch.no_grad():
        levels = make_target(jepa.encoder)(views)
    weights = {p.untyped_storage().data_ptr() for p in jepa.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = score(jepa(views, splits, levels, None), run.objective)
    kept |= {t.untyped_storage().data_ptr(): t for t in (*levels, views)}
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    encoder, predictor = sizes(run)
    estimated = activations(run, _counts(splits), encoder=encoder, predictor=predictor)
    assert scores.loss.requires_grad
    assert 1.0 < estimated / measured < (1.6 if recompute else 1.1)  # above: the block in work is not there yet


def test_buckets_are_those_that_the_engines_use() -> None:
    zero = deepspeed_config(resolve("tiny", {}))["zero_optimization"]
    assert (zero["reduce_bucket_size"], zero["allgather_bucket_size"]) == (REDUCE_BUCKET, GATHER_BUCKET)


def test_more_ranks_never_need_more_memory_each() -> None:
    encoder, predictor = 300_000_000, 22_000_000
    for engine in ENGINES:
        states = [
            memory(
                engine,
                resolve(None, {"cluster.workers": n, "train.clips": 64}),
                encoder=encoder,
                predictor=predictor,
                activations=0.0,
            ).state
            for n in (1, 2, 8, 64)
        ]
        assert states == sorted(states, reverse=True), engine


def test_hours_and_cost_follow_the_rate() -> None:
    run = resolve(None, {"cluster.workers": 4, "train.clips": 64, "train.steps": 100})
    plans = [
        budget(run, encoder=1, predictor=1, drawn=[COUNTS], gpu=gpu_named("h100"), mfu=mfu, price=3.0)
        for mfu in (0.2, 0.4)
    ]
    slow, fast = plans
    assert slow.hours == pytest.approx(2 * fast.hours)
    assert fast.clips_per_s * fast.hours * 3600 == pytest.approx(run.samples)
    assert fast.clips_per_s * flops(run, COUNTS).model == pytest.approx(4 * 0.4 * GPUS["h100"].bf16)
    assert fast.cost == pytest.approx(3.0 * 4 * fast.hours)


# One rank: every engine on a model large enough that what is not model state is small beside it.


def _engine_run(engine: Engine, world: int, accumulation: int) -> RunConfig:
    return resolve(
        "tiny",
        {
            "cluster.workers": world,
            "train.engine": "plain" if engine == "plain" else "zero",
            "zero.stage": int(engine[-1]) if engine != "plain" else 1,
            "model": {"width": 256, "depth": 3, "heads": 4},
            "predictor": {"width": 128, "depth": 2, "heads": 4},
            "train.accumulation": accumulation,
            "train.clips": 2 * accumulation,
            "optim.clip": 1.0,
        },
    )


def _live() -> int:
    """Bytes of all tensors that Python can reach, each storage once, less DeepSpeed's buckets."""
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and tensor.device.type == "cpu":
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(size for size in found.values() if size < 4 * REDUCE_BUCKET)


def _measured(engine: Engine, world: int) -> dict[str, float]:
    """Most live bytes after each backward, in the optimizer's step and after it; and what the plan says."""
    run = _engine_run(engine, world, accumulation=2)
    before = _live()
    made = make_engine(run, device=CPU)
    client = made._client if hasattr(made, "_client") else made.optimizer  # type: ignore[attr-defined]
    refuses, backward, seen = client.refuses, made.backward, [0]

    def watch() -> bool:
        seen.append(_live())
        return refuses() if refuses is not None else False

    def watched(loss: torch.Tensor) -> None:
        backward(loss)
        seen.append(_live())

    take_step(made, run, 0)  # makes the moments
    client.refuses, made.backward = watch, watched  # type: ignore[method-assign]
    take_step(made, run, 1)
    seen.append(_live())
    encoder, predictor = sizes(run)
    said = memory(engine_of(run), run, encoder=encoder, predictor=predictor, activations=0.0).state
    made.close()
    return {"measured": max(seen) - before, "said": said}


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_model_state_is_within_a_tenth_of_what_the_engines_hold(world: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path / f"{rank}.json")],
            env=os.environ | group | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(world)
    ]
    try:
        said = [rank.communicate(timeout=TIMEOUT_S)[0].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, output in enumerate(said):
        path = tmp_path / f"{rank}.json"
        assert path.exists(), output[-2000:]
        for engine, found in json.loads(path.read_text()).items():
            assert found["said"] == pytest.approx(found["measured"], rel=0.1), (engine, rank, found)


if __name__ == "__main__":
    world = int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo")  # here, so that no engine takes it away from the next
    _import_deepspeed(CPU)
    gc.freeze()  # what modules hold is not looked through again each time
    Path(sys.argv[1]).write_text(json.dumps({engine: _measured(engine, world) for engine in ENGINES}))
