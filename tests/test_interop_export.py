"""The verbs `import` and `export`, and programs of torch.export."""

from pathlib import Path

import pytest
import torch
from made_weights import made, same

import rayjepa
from rayjepa.cli import main
from rayjepa.data import synthetic
from rayjepa.interop import meta as meta_files
from rayjepa.interop import read_weights, torch_export, write_weights
from rayjepa.interop.encoder import Encoder
from rayjepa.interop.framing import normalised


def test_import_says_what_is_not_certain_and_export_writes_a_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = made()
    path, _ = meta_files.write(ours, tmp_path, which=None)
    own, out = tmp_path / "own", tmp_path / "hf"
    given = ["--heads", "2", "--predictor-heads", "2", "--frames", "4", "--size", "32"]
    assert main(["import", str(path), "-o", str(own), *given]) == 0
    said = capsys.readouterr().out
    assert "note: rotary pairing: tiled" in said
    assert f"wrote {own}: encoder, target, predictor" in said
    assert main(["export", str(own), "--to", "hf", "-o", str(out), "--weights", "context"]) == 0
    card = (out / "README.md").read_text()
    assert "license: fill-in" in card
    assert "Weights: context encoder" in card
    assert "Not known to the exporter: fill in data" in card
    assert same(read_weights(out).encoder, ours.encoder)
    assert main(["import", str(own), "-o", str(tmp_path / "bare"), "--weights", "target", "--no-predictor"]) == 0
    bare = read_weights(tmp_path / "bare")
    assert (bare.target, bare.predictor, bare.predictor_state) == (None, None, None)
    assert same(bare.encoder, ours.target)


def test_a_refused_export_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_weights(made(model__position="sincos"), tmp_path / "own")
    assert main(["export", str(tmp_path / "own"), "--to", "hf", "-o", str(tmp_path / "out")]) == 2
    assert "no class for a V-JEPA 1 video model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["import", str(tmp_path / "own"), "-o", str(tmp_path / "x"), "--heads", "2"]) == 2
    assert "says its heads, positions and sizes itself" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "own"), "--to", "meta", "-o", str(tmp_path / "own")]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_the_card_of_a_run_states_data_samples_and_health(tmp_path: Path) -> None:
    videos = synthetic.make(tmp_path / "videos", 6)
    words = ["--preset", "tiny", "cluster.workers=0", "train.engine=plain", "train.steps=2", f"data.videos={videos}"]
    assert main(["pretrain", *words, f"out={tmp_path}", "name=mine", "model.rope_pairing=tiled"]) == 0
    run = tmp_path / "mine"
    assert main(["export", str(run), "--to", "hf", "-o", str(tmp_path / "hf")]) == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    for line in (
        "# mine",
        "samples in 2 steps",
        "fingerprint",
        "6 videos",
        "the floor",
        "highest possible",
        "target (mov",
    ):
        assert line in card
    (checkpoint,) = (run / "checkpoints").iterdir()
    clips = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    assert torch.equal(rayjepa.load(run)(clips), rayjepa.load(checkpoint)(clips))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("takes", ["views", "uint8"])
@pytest.mark.parametrize("position", ["rope", "sincos"])
def test_an_exported_program_gives_the_encoders_features_for_any_number_of_clips(
    tmp_path: Path, takes: torch_export.Input, position: str
) -> None:
    ours = made(model__position=position)
    path = torch_export.write(ours, tmp_path, which="target", takes=takes)
    program = torch.export.load(path).module()
    for count in (1, 5):
        frames = torch.randint(0, 256, (count, 4, 32, 32, 3), dtype=torch.uint8)
        views = normalised(frames.permute(0, 4, 1, 2, 3).float())
        expected = Encoder(ours).encode(views)
        assert torch.allclose(program(frames if takes == "uint8" else views), expected, atol=1e-6)
