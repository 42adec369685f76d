import copy

import pytest
import torch
import torch.nn.functional as F
from made_clips import SPOILS, differing, made_clips, snapshot, take_step

from rayjepa.config import RunConfig, resolve
from rayjepa.masks import splits_for
from rayjepa.model import build
from rayjepa.train.engine import Engine
from rayjepa.train.plain import PlainEngine
from rayjepa.views import to_views

CPU = torch.device("cpu")


def _run(**overrides: object) -> RunConfig:
    base = {"cluster.workers": 0, "train.accumulation": 2, "optim.clip": 1.0}
    return resolve("tiny", base | {key.replace("__", "."): value for key, value in overrides.items()})


def _engine(run: RunConfig) -> PlainEngine:
    return PlainEngine(run, build(run), device=CPU)


def test_the_plain_engine_is_an_engine() -> None:
    assert isinstance(_engine(_run()), Engine)


def test_three_steps_equal_a_training_loop_written_out() -> None:
    run = _run()
    jepa, engine = build(run), _engine(run)
    target = copy.deepcopy(jepa.encoder)
    matrices = [p for n, p in jepa.named_parameters() if p.ndim > 1]
    vectors = [p for n, p in jepa.named_parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.04}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=run.optim.betas, eps=run.optim.eps)
    for step in range(3):
        for first in (step * 4, step * 4 + 2):
            clips = made_clips(run, range(first, first + 2))
            views, loss = to_views(clips, run, device=CPU), torch.zeros(())
            splits = splits_for(run, step=step, specs=clips.specs)
            with torch.no_grad():
                tokens, at = target.tokenise(views)
                truth = F.layer_norm(target(tokens, at)[-1], (24,), eps=1e-5)
            for term, split in zip(jepa(views, splits, (truth,)).terms, splits, strict=True):
                hidden = truth.gather(1, split.target[..., None].expand(-1, -1, 24))
                loss = loss + (term.prediction - hidden).abs().mean() / len(splits)
            (loss / 2).backward()
        norm = torch.nn.utils.clip_grad_norm_(jepa.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), jepa.encoder.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
        taken, _ = take_step(engine, run, step)
        assert taken.refused is None
        assert taken.grad_norm == pytest.approx(float(norm), rel=1e-6)
    for (name, ours), theirs in zip(engine.jepa.named_parameters(), jepa.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=name)
    for ours, theirs in zip(engine.target.encoder.parameters(), target.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("how", "reason"), SPOILS.items())
def test_a_refused_step_changes_nothing_then_or_later(how: str, reason: str) -> None:
    run = _run(optim__max_norm=1000)
    engine, never_saw_it = _engine(run), _engine(run)
    for each in (engine, never_saw_it):
        take_step(each, run, 0)
    before = snapshot(engine)
    refused = take_step(engine, run, 5, spoil=how)[0].refused
    assert refused is not None
    assert reason in refused
    assert differing(before, snapshot(engine)) == []
    for each in (engine, never_saw_it):
        assert take_step(each, run, 1)[0].refused is None
    assert differing(snapshot(never_saw_it), snapshot(engine)) == []


def test_a_refused_step_before_any_other_leaves_no_moments() -> None:
    run = _run()
    engine = _engine(run)
    take_step(engine, run, 0, spoil="nan loss")
    assert all(not tensor.any() for key, tensor in snapshot(engine).items() if key.startswith(("exp", "step")))


def test_the_wish_to_stop_comes_back_from_the_step() -> None:
    run = _run()
    assert take_step(_engine(run), run, 0, stop=True)[0].stop
    assert not take_step(_engine(run), run, 0)[0].stop


def test_bf16_computes_in_bf16_over_float32_parameters_and_target() -> None:
    run = _run(train__precision="bf16")
    engine = _engine(run)
    clips = made_clips(run, range(2))
    prediction = engine.forward(to_views(clips, run, device=CPU), splits_for(run, step=0, specs=clips.specs))
    assert prediction.terms[0].prediction.dtype == torch.bfloat16
    assert take_step(engine, run, 0)[0].refused is None
    assert {tensor.dtype for tensor in snapshot(engine).values()} == {torch.float32}
