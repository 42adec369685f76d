"""The synthetic videos and their labels."""

import csv
import os
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayjepa.data.synthetic import COLOURS, FPS, GOP, SHAPES, SIZE_PX, Labels, draw, encode, labels_of, make, position


def luma(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray()[:SIZE_PX] for f in container.decode(video=0)]).astype(float)


def centre_of_white(frames: np.ndarray) -> np.ndarray:
    """Middle (x, y) of the box around what is brighter than any background, in each frame, in sides of the frame."""
    bright = frames > 180
    middles: list[np.ndarray] = []
    for seen in (bright.any(1), bright.any(2)):
        middles.append((seen.argmax(1) + SIZE_PX - seen[:, ::-1].argmax(1)) / 2 / SIZE_PX)
    return np.stack(middles, 1)


@given(seed=st.integers(0, 1 << 40), i=st.integers(0, 1 << 40))
def test_labels_are_a_function_of_seed_and_number(seed: int, i: int) -> None:
    labels = labels_of(seed, i)
    assert labels == labels_of(seed, i)
    assert labels.identity in SHAPES
    assert labels.colour in COLOURS
    assert 4 <= labels.duration_s <= 6
    assert labels.radius <= min(labels.x, labels.y) <= max(labels.x, labels.y) <= 1 - labels.radius


def test_a_set_holds_every_shape_and_colour() -> None:
    labels = [labels_of(0, i) for i in range(100)]
    assert {v.identity for v in labels} == set(SHAPES)
    assert {v.colour for v in labels} == set(COLOURS)


@given(
    x=st.floats(0.1, 0.9),
    y=st.floats(0.1, 0.9),
    vx=st.floats(-2, 2),
    vy=st.floats(-2, 2),
    times=st.lists(st.floats(-50, 50), min_size=1),
)
def test_the_shape_moves_at_its_speed_and_stays_inside(
    x: float, y: float, vx: float, vy: float, times: list[float]
) -> None:
    labels = Labels(identity="circle", colour="red", x=x, y=y, vx=vx, vy=vy, radius=0.1, duration_s=5.0)
    at = position(labels, np.array([0.0, *times]))
    assert at[0] == pytest.approx([x, y])
    assert at.min() >= 0.1 - 1e-9
    assert at.max() <= 0.9 + 1e-9
    later = position(labels, np.array([0.0, *times]) + 1e-3)
    assert np.all(np.abs(later - at) <= np.abs([vx, vy]) * 1e-3 + 1e-9)


def test_the_shape_bounces_off_a_wall() -> None:
    labels = Labels(identity="square", colour="red", x=0.8, y=0.5, vx=0.2, vy=0.0, radius=0.1, duration_s=5.0)
    assert position(labels, np.array([0.5, 1.0, 4.5]))[:, 0] == pytest.approx([0.9, 0.8, 0.1])


@pytest.mark.parametrize("identity", SHAPES)
def test_the_pixels_show_the_shape_where_the_labels_say(identity: str) -> None:
    labels = Labels(identity=identity, colour="white", x=0.3, y=0.4, vx=0.31, vy=-0.22, radius=0.15, duration_s=2.0)
    frames = draw(labels, texture=np.random.default_rng(0))
    assert frames.shape == (2 * FPS, SIZE_PX * 3 // 2, SIZE_PX)
    true = position(labels, np.arange(2 * FPS) / FPS)
    assert np.abs(centre_of_white(frames[:, :SIZE_PX]) - true).max() < 1.01 / SIZE_PX


def test_a_file_shows_what_its_labels_say_and_is_cheap_to_seek(tmp_path: Path) -> None:
    encode(tmp_path / "v.mp4", 0, 4)
    labels = labels_of(0, 4)
    assert labels.colour == "white"
    frames = luma(tmp_path / "v.mp4")
    assert frames.shape == (round(labels.duration_s * FPS), SIZE_PX, SIZE_PX)
    true = position(labels, np.arange(len(frames)) / FPS)
    assert np.abs(centre_of_white(frames) - true).max() < 2 / SIZE_PX
    with av.open(str(tmp_path / "v.mp4")) as container:
        keys = [p.is_keyframe for p in container.demux(video=0) if p.pts is not None]
        assert float(container.streams.video[0].average_rate or 0) == FPS
    assert np.diff(np.flatnonzero(keys)).max() <= GOP
    content = (tmp_path / "v.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    encode(tmp_path / "again.mp4", 0, 4)
    assert (tmp_path / "again.mp4").read_bytes() == content


def test_a_set_is_written_once_with_its_labels(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    home = make(tmp_path, 3, processes=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with open(home / "labels.csv") as file:
        rows = list(csv.DictReader(file))
    assert [r["file"] for r in rows] == ["000000.mp4", "000001.mp4", "000002.mp4"]
    assert [float(r["vx"]) for r in rows] == [labels_of(0, i).vx for i in range(3)]
    written = {p: p.stat().st_mtime_ns for p in home.iterdir()}
    assert make(tmp_path, 3) == home
    assert {p: p.stat().st_mtime_ns for p in home.iterdir()} == written


def test_a_half_written_set_is_completed_and_keeps_what_it_has(tmp_path: Path) -> None:
    home = make(tmp_path, 3, processes=1)
    content = (home / "000001.mp4").read_bytes()
    (home / "000001.mp4").unlink()
    (home / "complete.json").unlink()
    kept = os.stat(home / "000000.mp4").st_mtime_ns
    assert make(tmp_path, 3, processes=1) == home
    assert (home / "000001.mp4").read_bytes() == content
    assert os.stat(home / "000000.mp4").st_mtime_ns == kept


def test_sets_of_other_seed_or_size_lie_apart(tmp_path: Path) -> None:
    homes = {make(tmp_path, 1), make(tmp_path, 2, processes=1), make(tmp_path, 1, seed=1)}
    assert len(homes) == 3
    assert {h.parent for h in homes} == {tmp_path}


def test_a_set_that_cannot_be_written_says_where_and_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write synthetic videos to .*file.*; set data\.cache"):
        make(tmp_path / "file", 1)
    with pytest.raises(ValueError, match="count=0 must be at least 1"):
        make(tmp_path, 0)
