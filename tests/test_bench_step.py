import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from torch import nn

from rayjepa.bench import step_report
from rayjepa.bench.clock import Clock
from rayjepa.bench.step import OURS, THEIRS, measure
from rayjepa.bench.step_ours import INPUTS, Ours, rank_share
from rayjepa.bench.step_peer import why_not
from rayjepa.cli import main
from rayjepa.config import RunConfig, resolve
from rayjepa.train.budget import flops

CPU = torch.device("cpu")
OURS_ONLY = {"guard", "loss", "rest", "target", "encoder", "predictor", "backward", "optimizer", "ema"}


def _run(**overrides: object) -> RunConfig:
    base = {"train.engine": "plain", "model.rope_pairing": "tiled", "train.clips": 4}
    return rank_share(resolve("tiny", base | {key.replace("__", "."): value for key, value in overrides.items()}))


def test_parts_of_a_measurement_sum_to_it_and_what_a_part_holds_counts_once() -> None:
    clock, inner = Clock(CPU), nn.Identity()
    clock.watch(inner, "inner")
    inner(torch.zeros(1))  # outside of a measurement: nothing is counted
    clock.start()
    with clock.part("outer"):
        clock.watched(inner, "twice")(torch.zeros(1))
    parts, cpu = clock.stop()
    assert set(parts) == set(cpu) == {"rest", "outer", "twice", "inner"}
    assert all(seconds >= 0 for seconds in parts.values())
    clock.start()
    assert set(clock.stop()[0]) == {"rest"}


def test_the_verb_times_all_parts_and_counts_the_tokens_of_its_own_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "step", "--preset", "tiny", "--rounds", "2", "train.clips=4", "model.rope_pairing=interleaved"]
    assert main([*words, "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.svg")]) == 0
    assert "no peer: transformers' V-JEPA 2 layers have no such model.rope_pairing" in capsys.readouterr().out
    found = json.loads((tmp_path / "a.json").read_text())
    for reading in found["readings"]:
        assert set(reading["taken"]["parts"]) == OURS_ONLY | set(INPUTS)
        assert reading["taken"]["flops"] > 0
    side = found["summary"]["sides"][OURS]
    assert sum(side["parts_ms"].values()) == pytest.approx(side["whole_ms"], rel=0.5)  # medians of two rounds
    titles = [t.text for t in ET.parse(tmp_path / "a.svg").getroot().iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == len(OURS_ONLY) + len(INPUTS)


def test_a_step_of_transformers_layers_learns_the_same(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    run = _run(optim__clip=0.5, train__accumulation=2, cluster__workers=1)
    found = step_report.summary(measure(run, rounds=3, device=CPU, say=lambda line: None))
    assert set(found.sides) == {OURS, THEIRS}
    assert found.loss_difference is not None
    assert found.loss_difference < 1e-5
    assert found.ratio is not None
    assert found.ratio.low <= found.ratio.median <= found.ratio.high


def test_flops_are_those_of_the_masks_that_were_drawn() -> None:
    ours = Ours(_run(), device=CPU, clock=Clock(CPU))
    _, counts = ours.inputs(0)
    other = ours.inputs(3)[1]
    assert counts != other
    assert ours.take(0).flops == pytest.approx(ours.run.micro_batch * flops(ours.run, counts[0]).model)


def test_the_host_waits_once_in_a_step() -> None:
    assert Ours(_run(optim__clip=1.0), device=CPU, clock=Clock(CPU)).syncs(0) == 1


def test_one_rank_takes_its_share_of_the_first_phase_and_stream() -> None:
    streams = [{"name": "a", "weight": 3.0, "set": {"data.fps": 4.0}}, {"name": "b", "weight": 1.0, "set": {}}]
    run = rank_share(resolve("tiny", {"train.clips": 16, "train.accumulation": 2, "streams": streams}))
    assert (run.train.clips, run.micro_batch, run.ranks, run.data.fps) == (8, 4, 1, 4.0)


def test_what_transformers_cannot_do_is_named() -> None:
    assert why_not(_run()) == ""
    assert "model.mlp, objective.kind" in why_not(_run(model__mlp="swiglu", objective__kind="l2"))


def test_a_mistake_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--rounds", "0"]) == 2
    assert main(["bench", "step", "--plot", "a.png"]) == 2
    assert "ends in .svg" in capsys.readouterr().err


def test_a_gpu_is_found_by_its_name() -> None:
    gpu = step_report.gpu_of("NVIDIA H100 80GB HBM3")
    assert gpu is not None
    assert gpu.name.startswith("H100")
    assert step_report.gpu_of("NVIDIA GeForce RTX 4090") is None


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'ray', 'deepspeed', 'pyarrow', 'av', 'transformers', 'rich', 'optuna', 'tensorboard'}:
            raise ImportError(f'no {name}')
sys.meta_path.insert(0, Absent())
from rayjepa.cli import main
sys.exit(main(['bench', 'step', '--preset', 'tiny', '--rounds', '1', 'train.clips=4']))
"""


@pytest.mark.slow
def test_a_machine_without_ray_deepspeed_and_decoder_can_time_a_step() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no peer: no transformers" in done.stdout
