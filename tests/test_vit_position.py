"""Fixed position codes: their tables, their interpolation, and where they are added."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rayjepa.config import ConfigError, ModelConfig, PredictorConfig, resolve
from rayjepa.model import Jepa, Predictor, Vit
from rayjepa.model.blocks import initialise
from rayjepa.model.places import raster
from rayjepa.model.position import SinCos
from rayjepa.model.sincos import sincos
from rayjepa.model.vit import gather

CPU = torch.device("cpu")


def table(grid: tuple[int, int, int], width: int, axes: str = "equal") -> np.ndarray:
    """The published tables, token by token."""

    def code(place: int, channels: int) -> list[float]:
        angles = [place / 10000 ** (k / (channels / 2)) for k in range(channels // 2)]
        return [*np.sin(angles), *np.cos(angles)]

    rows = []
    for t in range(grid[0]):
        for h in range(grid[1]):
            for w in range(grid[2]):
                if grid[0] == 1:
                    row = code(w, width // 2) + code(h, width // 2)
                elif axes == "equal":
                    each = int(np.ceil(width / 6) * 2)
                    row = (code(t, each) + code(h, each) + code(w, each))[:width]
                else:
                    row = code(t, width // 2) + code(h, width // 4) + code(w, width // 4)
                rows.append(row)
    return np.array(rows)


def coded(grid: tuple[int, int, int], base: tuple[int, int, int], width: int, axes: str = "equal") -> Tensor:
    position = SinCos(base=base, axes=axes)
    return position.added(torch.zeros(1, int(np.prod(grid)), width), position.places(grid, CPU))[0]


@pytest.mark.parametrize(
    ("grid", "width", "axes"),
    [((3, 2, 4), 24, "equal"), ((3, 2, 4), 32, "equal"), ((3, 2, 4), 32, "time_half"), ((1, 3, 4), 32, "equal")],
)
def test_codes_follow_the_published_formula(grid: tuple[int, int, int], width: int, axes: str) -> None:
    np.testing.assert_allclose(coded(grid, grid, width, axes), table(grid, width, axes), atol=1e-6)


@pytest.mark.parametrize("grid", [(8, 4, 4), (2, 8, 8), (4, 6, 3), (4, 3, 5), (1, 5, 5)])
def test_another_grid_of_a_video_has_the_table_resized_linearly(grid: tuple[int, int, int]) -> None:
    base, width = (4, 4, 4), 24
    volume = torch.tensor(table(base, width)).view(*base, width).permute(3, 0, 1, 2)[None]
    resized = F.interpolate(volume, size=grid, mode="trilinear")[0].flatten(1).T
    torch.testing.assert_close(coded(grid, base, width).double(), resized, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [3, 5, 8, 12])
def test_another_grid_of_an_image_has_the_table_resized_cubically(side: int) -> None:
    base, width = (1, 5, 5), 24
    plane = torch.tensor(table(base, width)).view(5, 5, width).permute(2, 0, 1)[None]
    resized = F.interpolate(plane, size=(side, side), mode="bicubic")[0].flatten(1).T
    torch.testing.assert_close(coded((1, side, side), base, width).double(), resized, rtol=0, atol=2e-6)


def test_fewer_frames_of_the_same_size_have_the_first_codes() -> None:
    assert torch.equal(coded((2, 3, 5), (4, 3, 5), 24), coded((4, 3, 5), (4, 3, 5), 24)[: 2 * 15])


def test_a_clip_has_no_places_in_a_code_of_images() -> None:
    with pytest.raises(ValueError, match=r"set model\.sincos_grid to one with T > 1"):
        coded((2, 3, 3), (1, 3, 3), 24)
    video = {"name": "video", "weight": 1, "set": {"data.frames": 4}}
    run = resolve("tiny", {"data.frames": 1, "model.position": "sincos", "streams": [video]})
    with pytest.raises(ValueError, match=r"set model\.sincos_grid to one with T > 1"):
        Jepa(run)


def test_an_axis_needs_as_many_sines_as_cosines() -> None:
    with pytest.raises(ConfigError, match=r"predictor\.width=12 is not a multiple of 8"):
        resolve("tiny", {"model.position": "sincos", "model.sincos_axes": "time_half"})
    with pytest.raises(ConfigError, match=r"model\.width=26 is not a multiple of 4"):
        resolve("tiny", {"model.position": "sincos", "data.frames": 1, "model.width": 26})


def model_of(**given: object) -> ModelConfig:
    return ModelConfig(patch_px=4, width=24, depth=2, heads=2, position="sincos", **given)


def small(**given: object) -> Vit:
    vit = Vit(model_of(**given), grid=(2, 3, 3))
    initialise(vit, generator=torch.Generator().manual_seed(0))
    return vit.requires_grad_(False)


def clip(frames: int = 4, height: int = 12, width: int = 12) -> Tensor:
    return torch.randn(2, 3, frames, height, width, generator=torch.Generator().manual_seed(1))


def test_a_model_with_a_code_has_no_other_parameters_or_buffers() -> None:
    names = {name for name, _ in Vit(ModelConfig(patch_px=4, width=24, depth=2, heads=2)).named_parameters()}
    assert {name for name, _ in small().named_parameters()} == names
    assert list(small().buffers()) == []


def test_kept_tokens_keep_the_codes_of_their_places() -> None:
    """Adding a code to all tokens and then choosing some is what the encoder gives for those."""
    vit, ids = small(), torch.tensor([[0, 4, 9, 17], [1, 2, 3, 16]])
    tokens, at = vit.tokenise(clip())
    summed = gather(tokens + torch.tensor(table((2, 3, 3), 24)).float(), ids)
    for block in vit.blocks:
        summed = block(summed)
    torch.testing.assert_close(vit(gather(tokens, ids), at[ids])[-1], vit.norm(summed), rtol=0, atol=1e-5)


def test_a_frame_that_is_not_square_is_coded_by_its_own_rows_and_columns() -> None:
    tall, wide = small(sincos_grid=(2, 4, 3)), small(sincos_grid=(2, 3, 4))
    features = tall(*tall.tokenise(clip(height=16)))[-1]
    assert features.shape == (2, 24, 24)
    assert (features - wide(*wide.tokenise(clip(height=16)))[-1]).abs().max() > 1e-3


def test_the_predictor_adds_codes_of_its_own_width_to_context_and_mask_tokens() -> None:
    predictor = Predictor(PredictorConfig(width=12, depth=1, heads=2), model=model_of(), mask_tokens=2, grid=(2, 3, 3))
    initialise(predictor, generator=torch.Generator().manual_seed(2))
    context, target = torch.tensor([[0, 4, 9]]), torch.tensor([[17, 2]])
    features = torch.randn(1, 3, 24, generator=torch.Generator().manual_seed(3))
    at = raster((2, 3, 3), device=CPU)
    found = predictor(features, at[context], at[target], mask_token=1)
    code = sincos(at.coordinates, width=12, base=(2, 3, 3))
    x = torch.cat((predictor.predictor_embed(features), predictor.mask_tokens[1].expand(1, 2, -1)), dim=1)
    x = predictor.predictor_blocks[0](x + code[torch.cat((context, target), dim=1)])
    expected = predictor.predictor_proj(predictor.predictor_norm(x[:, 3:]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
