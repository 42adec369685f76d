"""Sweeps on one cluster: trials side by side, one of them stopped early; sweeps that are stopped, killed, resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rayjepa.config import dump, resolve
from rayjepa.config.space import parse_space
from rayjepa.config.sweep import plan_sweep
from rayjepa.data import synthetic
from rayjepa.data.index import indexing
from rayjepa.health.scores import SCORES
from rayjepa.report import list_runs
from rayjepa.train.history import coverage, read_history

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS, CLIPS = 400, 4
PATIENCE_S = 300  # a sweep here takes 20 to 40 s on a quiet machine with two cores
# A frozen target keeps the rank of a random encoder, one that follows at once loses most of it: the order of the two
# is sure. The seed draws 1, 1, 0.5.
SPACE = {
    "axes": {"ema.momentum": {"choice": [0.5, 1.0]}},
    "trials": 3,
    "concurrent": 2,
    "grace_steps": 16,
    "seed": 1,
    "fixed": {"health": {"every_steps": 16}, "checkpoint.every_steps": 50, "report.every_steps": 10},
}
HERE = {"cluster.workers": 0, "train.engine": "plain"}
"""Trials that train in their own driver: they start in half the time."""


# In a process of its own: Ray decides on tokens once a process, and other modules may want none.
CLUSTER = """
import json, os, sys, time
from rayjepa.config import resolve
from rayjepa.on_ray.cluster import cluster
with cluster(resolve("tiny", {"cluster.workers": 1}), trials=2):
    import ray
    env = {k: os.environ[k] for k in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    print(json.dumps(env | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}), file=sys.stderr, flush=True)
    while os.getppid() == int(sys.argv[2]):
        free = ray.available_resources()
        with open(sys.argv[1], "a") as file:
            print(time.time(), free.get("CPU", 0), free.get("sweep", 0), file=file)
        time.sleep(0.2)
"""
ALL_CPUS, ALL_SEATS = 6, 2


@dataclass(frozen=True)
class Site:
    """A cluster with room for two trials of one worker, and where sweeps are made."""

    out: Path
    videos: Path
    environment: dict[str, str]

    def start(self, *words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "rayjepa.cli", "sweep", *map(str, words)]
        env = os.environ | self.environment
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)

    def begin(self, name: str, *pairs: str, **fields: object) -> subprocess.Popen[str]:
        space = written(self.out / f"{name}.yaml", **fields)
        words = (f"data.videos={self.videos}", f"out={self.out}", f"name={name}", *pairs)
        return self.start("--preset", "tiny", "--space", space, *words)

    def free(self) -> list[tuple[float, float, float]]:
        """(unix time, free CPUs, free seats), a few times a second."""
        lines = (self.out / "free.txt").read_text().splitlines()
        return [(float(a), float(b), float(c)) for a, b, c in (line.split() for line in lines)]


def written(path: Path, **fields: object) -> Path:
    path.write_text(yaml.safe_dump(SPACE | fields))
    return path


def said(driver: subprocess.Popen[str], status: int) -> str:
    text, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == status, text[-3000:]
    assert "Traceback" not in text
    return text


def wait_for(claim: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < until, what
        time.sleep(0.1)


def finished(run_dir: Path) -> int:
    return max((line["step"] + 1 for line in read_history(run_dir).of("step")), default=0)


def study_of(sweep_dir: Path) -> list[tuple[str, dict[str, object], dict[int, float], dict[str, object]]]:
    """State, knobs, intermediate values and attributes of the trials, as Optuna reads them."""
    import optuna

    study = optuna.load_study(study_name=sweep_dir.name, storage=f"sqlite:///{sweep_dir / 'study.db'}")
    return [(t.state.name, t.params, t.intermediate_values, t.user_attrs) for t in study.trials]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    out = tmp_path_factory.mktemp("sweeps")
    videos = synthetic.make(out / "videos", 24)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, "-c", CLUSTER, str(out / "free.txt"), str(os.getpid())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=clean) as cluster:
        assert cluster.stderr is not None
        address = next(line for line in iter(cluster.stderr.readline, "") if line.startswith("{"))
        yield Site(out, videos, json.loads(address))
        cluster.terminate()


@pytest.fixture(scope="module")
def swept(site: Site) -> tuple[Path, str]:
    """A sweep whose first trial's driver is killed, and whose third trial is stopped early; and what it said."""
    first = site.out / "swept" / "trials" / "000"
    driver = site.begin("swept", "cluster.workers=1", f"train.steps={STEPS}")
    wait_for(lambda: first.exists() and finished(first) > 60, "the first trial did not begin")
    os.kill(json.loads((first / "driver.json").read_text())["pid"], signal.SIGKILL)
    return site.out / "swept", said(driver, 0)


def test_the_worse_of_three_trials_is_stopped_early_and_the_table_says_so(swept: tuple[Path, str]) -> None:
    sweep_dir, text = swept
    states = [state for state, *_ in study_of(sweep_dir)]
    assert states == ["COMPLETE", "COMPLETE", "PRUNED"]
    rows = [line for line in text.splitlines() if "trials/00" in line]
    assert [row.split("│")[4].strip() for row in rows] == ["finished", "finished", "stopped early"]
    assert f"{STEPS}/{STEPS}" in rows[0]
    assert "an untrained encoder" in text


def test_a_trial_whose_driver_is_killed_goes_on_in_another(swept: tuple[Path, str]) -> None:
    run_dir = swept[0] / "trials" / "000"
    assert [attempt.start >= 50 for attempt in read_history(run_dir).attempts.values()] == [False, True]
    assert coverage(run_dir, STEPS * CLIPS) == ([], [])


def test_a_trial_is_a_run_like_any_other(swept: tuple[Path, str]) -> None:
    trials = swept[0] / "trials"
    first, second, third = (trials / name for name in ("000", "001", "002"))
    assert coverage(first, STEPS * CLIPS) == coverage(second, STEPS * CLIPS) == ([], [])
    runs = {run.name: run for run in list_runs(trials)}
    assert {name: run.state for name, run in runs.items()} == {"000": "finished", "001": "finished", "002": "stopped"}
    assert "was not among the best 1/2" in runs["002"].reason
    assert 16 <= runs["002"].step < STEPS
    assert len(read_history(third).attempts) == 1
    assert (third / "report.html").exists()


def test_a_stopped_trial_frees_its_cpus_within_seconds(site: Site, swept: tuple[Path, str]) -> None:
    trial = swept[0] / "trials" / "002"
    asked_s = (trial / "stop").stat().st_mtime
    freed_s = next(unix_s for unix_s, cpus, _ in site.free() if unix_s > asked_s and cpus == ALL_CPUS)
    print(f"free {freed_s - asked_s:.1f} s after the decision")
    assert freed_s - asked_s < 25  # about 5 s on a quiet machine
    assert json.loads((trial / "outcome.json").read_text())["unix_s"] - asked_s < 25


def test_the_study_holds_every_examination_and_where_the_runs_are(swept: tuple[Path, str]) -> None:
    for number, (_, knobs, values, facts) in enumerate(study_of(swept[0])):
        run_dir = swept[0] / "trials" / f"{number:03d}"
        lines = read_history(run_dir).of("health")
        examined = {line["step"]: line["collapse/rankme"] for line in lines if line["step"] > 0}
        assert values == {step: value for step, value in examined.items() if step <= max(values)}
        assert number == 2 or max(values) == STEPS
        names = {name for score in SCORES.values() for name in (score.name, score.floor, score.ceiling) if name}
        assert all(names <= line.keys() for line in lines)  # the list of scores names what health reports
        assert facts["run_dir"] == str(run_dir)
        assert facts["ray_trial_id"]
        assert 1 < float(str(facts["floor"])) < float(str(facts["ceiling"])) <= 24  # model.width, or fewer clips
        assert resolve(str(run_dir / "run.yaml"), {}).ema.momentum == knobs["ema.momentum"]


def test_the_best_trial_is_a_preset(swept: tuple[Path, str]) -> None:
    best = swept[0] / "best.yaml"
    assert best.read_text().startswith("# collapse/rankme ")
    again, ran = resolve(str(best), {}), resolve(str(swept[0] / "trials" / "000" / "run.yaml"), {})
    assert {**dump(again), "name": "000", "out": ran.out} == dump(ran)
    assert f"rayjepa pretrain --preset {best}" in swept[1]


def test_nothing_is_left_reserved(site: Site, swept: tuple[Path, str]) -> None:
    wait_for(lambda: site.free()[-1][1:] == (ALL_CPUS, ALL_SEATS), "a CPU or a seat is still taken")


def test_a_sweep_whose_every_trial_fails_says_why_and_writes_no_preset(site: Site) -> None:
    pairs = [f"{key}={value}" for key, value in HERE.items()]
    text = said(site.begin("failing", *pairs, "train.steps=40", "optim.max_norm=1e-9", trials=2), 1)
    assert text.count("stopped before the update") >= 2
    assert "every trial failed" in text
    assert [state for state, *_ in study_of(site.out / "failing")] == ["FAIL", "FAIL"]
    assert not (site.out / "failing" / "best.yaml").exists()


def test_a_sweep_that_is_stopped_and_then_killed_goes_on_where_it_was(site: Site) -> None:
    sweep_dir = site.out / "resumed"
    trials = [sweep_dir / "trials" / name for name in ("000", "001", "002")]
    clips = 3 * CLIPS  # so that a trial takes many times what it takes to be heard when it is asked to stop
    pairs = [f"{key}={value}" for key, value in (HERE | {"train.steps": STEPS, "train.clips": clips}).items()]
    often = {"checkpoint.every_steps": 100, "health.every_steps": 1}  # more often than Ray Tune takes them
    driver = site.begin(sweep_dir.name, *pairs, grace_steps=STEPS, fixed=often)
    wait_for(lambda: any(finished(run_dir) > 20 for run_dir in trials[:2]), "no trial did begin")
    driver.send_signal(signal.SIGINT)
    assert f"continue with: rayjepa sweep --resume {sweep_dir}" in said(driver, 130)
    assert [state for state, *_ in study_of(sweep_dir)] == ["WAITING", "WAITING"]
    saved = [finished(run_dir) for run_dir in trials[:2]]
    assert max(saved) > 20

    driver = site.start("--resume", sweep_dir)
    wait_for(lambda: finished(trials[2]) > 120, "the third trial did not begin")
    driver.kill()
    driver.communicate()
    over = {run_dir: len(read_history(run_dir).attempts) for run_dir in trials if (run_dir / "outcome.json").exists()}
    assert over
    assert trials[2] not in over
    for run_dir, steps in zip(trials, saved, strict=False):
        assert not steps or read_history(run_dir).attempts[2].start == steps

    said(site.start("--resume", sweep_dir), 0)
    assert [state for state, *_ in study_of(sweep_dir)] == ["COMPLETE"] * 3
    assert {run_dir: len(read_history(run_dir).attempts) for run_dir in over} == over, "a finished trial was repeated"
    assert read_history(trials[2]).attempts[2].start >= 100
    assert [coverage(run_dir, STEPS * clips) for run_dir in trials] == [([], [])] * 3
    assert sorted(path.name for path in (sweep_dir / "trials").iterdir()) == ["000", "001", "002"]


def test_a_second_driver_is_kept_out(site: Site, swept: tuple[Path, str]) -> None:
    record = json.loads((swept[0] / "driver.json").read_text())
    born = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    copy = site.out / "held"
    copy.mkdir()
    for name in ("sweep.yaml", "manifest.parquet"):
        os.link(swept[0] / name, copy / name)
    (copy / "driver.json").write_text(json.dumps(record | {"pid": 1, "born": born}))
    assert "is being trained by process 1 on this machine" in said(site.start("--resume", copy), 1)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"metric": "loss/latent"}, "a train loss cannot choose a model"),
        ({"metric": "collapse/rankem"}, "nearest: collapse/rankme"),
        ({"mode": "min"}, "would search for a collapse"),
    ],
)
def test_a_metric_that_must_not_choose_is_refused(
    fields: dict[str, str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rayjepa.cli import main

    space = written(tmp_path / "space.yaml", **fields)
    assert main(["sweep", "--preset", "tiny", "--space", str(space), f"out={tmp_path}/none"]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_early_stopping_remembers_what_trials_had_reached_when_the_driver_died(tmp_path: Path) -> None:
    from rayjepa.on_ray.search import Halving, Search

    plan = plan_sweep("tiny", parse_space(SPACE), {})
    videos = indexing.index(str(synthetic.make(tmp_path / "v", 4)), cfg=plan.base.data)
    before = Search(plan, tmp_path, videos)
    for name, value in (("a", 9.0), ("b", 7.0)):
        before.suggest(name)
        before.on_trial_result(name, {"step": 16, "collapse/rankme": value})
    before.on_trial_complete("a", {"state": "finished", "step": 16, "collapse/rankme": 9.0})

    after = Search(plan, tmp_path, videos)
    halving = Halving(plan, after)
    folders = [Path(after.suggest(name)["run_dir"]) for name in ("c", "d")]
    assert folders == [tmp_path / "trials" / "001", tmp_path / "trials" / "002"]  # first the one that had begun

    def is_asked_to_stop(run_dir: Path, value: float) -> bool:
        trial = SimpleNamespace(config={"run_dir": str(run_dir)})
        halving.on_trial_add(None, trial)
        assert halving.on_trial_result(None, trial, {"step": 16, "collapse/rankme": value}) == "CONTINUE"
        return (run_dir / "stop").exists()

    assert not is_asked_to_stop(folders[0], 1.0)  # it was let past this rung with 7.0
    assert is_asked_to_stop(folders[1], 7.5)  # under the median of 9 and 7
