"""The run's page: its numbers, its curves, and what it does with a folder that is not whole."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayjepa.config import resolve, to_yaml
from rayjepa.data.clip import Failure
from rayjepa.report import write_report
from rayjepa.report.axes import axes_for, log_ticks, nice_ticks, smooth, thin
from rayjepa.report.numbers import duration, number, share, short
from rayjepa.report.page import page
from rayjepa.report.plot import Chart, Curve, figure
from rayjepa.report.verdict import verdict
from rayjepa.train.attempts import record_attempt, record_end
from rayjepa.train.history import History

RUN = resolve("tiny", {"name": "page", "train.steps": 8, "train.clips": 4, "optim.lr": 0.002})
GOOD = {
    "collapse/rankme": 41.25,
    "collapse/rankme_floor": 12.3,
    "collapse/rankme_ceiling": 96.0,
    "collapse/std_mean": 0.4,
    "collapse/std_min": 0.1,
    "collapse/std_floor": 0.2,
}


def attempt(run_dir: Path, *, steps: range, rate: float) -> History:
    """An attempt that took `steps`, as the loop writes it."""
    number = len(list((run_dir / "attempts").glob("*.json"))) + 1
    before = run_dir / "checkpoints" / f"step-{steps.start:08d}-attempt-{number - 1:04d}"
    record_attempt(run_dir, owner="o", checkpoint=before if steps.start else None, start=steps.start, world=2)
    lines = History(run_dir, attempt=number)
    for step in steps:
        metrics = {"loss/latent": 0.5, "optim/lr": 1e-3, "optim/grad_norm": 1.0, "ema/momentum": 0.9}
        speed = {"rate/clips_per_s": rate, "data/wait_ms": 5.0, "time/step_ms": 50.0}
        lines.append("step", step=step, trained=[[4 * step, 4 * step + 4]], **metrics, **speed)
    return lines


def failure(uri: str) -> dict[str, object]:
    """A line of the quarantine, as the loop writes it."""
    return {
        "step": 1,
        "index": 5,
        "attempt": 0,
        "video": 3,
        "uri": uri,
        "stage": "decode",
        "kind": "content",
        "reason": f"bad {uri}",
        "substitute": "b.mp4",
    }


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run of two attempts: the first took 6 steps and was continued after 3, at another speed."""
    (tmp_path / "run.yaml").write_text(to_yaml(RUN))
    first = attempt(tmp_path, steps=range(6), rate=111.0)
    first.append("failure", **failure("/v/<script>alert(1)</script>.mp4"))
    first.append("health", step=4, clips=48, held_out=True, **GOOD | {"collapse/rankme": 20.0})
    first.flush()
    second = attempt(tmp_path, steps=range(3, 7), rate=77.0)
    second.append("refused", step=7, reason="gradient norm is nan", samples=[[28, 32]])
    second.append("health", step=8, clips=48, held_out=True, **GOOD)
    second.flush()
    (tmp_path / "outcome.json").write_text(
        json.dumps({"state": "finished", "reason": "", "finished": 8, "unix_s": 2e9})
    )
    return tmp_path


def words(text: str) -> str:
    """What a reader sees of a page, without style and script."""

    class Reader(HTMLParser):
        silent = False
        seen: list[str]

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.silent = tag in ("style", "script")

        def handle_endtag(self, tag: str) -> None:
            self.silent = False

        def handle_data(self, data: str) -> None:
            if not self.silent:
                self.seen.append(data)

    reader = Reader()
    reader.seen = []
    reader.feed(text)
    return re.sub(r"\s+", " ", " ".join(reader.seen))


def test_the_page_says_how_far_and_how_healthy_the_run_is(run_dir: Path) -> None:
    path = write_report(run_dir)
    seen = words(path.read_text())
    assert path == run_dir / "report.html"
    assert "page finished" in seen
    assert "Steps 8 of 8 (100 %)" in seen
    assert "RankMe 41.2 of at most 96; random encoder 12.3" in seen
    assert "No sign of collapse" in seen
    assert "Every sample of [0, 32) trained exactly once: yes , but for 4 samples of refused steps" in seen
    assert "gradient norm is nan" in seen
    assert "optim.lr 0.002" in seen
    assert "not a progress signal" in seen.lower()


def test_undone_steps_are_counted_as_lost_and_are_in_no_other_number(run_dir: Path) -> None:
    seen = words(page(run_dir, now=2e9))
    assert "Lost work 3 steps" in seen
    assert "Samples trained 28" in seen
    assert "Clips/s, median 77" in seen  # of 3 steps at 111 and 4 at 77; with the undone ones it would be 111


def test_what_the_history_lacks_is_named(run_dir: Path) -> None:
    (run_dir / "metrics" / "attempt-0001-000000.jsonl").write_text("")
    assert "Every sample of [0, 32) trained exactly once: no ; missing [0, 12)" in words(page(run_dir, now=2e9))


def test_text_of_files_cannot_become_markup(run_dir: Path) -> None:
    text = page(run_dir, now=2e9)
    assert "<script>alert" not in text
    assert "/v/<script>alert(1)</script>.mp4" in words(text)  # and is there all the same


def test_the_page_asks_nobody_for_anything(run_dir: Path) -> None:
    text = page(run_dir, now=2e9)
    assert not re.search(r"https?://|<link|<img|src=|@import|url\(", text)


def test_a_torn_last_line_costs_that_line_alone(run_dir: Path) -> None:
    chunk = run_dir / "metrics" / "attempt-0002-000000.jsonl"
    chunk.write_text(chunk.read_text() + '{"kind":"step","att\n')
    seen = words(page(run_dir, now=2e9))
    assert "RankMe 41.2" in seen
    assert "trained exactly once: not known" in seen
    assert "attempt-0002-000000.jsonl, line 7" in seen


def test_a_run_that_has_just_begun_has_a_page_that_says_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(to_yaml(RUN))
    seen = words(page(tmp_path, now=2e9))
    for absent in ("Not examined yet", "No reading yet", "No attempt has started yet", "nothing is trained yet"):
        assert absent in seen


def test_a_configuration_of_another_version_is_shown_as_it_is(run_dir: Path) -> None:
    (run_dir / "run.yaml").write_text("optim: {speed: 3}")
    seen = words(page(run_dir, now=2e9))
    assert "unknown key optim.speed" in seen
    assert "optim: {speed: 3}" in seen
    assert "Lost work 3 steps" in seen


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_folder_that_is_no_run_is_an_error_with_a_remedy(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"is not a run: .*(`rayjepa runs`|pretrain made)"):
        write_report(tmp_path / name)


def test_the_loops_failures_fit_the_page() -> None:
    made = failure("x")
    del made["step"], made["substitute"]
    assert Failure(**made)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("change", "level", "says"),
    [
        ({}, "good", "No sign of collapse"),
        ({"collapse/rankme": 8.0}, "watch", "below that of a random encoder (8 < 12.3)"),
        ({"collapse/rankme": 1.4}, "alarm", "on about one direction (RankMe 1.40)"),
        ({"collapse/rankme": float("nan")}, "alarm", "not a number"),
        ({"collapse/std_mean": 1e-4}, "alarm", "hardly differ"),
        ({"collapse/rankme": 15.0}, "watch", "It was 41.2 at step 100"),
    ],
)
def test_the_verdict_is_no_stronger_than_its_gauges(change: dict[str, float], level: str, says: str) -> None:
    first = {"kind": "health", "step": 100, "clips": 192, "held_out": True, **GOOD}
    found = verdict([first, first | {"step": 200} | change])
    assert found.level == level
    assert says in found.detail
    assert "192 held-out clips" in found.detail


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(4, 40))
def test_thinning_keeps_the_extremes_and_the_order(values: list[float], most: int) -> None:
    x, y = np.arange(len(values), dtype=float), np.array(values)
    few_x, few_y = thin(x, y, most=most)
    assert len(few_x) <= max(most, 0)
    assert (few_y.min(), few_y.max()) == (y.min(), y.max())
    assert (np.diff(few_x) > 0).all()
    assert np.array_equal(y[few_x.astype(int)], few_y)


def test_a_long_run_is_drawn_with_few_points_and_all_spikes() -> None:
    y = np.ones(100_000)
    y[77_777] = 50.0
    chart = Chart(key="k", title="t", curves=(Curve(label="a", x=np.arange(1e5), y=y, style="first"),), last_step=1e5)
    path = re.search(r'<path class="first" d="([^"]*)"', figure(chart))
    assert path
    heights = [int(point.split()[1]) for point in path[1][1:].split("L")]
    assert len(heights) <= 1500
    assert min(heights) < 1000
    assert max(heights) > 9000


def test_a_running_mean_of_a_constant_is_that_constant() -> None:
    assert np.allclose(smooth(np.full(50, 3.0), window=9), 3.0, rtol=0, atol=1e-12)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_rising_and_inside(low: float, span: float) -> None:
    high = low + max(span, 1e-6 * abs(low))
    ticks = nice_ticks(low, high)
    tolerance = 1e-6 * (high - low)
    assert 2 <= len(ticks) <= 6
    assert ticks == sorted(set(ticks))
    assert all(low - tolerance <= t <= high + tolerance for t in ticks)


@given(st.floats(1e-8, 1e8), st.floats(1.05, 1e12))
def test_logarithmic_ticks_are_few_and_positive(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert 2 <= len(ticks) <= 8
    assert all(t > 0 for t in ticks)


def test_an_attempt_that_blew_up_does_not_flatten_the_run() -> None:
    kept, undone = np.array([1.0, 2.0]), np.array([1e6])
    axes = axes_for(kept=kept, undone=undone, last_step=10, scale="linear", from_zero=False)
    assert axes.high < 4
    assert axes.y(1.0) - axes.y(2.0) > 3000


def test_values_that_are_not_finite_are_counted_and_not_drawn() -> None:
    curve = Curve(label="a", x=np.arange(3.0), y=np.array([1.0, np.nan, 2.0]), style="first")
    text = figure(Chart(key="k", title="t", curves=(curve,), last_step=2))
    assert "1 reading not finite, so not drawn" in text
    assert "nan" not in text.split("<svg")[1]


def test_numbers_are_written_for_people() -> None:
    assert [number(v) for v in (41.2345, 0.000012, 1234567, 12345.6, 96.0, 0.08104, None)] == [
        "41.2", "1.2e-5", "1,234,567", "12,300", "96", "0.0810", "–",
    ]  # fmt: skip
    assert [number(v, digits=6) for v in (0.99925, 0.97)] == ["0.99925", "0.97"]
    assert [duration(v) for v in (0.5, 47, 133, 7980, 90000)] == [
        "0.500 s",
        "47 s",
        "2 min 13 s",
        "2 h 13 min",
        "1 d 1 h",
    ]
    assert [short(v, largest=240_000) for v in (0, 5000, 150_000)] == ["0", "5k", "150k"]
    assert share(0.032) == "3.20 %"


def test_the_page_says_why_an_attempts_workers_ended(run_dir: Path) -> None:
    record_end(run_dir, 1, {0: "a worker's process died", 1: "a worker's process died", 2: "<b>out</b>"})
    text = page(run_dir, now=2e9)
    assert "Attempt 1 ended: rank 0, 1: a worker&#x27;s process died; rank 2: &lt;b&gt;out&lt;/b&gt;." in text
