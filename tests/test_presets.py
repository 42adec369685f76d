"""The recipes that ship with the package: what each says of itself, and what it comes to."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import pytest

from rayjepa.cli import main
from rayjepa.config import phases_of, presets, resolve
from rayjepa.data import synthetic
from rayjepa.model import sizes
from rayjepa.train.history import coverage, read_history
from rayjepa.train.schedules import learning_rate, momentum, weight_decay


class Recipe(NamedTuple):
    """Published figures: parameters (a mask token of 384 for each mask type or stream), and where schedules end."""

    encoder: int
    predictor: int
    clips: int
    lr: float
    decay: float
    momentum: float


L, H, G = 303_885_312, 631_648_000, 1_012_173_952
V1, V2 = (7.50e-5, 0.3656, 0.9996), (1e-6, 0.04, 0.99925)
RECIPES = {
    "vjepa-l16": Recipe(L, 22_082_944, 3072, *V1),
    "vjepa-h16": Recipe(H, 22_279_808, 3072, *V1),
    "vjepa-h16-384": Recipe(H, 22_279_808, 2400, *V1),
    "vjepa2-l16": Recipe(L, 22_082_560, 3072, *V2),
    "vjepa2-h16": Recipe(H, 22_279_424, 3072, *V2),
    "vjepa2-g16": Recipe(G, 22_377_856, 3072, *V2),
    "vjepa2-g16-384": Recipe(G, 22_377_856, 3072, *V2),
    "ijepa-h14": Recipe(630_434_560, 22_279_424, 2048, 1e-6, 0.4, 1.0),
}
COOLDOWN = [name for name in RECIPES if name.startswith("vjepa2")]
SMALL = {
    "data.size_px": 64,
    "data.holdout": 0.1,
    "model.width": 24,
    "model.depth": 2,
    "model.heads": 2,
    "predictor.width": 12,
    "predictor.depth": 1,
    "predictor.heads": 2,
    "masks.group_size": 4,
    "masks.ijepa.min_context": 2,
    "optim.warmup_steps": 1,
    "optim.clip_from_step": 1,
    "train.steps": 2,
    "train.clips": 4,
    "train.engine": "plain",
    "health.clips": 8,
    "report.every_steps": 1,
    "report.tensorboard": False,
    "cluster.workers": 0,
    "cluster.gpus": False,
}
"""What a recipe is cut down by, to take two steps of each phase on a CPU; all else is the recipe's."""


def test_every_recipe_is_tested() -> None:
    assert RECIPES.keys() == presets().keys() - {"demo", "learning", "tiny"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_begins_with_what_to_expect(name: str) -> None:
    title, *lines = [line for line in presets()[name].read_text().splitlines() if line.startswith("#")]
    assert title.split(":")[0].startswith(("# V-JEPA", "# I-JEPA"))
    leads = [line[2:].split(":")[0] for line in lines if line[2:3].isalpha()]
    assert leads == ["Source", "Hardware", "Hours", "Expected", "Data", "Differs"]
    said = " ".join(line.lstrip("# ") for line in lines)
    for part in ("arXiv:", "configs/", ".yaml", "facebookresearch/", "80 GB", "not yet run"):
        assert part in said
    pairs = [word.strip(".,;()").split("=", 1) for word in said.split() if "=" in word and "…" not in word]
    assert len(pairs) >= 2
    resolve(name, dict(pairs))  # what a header says can be set, can be


@pytest.mark.parametrize(("name", "recipe"), RECIPES.items())
def test_a_recipe_has_its_published_size_and_its_schedules_their_ends(name: str, recipe: Recipe) -> None:
    run = resolve(name, {})
    assert sizes(run) == (recipe.encoder, recipe.predictor)
    assert run.train.clips == recipe.clips
    last = phases_of(run)[-1]
    step = last.run.train.steps - 1
    assert learning_rate(last.run, step) == pytest.approx(recipe.lr, rel=1e-3)
    assert weight_decay(last.run, step) == pytest.approx(recipe.decay, abs=5e-5)
    assert momentum(last.run, step) == pytest.approx(recipe.momentum, abs=1e-7)


@pytest.mark.parametrize("name", COOLDOWN)
def test_a_cool_down_goes_on_where_the_first_phase_ends(name: str) -> None:
    main_phase, cooldown = phases_of(resolve(name, {}))
    assert (main_phase.stop, cooldown.stop) == (240_000, 252_000)
    assert learning_rate(main_phase.run, 239_999) == 5.25e-4
    assert learning_rate(cooldown.run, 0) == pytest.approx(5.25e-4, rel=1e-3)
    assert cooldown.run.data.frames == 64
    published = dataclasses.replace(cooldown.run, optim=dataclasses.replace(cooldown.run.optim, horizon=1.25))
    assert learning_rate(published, 11_999) == pytest.approx(1.058e-4, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_planned_and_fits_an_a100(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--preset", name, "--gpu", "a100", "--json", str(tmp_path / "plan.json")]) == 0
    assert "error" not in capsys.readouterr().out
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["fits"]


@pytest.mark.parametrize("name", ["vjepa2-l16", "ijepa-h14"])
def test_a_recipe_does_not_start_without_its_data(name: str, tmp_path: Path, monkeypatch, caplog, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--preset", name]) == 2
    said = capfd.readouterr().err + caplog.text
    assert (
        f"no manifest: {tmp_path / str(resolve(name, {}).data.videos)} is not a file; make one with `rayjepa index`"
        in said
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.make(tmp_path_factory.mktemp("videos"), 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_cut_down_takes_its_steps(name: str, videos: Path, tmp_path: Path) -> None:
    run = resolve(name, {})
    small = SMALL | {"data.frames": min(4, run.data.frames), "data.size_px": 4 * run.model.patch_px}
    small |= {"data.videos": str(videos), "out": str(tmp_path), "name": "cut"}
    if run.phases:
        (phase,) = run.phases
        less = phase.set | {"data": {"frames": 8, "size_px": 96}, "masks": {"group_size": 2}}
        small["phases"] = json.dumps([{"name": phase.name, "steps": 2, "set": less}])
    assert main(["pretrain", "--preset", name, *(f"{key}={value}" for key, value in small.items())]) == 0
    steps = 4 if run.phases else 2
    folder = tmp_path / "cut"
    assert coverage(folder, 4 * steps) == ([], [])
    lines = read_history(folder).of("step")
    assert [line["step"] for line in lines] == list(range(steps))
    assert all(0 < line["loss/latent"] < 5 for line in lines)
