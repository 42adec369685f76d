"""The benchmark of decoding: its corpus, its arithmetic, and processes that crash, hang or lack their library."""

import json
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from rayjepa.bench import chart, corpus, library, peer, picture, report, soak
from rayjepa.bench.contest import FFMPEG, Contest, Reading, contest, interpreters
from rayjepa.bench.corpus import SMALL, Cell, File
from rayjepa.bench.library import Library, Refused
from rayjepa.bench.ours import BARE, I420, ISOLATED, RGB, TOGETHER
from rayjepa.cli import main
from rayjepa.config import resolve

TINY = Cell("h264", SMALL, 12)
HELLO = "import json, os, sys, time; print(json.dumps({'entrants': ['it'], 'versions': {}}), flush=True); "


def speaker(then: str, *, answer_s: float = 20.0) -> Library:
    """A library whose process does `then` with each request."""
    return Library("it", [sys.executable, "-I", "-c", f"{HELLO}\nfor line in sys.stdin: {then}"], answer_s=answer_s)


def test_the_pictures_are_a_function_of_their_arguments_and_move() -> None:
    first, again, other = ([f.to_ndarray() for f in picture.frames(64, 48, 4, seed=s)] for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], other[0])
    assert all(np.mean(a != b) > 0.5 for a, b in pairwise(first))


def test_names_and_patterns_pick_cells() -> None:
    assert len(corpus.chosen(None)) == 60
    assert [cell.name for cell in corpus.chosen("av1-720p-g60,h264-256p-*")] == [
        "h264-256p-g12",
        "h264-256p-g60",
        "h264-256p-g250",
        "av1-720p-g60",
    ]
    with pytest.raises(ValueError, match="no cell is called 'h265-360p-g60'"):
        corpus.chosen("h264-360p-g60,h265-360p-g60")


def test_a_cell_is_made_once_and_whole(tmp_path: Path) -> None:
    path = corpus.made(TINY, tmp_path)
    file, made_at = corpus.inspected(path), path.stat().st_mtime_ns
    assert file.frames == TINY.seconds * picture.FPS
    assert file.keys >= file.frames // 12
    assert corpus.made(TINY, tmp_path) == path
    assert path.stat().st_mtime_ns == made_at
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "bench").write_text("not a folder")
    with pytest.raises(OSError, match=r"set data\.cache to another folder"):
        corpus.made(TINY, tmp_path)


@pytest.mark.parametrize("word", ["decord", "decord=", "ffms2=/usr/bin/python3", "=python3"])
def test_a_peer_is_a_known_name_and_an_interpreter(word: str) -> None:
    with pytest.raises(ValueError, match="is not NAME=PYTHON"):
        interpreters([word], "python3")
    assert interpreters(["decord=py"], "here") == {"tidy": "here", "torchcodec": "here", "decord": "py"}


def test_a_library_that_is_not_there_says_so() -> None:
    with pytest.raises(Refused, match="No module named"):
        Library("decord", [sys.executable, "-I", "-S", str(Path(peer.__file__)), "decord"], answer_s=20.0)
    with pytest.raises(Refused, match="/no/python: No such file"):
        library.foreign("decord", "/no/python", answer_s=20.0)


def test_a_crash_and_a_hang_are_answers_and_the_next_question_meets_a_new_process() -> None:
    with speaker("os.kill(os.getpid(), 11) if 'die' in line else print('{\"cpu_s\": [1]}', flush=True)") as it:
        with pytest.raises(Refused, match="died of SIGSEGV"):
            it.ask("it", [{"path": "die"}], size_px=2)
        assert it.ask("it", [{"path": "live"}], size_px=2) == {"cpu_s": [1]}
    with speaker("time.sleep(60)", answer_s=0.2) as it, pytest.raises(Refused, match=r"no answer within 0.2 s"):
        it.ask("it", [{}], size_px=2)


def test_the_peers_file_imports_nothing_of_this_package() -> None:
    assert "rayjepa" not in {
        line.split()[1].split(".")[0]
        for line in Path(peer.__file__).read_text().splitlines()
        if line.startswith(("import ", "from "))
    }


def measured(costs: dict[str, list[float]], cell: str = "h264-256p-g60") -> list[Reading]:
    return [
        Reading(round=n, cell=cell, clip=0, entrant=entrant, cpu_s=cpu_s, decoded=64)
        for entrant, values in costs.items()
        for n, cpu_s in enumerate(values)
    ]


def a_contest() -> Contest:
    """Costs in seconds; the machine gets twice as slow in the last round, which no ratio may see."""
    ours = {I420: [0.02, 0.02, 0.04], RGB: [0.025, 0.025, 0.05], TOGETHER: [0.02, 0.02, 0.04]}
    theirs = {ISOLATED: [0.021, 0.0206, 0.0408], BARE: [2.1e-4, 2.0e-4, 4.2e-4], FFMPEG: [2e-4, 2e-4, 4e-4]}
    peers = {"tidy": [0.03, 0.03, 0.06], "decord": [0.04, 0.04, 0.08]}
    slower = {"tidy": [0.018, 0.018, 0.036]}
    return Contest(
        readings=(*measured(ours | theirs | peers), *measured(ours | theirs | slower, "av1-256p-g60")),
        files={name: File(bytes=1, frames=600, keys=10) for name in ("h264-256p-g60", "av1-256p-g60")},
        versions={"ours": {"av": "0"}},
        absent={"torchcodec": "No module named 'torchcodec'"},
        refused={"av1-256p-g60": {"decord": "cannot"}},
        unlike={},
        entrants=("tidy", "decord"),
    )


def test_ratios_are_of_paired_readings() -> None:
    common, rare = report.rows(a_contest(), frames=16)
    assert common.clips_per_cpu_s[I420] == pytest.approx(50)
    assert common.faster[I420] == pytest.approx({"tidy": 1.5, "decord": 2.0})
    assert common.faster[RGB] == pytest.approx({"tidy": 1.2, "decord": 1.6})
    assert rare.faster[I420] == pytest.approx({"tidy": 0.9})
    assert common.decoded_per_used == 4
    assert common.of_limit == pytest.approx(64 * 2e-4 / 0.02)
    assert common.bare_over_ffmpeg == pytest.approx(1.05)
    assert common.isolation == pytest.approx(0.03)
    assert common.isolation_ms == pytest.approx(0.8)


def test_the_verdict_means_over_common_codecs_and_names_the_worst_cell() -> None:
    table = report.rows(a_contest(), frames=16)
    tidy, decord = report.verdicts(table, ["tidy", "decord"])[:2]
    assert tidy.common == pytest.approx(1.5)
    assert (tidy.worst_cell, tidy.worst) == ("av1-256p-g60", pytest.approx(0.9))
    assert decord.worst_cell == "h264-256p-g60"
    assert report.geometric_mean([0.5, 2.0]) == pytest.approx(1.0)


def test_the_report_says_what_was_not_measured() -> None:
    found = a_contest()
    table = report.rows(found, frames=16)
    text = report.text(found, table)
    assert "not measured: torchcodec: No module named 'torchcodec'" in text
    assert "av1-256p-g60: decord gave no clip: cannot" in text
    assert "1.50 (geometric mean, H.264 and HEVC), lowest 0.90 (av1-256p-g60)" in text
    assert json.loads(json.dumps(report.figures(found, table)))["keys_every_s"]["h264-256p-g60"] == 2.0


def test_the_picture_has_a_row_for_each_cell_and_a_mark_for_each_library() -> None:
    found = a_contest()
    drawing = ET.fromstring(chart.svg(report.rows(found, frames=16), found.entrants, frames=16))
    titles = [title.text for title in drawing.iter("{http://www.w3.org/2000/svg}title")]
    words = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"h264-256p-g60", "av1-256p-g60"} <= set(words)
    assert titles.count("tidy") == 3  # the legend and two cells
    assert titles.count("decord") == 2


def test_growth_is_judged_by_tenths() -> None:
    reading = soak.Reading(clips=0, owner_mib=100.0, child_mib=50.0, owner_files=9, child_files=7, shm=0)
    steady = [replace(reading, owner_mib=100.0 + n % 3, shm=n) for n in range(100)]
    ran = soak.Soak(readings=tuple(steady), clips=400, failures=1, restarts=0, wall_s=1.0)
    assert ran.leaks == []
    leaking = [replace(r, child_mib=50.0 + n / 30, owner_files=9 + (n > 90)) for n, r in enumerate(steady)]
    assert replace(ran, readings=tuple(leaking)).leaks == ["child_mib", "owner_files"]
    assert "not flat" in soak.text(replace(ran, readings=tuple(leaking)))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["decode", "--cells", "x"], "no cell is called 'x'"),
        (["decode", "--plot", "a.png"], "ends in .svg"),
        (["decode", "--rounds", "0"], "must be at least 1"),
        (["decode", "data.frames=64"], "the videos have room for 14 s"),
        (["soak", "--clips", "10"], "must be at least 40"),
    ],
)
def test_a_mistake_is_one_clear_line(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_ours_is_measured_in_process_and_isolated_beside_whatever_is_installed(tmp_path: Path) -> None:
    run = resolve(None, {"data.cache": str(tmp_path), "data.frames": 4, "data.fps": 8.0, "data.size_px": 64})
    peers = interpreters([], sys.executable)
    found = contest(run, [TINY], peers=peers, rounds=2, clips=1, say=lambda line: None)
    assert found.unlike == found.refused == {}
    assert set(found.absent) - {"ffmpeg"} | set(found.versions) - {"ours", "ffmpeg"} == set(peers)
    [row] = report.rows(found, frames=4)
    assert row.clips_per_cpu_s.keys() >= {I420, RGB, TOGETHER, ISOLATED}
    assert 1 <= row.decoded_per_used <= 12
    assert row.bare_ms > 0


@pytest.mark.slow
def test_a_short_soak_reads_memory_and_descriptors_and_outlives_bad_files(tmp_path: Path) -> None:
    data = resolve(None, {**soak.CHEAP, "data.cache": str(tmp_path)}).data
    ran = soak.soak(data, clips=200, say=lambda line: None)
    assert (ran.clips, ran.restarts, len(ran.readings)) == (200, 0, 50)
    assert ran.failures > 10
    assert {"owner_files", "child_files"}.isdisjoint(ran.leaks)
    assert all(reading.child_mib > 10 for reading in ran.readings)
