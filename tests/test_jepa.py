import dataclasses
import functools

import pytest
import torch
from torch import nn

from rayjepa.config import ModelConfig, PredictorConfig, RunConfig, resolve
from rayjepa.data.clip import ClipSpec, Window
from rayjepa.masks import Split, splits_for
from rayjepa.model import Jepa, Prediction, Predictor, build, make_target
from rayjepa.model.blocks import Block


@pytest.fixture
def run() -> RunConfig:
    return resolve("tiny", {"cluster.workers": 0})


def specs(run: RunConfig, clips: int = 2) -> tuple[ClipSpec, ...]:
    window = Window(size_px=run.data.size_px, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=-1)
    return tuple(
        ClipSpec(
            index=i, attempt=0, stream="videos", video=i, uri=str(i), start_s=0.0, frames=run.data.frames,
            fps=run.data.fps, window=window, pixels="rgb", flip=False, mask_seed=i, view_seed=i,
        )
        for i in range(clips)
    )  # fmt: skip


def views(run: RunConfig, clips: int = 2, seed: int = 0) -> torch.Tensor:
    shape = (clips, 3, run.data.frames, run.data.size_px, run.data.size_px)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def predict(jepa: Jepa, x: torch.Tensor, splits: tuple[Split, ...]) -> Prediction:
    return jepa(x, splits, make_target(jepa.encoder)(x))


@pytest.mark.parametrize(("width", "parameters"), [(1024, 22_084_480), (1280, 22_281_344), (1408, 22_379_776)])
def test_the_published_predictor_has_its_published_parameters(width: int, parameters: int) -> None:
    with torch.device("meta"):
        predictor = Predictor(PredictorConfig(), model=ModelConfig(width=width), mask_tokens=6)
    assert sum(p.numel() for p in predictor.parameters()) == parameters


def test_predictor_parameters_are_named_as_in_the_published_weights(run: RunConfig) -> None:
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    modules = ["predictor_embed", "predictor_norm", "predictor_proj", *(f"predictor_blocks.0.{m}" for m in block)]
    expected = {f"{m}.{kind}" for m in modules for kind in ("weight", "bias")} | {"mask_tokens.0", "mask_tokens.1"}
    assert {name for name, _ in build(run).predictor.named_parameters()} == expected


def test_nothing_is_left_uninitialised(run: RunConfig) -> None:
    jepa = Jepa(run)
    with torch.no_grad():
        for p in jepa.parameters():
            p.fill_(float("nan"))
    jepa.initialise(run.seed)
    assert [name for name, p in jepa.named_parameters() if not p.isfinite().all()] == []
    assert list(jepa.buffers()) == []  # a buffer would need a value as well


def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone(run: RunConfig) -> None:
    torch.manual_seed(11)
    first = build(run)
    after = torch.rand(())
    torch.manual_seed(11)
    assert torch.equal(after, torch.rand(()))
    again, other = build(run), build(dataclasses.replace(run, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.encoder.patch_embed.proj.weight, other.encoder.patch_embed.proj.weight)


def test_the_encoders_weights_do_not_depend_on_the_predictor(run: RunConfig) -> None:
    deeper = resolve("tiny", {"cluster.workers": 0, "predictor.depth": 3})
    pairs = zip(build(run).encoder.parameters(), build(deeper).encoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_term_per_mask_type_with_normalised_targets_gathered_at_its_ids(run: RunConfig) -> None:
    jepa, x = build(run), views(run)
    splits = splits_for(run, step=0, specs=specs(run))
    (features,) = make_target(jepa.encoder)(x)
    prediction = jepa(x, splits, (features,), torch.arange(2))
    assert [term.name for term in prediction.terms] == ["mask0", "mask1"]
    assert prediction.index is not None
    normed = (features - features.mean(-1, keepdim=True)) / (features.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    for term, split in zip(prediction.terms, splits, strict=True):
        assert term.prediction.shape == term.target.shape == (2, split.target.shape[1], run.model.width)
        for row in range(2):
            torch.testing.assert_close(term.target[row], normed[row, split.target[row]])


def test_the_prediction_sees_the_context_and_nothing_else(run: RunConfig) -> None:
    jepa, x = build(run), views(run)
    splits = splits_for(run, step=0, specs=specs(run))
    levels = make_target(jepa.encoder)(x)
    px, tubelet = run.model.patch_px, run.model.tubelet
    _, height, width = run.grid
    other = views(run, seed=9)
    for row, place in enumerate(splits[0].context):
        for i in place.tolist():  # paste what is seen into other clips
            t, h, w = i // (height * width), i // width % height, i % width
            times, rows, columns = (slice(at * n, (at + 1) * n) for at, n in ((t, tubelet), (h, px), (w, px)))
            other[row, :, times, rows, columns] = x[row, :, times, rows, columns]
    same = jepa(other, splits, levels).terms[0].prediction
    torch.testing.assert_close(same, jepa(x, splits, levels).terms[0].prediction)


def test_predictions_stand_at_their_targets_whatever_the_order(run: RunConfig) -> None:
    jepa, x = build(run), views(run)
    (split, _) = splits_for(run, step=0, specs=specs(run))
    back = Split(context=split.context.flip(1), target=split.target.flip(1))
    forth, reverse = (predict(jepa, x, (s, s)).terms[0] for s in (split, back))
    torch.testing.assert_close(reverse.prediction.flip(1), forth.prediction, rtol=1e-4, atol=1e-6)


def test_autocast_to_bf16_predicts_in_bf16_against_fp32_targets(run: RunConfig) -> None:
    jepa, x = build(run), views(run)
    splits = splits_for(run, step=0, specs=specs(run))
    exact = predict(jepa, x, splits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = predict(jepa, x, splits)
    for a, b in zip(exact.terms, rounded.terms, strict=True):
        assert (b.prediction.dtype, b.target.dtype) == (torch.bfloat16, torch.float32)
        assert (a.prediction - b.prediction.float()).abs().max() < 0.02 * a.prediction.abs().max()


def test_every_parameter_has_a_gradient_and_the_target_has_none(run: RunConfig) -> None:
    jepa, x = build(run), views(run)
    with torch.no_grad():  # a mask token of zero still has a gradient; a zero output layer would not
        levels = make_target(jepa.encoder)(x)
    prediction = jepa(x, splits_for(run, step=0, specs=specs(run)), levels)
    torch.stack([term.prediction.square().mean() for term in prediction.terms]).sum().backward()
    assert [name for name, p in jepa.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert not any(term.target.requires_grad for term in prediction.terms)


def test_recomputed_blocks_run_twice_in_training_alone_and_change_no_bit(run: RunConfig) -> None:
    again = dataclasses.replace(run, train=dataclasses.replace(run.train, checkpoint_blocks=True))
    trained, followed, gradients = [0, 0], [0, 0], []
    for place, each in enumerate((run, again)):
        jepa, x, splits = build(each), views(each), splits_for(each, step=0, specs=specs(each))
        target = make_target(jepa.encoder)
        for part, runs in ((jepa, trained), (target, followed)):
            for block in (m for m in part.modules() if isinstance(m, Block)):
                block.norm1.register_forward_hook(functools.partial(_count, runs, place))
        terms = jepa(x, splits, target(x)).terms
        torch.stack([term.prediction.square().mean() for term in terms]).sum().backward()
        with torch.no_grad():
            jepa(x, splits, target(x))
        jepa.eval()(x, splits, target(x))
        gradients.append([p.grad for p in jepa.parameters()])
    blocks = (run.model.depth + run.predictor.depth) * len(run.masks.multiblock)
    assert trained == [3 * blocks, 4 * blocks]
    assert followed == [3 * run.model.depth] * 2
    assert all(torch.equal(kept, recomputed) for kept, recomputed in zip(*gradients, strict=True))


def _count(runs: list[int], place: int, *_: object) -> None:
    runs[place] += 1


def test_the_target_follows_the_recurrence(run: RunConfig) -> None:
    encoder = build(run).encoder
    target = make_target(encoder)
    expected = {name: p.detach().double() for name, p in encoder.named_parameters()}
    for step in range(5):
        momentum = 0.9 + 0.01 * step
        with torch.no_grad():
            for p in encoder.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(step)), alpha=0.1)
        target.update_(encoder.named_parameters(), momentum=momentum)
        for name, p in encoder.named_parameters():
            expected[name] = momentum * expected[name] + (1 - momentum) * p.detach().double()
    for name, p in target.encoder.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_momentum_one_keeps_the_targets_bits_and_zero_takes_the_encoders(run: RunConfig) -> None:
    encoder, target = build(dataclasses.replace(run, seed=5)).encoder, make_target(build(run).encoder)
    before = [p.clone() for p in target.parameters()]
    target.update_(encoder.named_parameters(), momentum=1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, target.parameters(), strict=True))
    target.update_(encoder.named_parameters(), momentum=0.0)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), target.parameters(), strict=True))


def test_the_target_moves_in_fp32_where_a_bf16_average_stands_still(run: RunConfig) -> None:
    encoder = build(run).encoder.bfloat16()
    target = make_target(encoder)
    assert {p.dtype for p in target.parameters()} == {torch.float32}
    coarse = encoder.norm.weight.detach().clone()  # ones
    source = {name: p.detach() * 1.1 for name, p in encoder.named_parameters()}
    for _ in range(100):
        target.update_(source.items(), momentum=0.999)
        coarse.lerp_(source["norm.weight"], 1 - 0.999)
    assert torch.equal(coarse, torch.ones_like(coarse))
    expected = 1.1016 - 0.1016 * 0.999**100  # 1.1 in bf16 is 1.1016
    torch.testing.assert_close(target.encoder.norm.weight, torch.full((24,), expected), rtol=1e-4, atol=0)


def test_the_target_carries_buffers_by_name(run: RunConfig) -> None:
    encoder = build(run).encoder
    encoder.register_buffer("running", torch.zeros(3))
    encoder.register_buffer("count", torch.zeros((), dtype=torch.int64))
    target = make_target(encoder)
    source = dict(encoder.named_parameters()) | {"running": torch.ones(3), "count": torch.tensor(7)}
    target.update_(source.items(), momentum=0.75)
    buffers = dict(target.encoder.named_buffers())
    torch.testing.assert_close(buffers["running"], torch.full((3,), 0.25))
    assert buffers["count"] == 7
    with pytest.raises(RuntimeError, match=r"short of \['running'\]"):
        target.update_(((n, t) for n, t in source.items() if n != "running"), momentum=0.75)


def test_the_target_is_frozen_and_apart_from_the_encoder(run: RunConfig) -> None:
    encoder = build(run).encoder
    target = make_target(encoder)
    assert isinstance(target, nn.Module)
    assert not any(p.requires_grad for p in target.parameters())
    assert not {p.data_ptr() for p in target.parameters()} & {p.data_ptr() for p in encoder.parameters()}
    with pytest.raises(ValueError, match=r"momentum is 1\.5"):
        target.update_(encoder.named_parameters(), momentum=1.5)
