"""A run that begins with trained weights: model.init."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_weights import made, made_run, same
from stages import KINDS, Stages, foreign, mean, saved_in, whole

from rayjepa.cli import main
from rayjepa.config import resolve
from rayjepa.data import synthetic
from rayjepa.interop import meta as meta_files
from rayjepa.interop import read_weights, write_weights
from rayjepa.interop.start import begin, start_of
from rayjepa.model import build
from rayjepa.train.plain import PlainEngine

TINY = ["--preset", "tiny", "cluster.workers=0", "train.engine=plain", "train.steps=2"]


def begun(source: Path, run_dir: Path, **overrides: object) -> tuple[PlainEngine, str]:
    """An engine that began with the weights at `source`, and what the run folder says of that."""
    run = made_run(model__init=str(source), cluster__workers=0, train__engine="plain", **overrides)
    engine = PlainEngine(run, build(run), device=torch.device("cpu"))
    run_dir.mkdir()
    begin(engine, run, run_dir)
    return engine, " ".join(json.loads((run_dir / "init.json").read_text())["report"])


def test_encoder_target_and_predictor_are_taken(tmp_path: Path) -> None:
    ours = made()
    write_weights(ours, tmp_path / "own")
    engine, said = begun(tmp_path / "own", tmp_path / "run")
    assert same(engine.jepa.encoder.state_dict(), ours.encoder)
    assert same(engine.target.encoder.state_dict(), ours.target)
    assert same(engine.jepa.predictor.state_dict(), ours.predictor_state)
    assert "optimizer, schedules and steps begin anew" in said


def test_what_begins_anew_is_said(tmp_path: Path) -> None:
    ours = made(mask_tokens=1)
    write_weights(ours.only("context"), tmp_path / "one")
    engine, said = begun(tmp_path / "one", tmp_path / "run")
    assert same(engine.target.encoder.state_dict(), ours.encoder)
    assert "target begins equal to the encoder" in said
    assert "begins untrained, since the source lacks it: predictor.mask_tokens.1" in said
    write_weights(made(mask_tokens=4), tmp_path / "four")
    _, said = begun(tmp_path / "four", tmp_path / "again")
    assert (
        "not loaded, since the run's model has no place for it: predictor.mask_tokens.2, predictor.mask_tokens.3"
        in said
    )


def test_a_file_of_metas_of_a_known_size_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(meta_files.HEADS, (48, 2), 2)  # a size as small as this was never released
    monkeypatch.setattr(meta_files, "PREDICTOR_WIDTH", 24)
    monkeypatch.setattr(meta_files, "ROPE_PREDICTOR_HEADS", 2)
    ours = made()
    path, _ = meta_files.write(ours, tmp_path, which=None)
    start = start_of(made_run(model__init=str(path)))
    assert torch.equal(start.tensors["target", "norm.bias"], (ours.target or {})["norm.bias"])
    assert any("rotary pairing: tiled" in line for line in start.lines)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        (
            {"model.width": 96},
            r"set model.width=48 \(it is 96\).*blocks\.0\.attn\.proj\.bias is \[48\] there and \[96\]",
        ),
        ({"model.depth": 1}, r"set model.depth=2 \(it is 1\).*no encoder\.blocks\.1\.attn\.proj\.bias"),
        ({"model.depth": 3}, r"set model.depth=2 \(it is 3\).*the weights lack encoder\.blocks\.2"),
        ({"model.heads": 4}, r"set model.heads=2 \(it is 4\)$"),
        ({"model.rope_pairing": "interleaved"}, r"set model.rope_pairing=tiled \(it is interleaved\)$"),
        ({"model.position": "sincos"}, r"set model.position=rope \(it is sincos\)$"),
        ({"model.mlp_ratio": 2}, r"set model.mlp_ratio=4.0 \(it is 2.0\)"),
        ({"model.patch_px": 16}, r"model.patch_px=8 .*patch_embed.proj.weight is \[48, 3, 2, 8, 8\]"),
        ({"predictor.width": 12}, r"predictor.width=24 \(it is 12\).*--no-predictor"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_architecture_is_named_by_knob_tensor_and_shapes(
    tmp_path: Path, knobs: dict[str, object], said: str
) -> None:
    write_weights(made(), tmp_path / "own")
    with pytest.raises(ValueError, match=said):
        start_of(made_run(model__init=str(tmp_path / "own"), **{k.replace(".", "__"): v for k, v in knobs.items()}))


def test_the_position_codes_other_grid_is_said(tmp_path: Path) -> None:
    write_weights(made(model__position="sincos"), tmp_path / "own")
    run = made_run(model__position="sincos", data__size_px=64, model__init=str(tmp_path / "own"))
    assert any("set model.sincos_grid=[2, 4, 4]" in line for line in start_of(run).lines)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.make(tmp_path_factory.mktemp("videos"), 6)


def test_a_misfit_fails_before_anything_is_made(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    write_weights(made(), tmp_path / "own")
    words = ["--preset", "tiny", f"out={tmp_path / 'runs'}", f"data.videos={videos}", f"model.init={tmp_path / 'own'}"]
    assert main(["pretrain", *words]) == 2
    assert "does not fit this run's model: set model.width=48" in capfd.readouterr().err + caplog.text
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["plain", "zero"])
def test_a_run_goes_on_from_another_and_a_resume_from_itself(videos: Path, tmp_path: Path, engine: str) -> None:
    still = ["optim.lr=1e-30", "optim.start_lr=0", "optim.final_lr=0", "optim.weight_decay=0", "ema.momentum=1"]
    new = ["pretrain", *TINY, f"data.videos={videos}", "out=runs"]
    in_its_own_process(tmp_path, *new, "name=first")
    first = read_weights(tmp_path / "runs" / "first")
    said = in_its_own_process(tmp_path, *new, "name=second", f"train.engine={engine}", "model.init=runs/first", *still)
    assert "model.init: the run begins with" in said
    assert resolve(str(tmp_path / "runs/second/run.yaml"), {}).model.init == str(tmp_path / "runs/first")
    second = read_weights(tmp_path / "runs" / "second")
    assert same(second.target, first.target)
    assert all(torch.allclose(second.encoder[name], tensor, atol=1e-6) for name, tensor in first.encoder.items())
    before = (tmp_path / "runs/second/init.json").stat().st_mtime_ns
    in_its_own_process(tmp_path, "pretrain", "--resume", "runs/second", "train.steps=3")
    assert (tmp_path / "runs/second/init.json").stat().st_mtime_ns == before


def in_its_own_process(folder: Path, *words: str) -> str:
    """What a command line says: DeepSpeed keeps its process group until the process ends."""
    command = [sys.executable, "-m", "rayjepa.cli", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.dist
@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_takes_weights_over_at_two_ranks(kind: str, stages: Stages) -> None:
    found = stages.two
    held, given = whole(saved_in(stages.folder / f"{kind}-adopted")), foreign()
    for key, tensor in given.items():
        assert torch.equal(held[key], tensor.flatten()), key
    assert all(
        not float(tensor.abs().max()) for key, tensor in held.items() if key[0] in ("exp_avg", "exp_avg_sq", "step")
    )
    assert mean(found, f"{kind} adopted", "losses") == pytest.approx(mean(found, "plain adopted", "losses"), abs=1e-6)
