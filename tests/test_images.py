"""Images as data: indexed, decoded and quarantined as videos are, and drawn as clips of one frame."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from footage import SQUARE, clip_spec, make_video, number_in
from numpy.typing import NDArray
from pictures import HEIGHT, PALETTE, WIDTH, encoded, picture, png, turned

from rayjepa.config import DataConfig, RunConfig, resolve
from rayjepa.data.batch import ClipBatch
from rayjepa.data.clip import ClipSpec, Window
from rayjepa.data.decode import decode_clip, probe
from rayjepa.data.decoder import Decoder
from rayjepa.data.index.indexing import index
from rayjepa.data.manifest import Manifest
from rayjepa.data.tape import Tape
from rayjepa.data.transcode import jobs_of
from rayjepa.views import MEAN, STD, to_views

CFG = DataConfig(frames=1, size_px=HEIGHT, holdout=0.0, retries=0)
CENTRE = Window(size_px=HEIGHT, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=-1)
LEFT = (WIDTH - HEIGHT) // 2


def image_spec(path: Path, **fields: object) -> ClipSpec:
    plain = clip_spec(uri=str(path), frames=1, fps=4.0, start_s=0.03, window=CENTRE)
    return replace(plain, **fields)


def shown(path: Path, pixels: str) -> NDArray[np.float64]:
    """RGB in [0, 255] of an image's central square, through decoder and views."""
    spec = image_spec(path, pixels=pixels)
    out = bytearray(spec.nbytes)
    layout = decode_clip(spec.uri, spec, out).layout
    assert layout is not None
    batch = ClipBatch(
        index=torch.tensor([0]),
        pixels=torch.frombuffer(out, dtype=torch.uint8)[None],
        layout=torch.tensor([layout], dtype=torch.int32),
        specs=(spec,),
    )
    run = resolve("tiny", {"data.frames": 1, "data.size_px": HEIGHT, "data.pixels": pixels})
    views = to_views(batch, run, device="cpu")
    assert views.shape == (1, 3, 1, HEIGHT, HEIGHT)
    return (views[0, :, 0].permute(1, 2, 0).numpy() * np.array(STD) + np.array(MEAN)) * 255


def grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels[..., 0]


PALETTED = (np.mgrid[:HEIGHT, :WIDTH][1] // 24).astype(np.uint8)
KINDS: dict[str, Callable[[Path], tuple[bytes, NDArray[np.uint8]]]] = {
    "jpeg 4:2:0": lambda p: (encoded(picture(), "mjpeg", "yuvj420p", p), picture()),
    "jpeg 4:4:4": lambda p: (encoded(picture(), "mjpeg", "yuvj444p", p), picture()),
    "webp": lambda p: (encoded(picture(), "libwebp", "yuv420p", p), picture()),
    "png rgb": lambda p: (png(picture()), picture()),
    "png rgba": lambda p: (png(np.dstack([picture(), np.full((HEIGHT, WIDTH), 90, np.uint8)]), "rgba"), picture()),
    "png grey": lambda p: (png(grey(picture()), "grey"), np.repeat(picture()[..., :1], 3, -1)),
    "png grey alpha": lambda p: (png(picture()[..., :2], "grey alpha"), np.repeat(picture()[..., :1], 3, -1)),
    "png palette": lambda p: (png(PALETTED, "palette"), PALETTE[PALETTED]),
    "png rgb 16 bit": lambda p: (png(picture().astype(np.uint16) * 257), picture()),
    "png grey 16 bit": lambda p: (
        png(grey(picture()).astype(np.uint16) * 257, "grey"),
        np.repeat(picture()[..., :1], 3, -1),
    ),
}


@pytest.mark.parametrize("pixels", ["i420", "rgb"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_has_the_colours_that_it_was_made_with(kind: str, pixels: str, tmp_path: Path) -> None:
    data, truth = KINDS[kind](tmp_path / "making")
    path = tmp_path / "image"  # the content says what it is, and no ending
    path.write_bytes(data)
    difference = np.abs(shown(path, pixels) - truth[:, LEFT : LEFT + HEIGHT])
    assert difference.mean() < 5  # chroma is a quarter of luma, and so is blurred where colours meet
    assert np.median(difference) < 2


def test_an_image_of_four_inks_is_read(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(shown(tmp_path / "a.jpg", "rgb") - picture()[:, LEFT : LEFT + HEIGHT]).mean() < 3


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_photograph_is_shown_the_way_up_that_its_tag_says(orientation: int, turns: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(turned(encoded(picture(), "mjpeg", "yuvj444p", path), orientation))
    truth = np.rot90(picture(), turns)
    top, left = (truth.shape[0] - HEIGHT) // 2, (truth.shape[1] - HEIGHT) // 2
    assert np.abs(shown(path, "rgb") - truth[top : top + HEIGHT, left : left + HEIGHT]).mean() < 2.5
    assert probe(str(path)).rotation == 90 * turns


def test_of_several_pictures_in_a_file_the_first_is_the_image(tmp_path: Path) -> None:
    first, second = (encoded(p, "mjpeg", "yuvj420p", tmp_path / "x") for p in (picture(), 255 - picture()))
    (tmp_path / "a.jpg").write_bytes(first + second)
    assert np.abs(shown(tmp_path / "a.jpg", "rgb") - picture()[:, LEFT : LEFT + HEIGHT]).mean() < 2.5
    assert probe(str(tmp_path / "a.jpg")).frames == 1


# ---------------------------------------------------------------- folders of images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good images and a video, and every way in which an image is none."""
    home = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    jpeg, webp = encoded(noise, "mjpeg", "yuvj420p", home / "x"), encoded(noise, "libwebp", "yuv420p", home / "x")
    (home / "x").unlink()
    whole, damaged, lying = png(noise), bytearray(png(noise)), bytearray(png(noise))
    damaged[len(damaged) // 2] ^= 255
    lying[19] += 1  # one pixel wider than it is
    files = {
        "a.jpg": jpeg, "b.png": whole, "c.WEBP": webp,
        "cut.jpeg": jpeg[: len(jpeg) * 8 // 10], "cut.png": whole[: len(whole) * 8 // 10],
        "cut.webp": webp[: len(webp) * 8 // 10], "damaged.png": bytes(damaged), "lying.png": bytes(lying),
        "huge.png": png(noise, size=(12000, 12000)), "empty.jpg": b"", "text.png": b"no picture\n" * 99,
        "gif.png": b"GIF89a" + bytes(200),
    }  # fmt: skip
    for name, data in files.items():
        (home / name).write_bytes(data)
    make_video(home / "film.mp4", frames=24)
    return home


@pytest.fixture(scope="module")
def table(folder: Path) -> Manifest:
    return index(folder, cfg=CFG, processes=1)


def test_images_are_rows_of_one_frame_and_bad_ones_have_a_reason(table: Manifest) -> None:
    rows = {Path(row["uri"]).name: row for row in table.table.to_pylist()}
    good = {name: row for name, row in rows.items() if row["status"] == "ok"}
    assert list(good) == ["a.jpg", "b.png", "c.WEBP", "film.mp4"]
    assert [row["codec"] for row in good.values()] == ["mjpeg", "png", "webp", "h264"]
    assert [row["frames"] for row in good.values()] == [1, 1, 1, 24]
    assert {row["seek"] for row in good.values()} == {"planned"}
    assert [Path(table.uri(row)).name for row in np.flatnonzero(table.images).tolist()] == ["a.jpg", "b.png", "c.WEBP"]
    assert all(row["reason"] for name, row in rows.items() if name not in good)
    assert "12000 x 12000 pixels is above data.max_frame_px" in rows["huge.png"]["reason"]
    assert rows["empty.jpg"]["reason"] == "empty file"
    summary = table.summary(CFG)
    assert "13 videos and images" in summary
    assert "3 images" in summary
    assert "read from their first packet on" not in summary


def test_a_full_verify_finds_the_same_images(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(str(folder / name) for name in ("a.jpg", "cut.jpeg", "b.png")))
    full = index(tmp_path / "list.txt", cfg=CFG, processes=1, verify="full")
    assert full.column("damaged").to_pylist() == [0, None, 0]


def test_a_bad_image_is_given_up_and_another_takes_its_place(folder: Path) -> None:
    names = ["cut.jpeg", "cut.png", "cut.webp", "damaged.png", "lying.png", "huge.png", "text.png", "gif.png", "a.jpg"]
    specs = [image_spec(folder / name, index=i) for i, name in enumerate(names)]
    with Decoder(CFG) as decoder:
        result = decoder.clips(specs, lambda i, a: image_spec(folder / "b.png", index=i, attempt=a))
        assert decoder.restarts == 0
    assert [failure.index for failure in result.failures] == list(range(8))
    assert {failure.kind for failure in result.failures} == {"content"}
    expected = bytearray(specs[0].nbytes)
    decode_clip(str(folder / "b.png"), image_spec(folder / "b.png"), expected)
    assert all(bytes(row) == bytes(expected) for row in result.pixels[:8])


def run_of(**overrides: object) -> RunConfig:
    return resolve("tiny", {"data.frames": 1} | {key.replace("__", "."): value for key, value in overrides.items()})


def test_clips_of_one_frame_are_of_images_and_videos_and_longer_ones_of_videos_alone(table: Manifest) -> None:
    still, moving = Tape(run_of(), table), Tape(run_of(data__frames=4), table)
    assert sorted(Path(still.spec(i).uri).name for i in range(4)) == ["a.jpg", "b.png", "c.WEBP", "film.mp4"]
    assert {Path(moving.spec(i, a).uri).name for i in range(8) for a in (0, 1)} == {"film.mp4"}
    assert {still.spec(i).nbytes for i in range(4)} == {32 * 32 * 3 // 2}
    assert len(still.held_out(3)) == 3
    only = Manifest(table.table.filter(np.array(table.images)))
    with pytest.raises(ValueError, match=r"all 3 training files are images, and clips have data\.frames=4; set it"):
        Tape(run_of(data__frames=4), only)


def test_one_frame_of_a_video_is_the_one_on_display_at_its_time(folder: Path, table: Manifest) -> None:
    tape = Tape(run_of(data__clips_per_video=40, train__steps=40), table)
    starts = {round(spec.start_s * 24) / 24: spec for i in range(160) if (spec := tape.spec(i)).uri.endswith("mp4")}
    assert len(starts) > 12
    for start in (0.0, 0.5, 0.98):
        window = Window(kind="whole", size_px=80, long_px=128, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=-1)
        spec = image_spec(folder / "film.mp4", start_s=start, window=window)
        out = bytearray(spec.nbytes)
        decode_clip(spec.uri, spec, out)
        luma = np.frombuffer(out, np.uint8)[: 80 * 128].reshape(80, 128)
        assert number_in(luma[:SQUARE]) == int(start * 24 + 1e-6)


def test_transcoding_leaves_images_alone(table: Manifest) -> None:
    assert [Path(job.uri).name for job in jobs_of(table)] == ["film.mp4"]
