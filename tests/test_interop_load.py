"""`rayjepa.load`, and the frames that it shows an encoder."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from made_weights import FIXED_CODE, IMAGE, made, with_heads

import rayjepa
from rayjepa.interop import Weights, write_weights
from rayjepa.interop.encoder import Encoder
from rayjepa.interop.framing import framed
from rayjepa.model import Vit
from rayjepa.views import MEAN, STD


def video(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def stored(weights: Weights, folder: Path) -> Path:
    write_weights(weights, folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("knobs", [{}, FIXED_CODE, {"model.mlp": "swiglu"}], ids=["rope", "sincos", "swiglu"])
def test_features_are_those_of_the_encoder_that_was_asked_for(tmp_path: Path, knobs: dict[str, Any]) -> None:
    ours = made(**knobs)
    folder, clips = stored(ours, tmp_path / "own"), video(2, 4, 40, 56)
    found = {which: rayjepa.load(folder, weights=which)(clips) for which in ("target", "context")}
    assert found["target"].shape == (2, 32, 48)
    assert not torch.allclose(found["target"], found["context"])
    views = framed(clips, 32)
    for which, state in (("target", ours.target), ("context", ours.encoder)):
        module = Vit(ours.model)
        module.load_state_dict(state or {})
        assert torch.equal(found[which], module(*module.tokenise(views))[-1])


@torch.no_grad()
def test_a_loaded_encoder_pools_takes_other_lengths_and_does_not_train(tmp_path: Path) -> None:
    model = rayjepa.load(stored(made(), tmp_path / "own"))
    assert not model.training
    assert torch.equal(model.pooled(video(1, 4, 32, 32)), model(video(1, 4, 32, 32)).mean(1))
    assert model(video(1, 10, 32, 32)).shape == (1, 80, 48)
    model.size_px = 48
    assert model(video(1, 4, 32, 32)).shape == (1, 72, 48)


@torch.no_grad()
def test_an_image_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    image = video(2, 1, 32, 32)
    clips_only = Encoder(made())
    assert torch.equal(clips_only(image), clips_only(image.expand(-1, 2, -1, -1, -1)))
    streams = [{"name": "clips", "weight": 1, "set": {}}, {"name": "images", "weight": 1, "set": {"data.frames": 1}}]
    both = Encoder(made(streams=streams))
    assert both(image).shape == (2, 16, 48)
    assert not torch.allclose(both(image), both(image.expand(-1, 2, -1, -1, -1)))
    assert Encoder(made(**IMAGE))(image).shape == (2, 16, 48)


@pytest.mark.parametrize(
    ("clips", "said"),
    [
        (video(1, 4, 32, 32).float(), r"video is torch.float32 of shape \[1, 4, 32, 32, 3\]; give uint8"),
        (video(4, 32, 32), r"shape \[4, 32, 32, 3\]"),
        (video(1, 4, 32, 32).movedim(-1, 1), r"shape \[1, 3, 4, 32, 32\]"),
        (video(1, 3, 32, 32), "3 frames is no multiple of the tubelet, 2 frames"),
    ],
    ids=["float", "no batch", "channels first", "odd length"],
)
def test_another_input_is_refused(clips: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Encoder(made())(clips)


def test_unknown_weights_are_refused(tmp_path: Path) -> None:
    folder = stored(made(), tmp_path / "own")
    with pytest.raises(ValueError, match="weights='teacher'; give target or context"):
        rayjepa.load(folder, weights="teacher")
    with pytest.raises(ValueError, match="does not exist"):
        rayjepa.load(tmp_path / "nothing")


def test_heads_are_part_of_the_architecture_though_no_tensor_shows_them() -> None:
    ours, clips = made(), video(1, 4, 32, 32)
    assert not torch.allclose(Encoder(ours)(clips), Encoder(with_heads(ours, 4))(clips))


@pytest.mark.parametrize("size", [(48, 75), (90, 41), (32, 32)], ids=str)
def test_frames_are_resized_by_the_short_side_and_cropped_at_the_centre(size: tuple[int, int]) -> None:
    clip = video(1, 2, *size)
    height, width = size
    short = 36  # int(32 * 256 / 224)
    sides = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
    frames = F.interpolate(clip[0].movedim(-1, 1).float(), size=sides, mode="bilinear", antialias=True) / 255
    top, left = (sides[0] - 32) // 2, (sides[1] - 32) // 2
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    expected = (frames[..., top : top + 32, left : left + 32] - mean) / std
    assert torch.allclose(framed(clip, 32)[0].transpose(0, 1), expected, atol=1e-5)


@pytest.mark.slow
def test_loading_needs_neither_ray_nor_deepspeed_nor_transformers(tmp_path: Path) -> None:
    folder = stored(made(), tmp_path / "own")
    code = (
        "import sys, rayjepa; assert 'torch' not in sys.modules; rayjepa.load(sys.argv[1]);"
        "assert not {'ray', 'deepspeed', 'transformers', 'pyarrow', 'optuna'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=120)
