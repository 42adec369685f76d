import pytest
import torch

from rayjepa.model.places import raster
from rayjepa.model.rope import Rotation, channels, rotate, rotation


def at(*positions: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(positions, dtype=torch.float32)


def turned(x: torch.Tensor, coordinates: torch.Tensor, pairing: str = "interleaved") -> torch.Tensor:
    by = rotation(coordinates, head_dim=x.shape[-1], pairing=pairing, dtype=x.dtype)
    return rotate(x, by)


@pytest.mark.parametrize(("head_dim", "per_axis"), [(64, 20), (80, 26), (88, 28), (104, 34), (32, 10), (12, 4), (6, 2)])
def test_each_axis_turns_an_even_third_of_the_head(head_dim: int, per_axis: int) -> None:
    assert channels(head_dim, 3) == per_axis


def test_an_interleaved_rotation_keeps_the_norm() -> None:
    x = torch.randn(2, 3, 5, 64, generator=torch.Generator().manual_seed(0))
    places = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) * 32
    torch.testing.assert_close(turned(x, places).norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=0)


def test_an_interleaved_product_depends_on_relative_position_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 64, generator=torch.Generator().manual_seed(2)).double().unbind(0)
    near, far = at((0, 3, 1), (2, 1, 5)), at((4, 10, 8), (6, 8, 12))  # the same difference, elsewhere

    def product(places: torch.Tensor) -> torch.Tensor:
        return (turned(q, places[:1]) * turned(k, places[1:])).sum()

    torch.testing.assert_close(product(near), product(far), rtol=1e-5, atol=1e-6)


def test_a_tiled_table_is_no_rotation_as_in_the_published_weights() -> None:
    x = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    places = torch.stack([torch.arange(64.0)] * 3, dim=1)
    ratio = turned(x, places, "tiled").norm(dim=-1) / x.norm(dim=-1)
    assert ratio.min() < 0.95
    assert ratio.max() > 1.05


@pytest.mark.parametrize("pairing", ["interleaved", "tiled"])
def test_tables_follow_the_equation(pairing: str) -> None:
    """Head of 13: 4 channels an axis with frequencies 1 and 1/100, one channel left over."""
    place = (3.0, 1.0, 2.0)
    x = torch.randn(13, generator=torch.Generator().manual_seed(4))
    expected = x.clone()
    for axis, p in enumerate(place):
        a, b = torch.tensor(p), torch.tensor(p / 100)
        by_channel = (a, a, b, b) if pairing == "interleaved" else (a, b, a, b)
        for j in (0, 2):
            i = 4 * axis + j
            expected[i] = x[i] * by_channel[j].cos() - x[i + 1] * by_channel[j].sin()
            expected[i + 1] = x[i + 1] * by_channel[j + 1].cos() + x[i] * by_channel[j + 1].sin()
    torch.testing.assert_close(turned(x.view(1, 1, 1, 13), at(place), pairing).flatten(), expected)


def by_loop(x: torch.Tensor, places: torch.Tensor, pairing: str) -> torch.Tensor:
    """The formula for one head, channel by channel."""
    d, y = x.shape[-1], x.clone()
    m = 2 * (d // 3 // 2)
    for n, place in enumerate(places.tolist()):
        for axis, p in enumerate(place):
            for i in range(0, m, 2):
                if pairing == "interleaved":
                    turn = torch.polar(torch.tensor(1.0), torch.tensor(p * 10000 ** (-i / m)))
                    first, second = turn, turn
                else:  # channel c has the angle of frequency c modulo m/2
                    first, second = (
                        torch.polar(torch.tensor(1.0), torch.tensor(p * 10000 ** (-((i + k) % (m // 2)) / (m / 2))))
                        for k in (0, 1)
                    )
                a, b = x[n, axis * m + i], x[n, axis * m + i + 1]
                y[n, axis * m + i] = a * first.real - b * first.imag
                y[n, axis * m + i + 1] = b * second.real + a * second.imag
    return y


@pytest.mark.parametrize("pairing", ["interleaved", "tiled"])
@pytest.mark.parametrize("head_dim", [64, 80, 88, 32, 24])
def test_heads_of_all_published_sizes_turn_by_the_formula(head_dim: int, pairing: str) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    x = torch.randn(4, head_dim, generator=generator)
    places = torch.randint(0, 32, (4, 3), generator=generator).float()
    for precision in ("fp32", "input"):
        by = rotation(places, head_dim=head_dim, pairing=pairing, dtype=torch.float32, precision=precision)
        torch.testing.assert_close(rotate(x[None, None], by)[0, 0], by_loop(x, places, pairing), rtol=1e-4, atol=2e-5)


def test_angles_in_bf16_are_far_off_where_ours_are_not() -> None:
    places = torch.stack([torch.arange(32.0)] * 3, dim=1)
    exact, ours, theirs = (
        rotation(places, head_dim=80, pairing="tiled", dtype=dtype, precision=precision).cos.float()
        for dtype, precision in ((torch.float32, "fp32"), (torch.bfloat16, "fp32"), (torch.bfloat16, "input"))
    )
    assert (ours - exact).abs().max() <= 2**-9
    assert (theirs - exact).abs().max() > 0.05


def test_tables_in_bf16_are_rounded_once() -> None:
    places = torch.stack([torch.arange(32.0)] * 3, dim=1)
    exact, rounded = (
        rotation(places, head_dim=64, pairing="interleaved", dtype=d) for d in (torch.float32, torch.bfloat16)
    )
    assert isinstance(rounded, Rotation)
    assert (exact.cos - rounded.cos.float()).abs().max() <= 2**-9  # half a unit in the last place below 1


def test_a_grids_tables_are_made_once_and_gathered_for_some_of_its_tokens() -> None:
    grid, cpu = (2, 3, 5), torch.device("cpu")
    asked = {"head_dim": 24, "pairing": "tiled", "dtype": torch.float32}
    with torch.inference_mode():
        whole = rotation(raster(grid, device=cpu), **asked)
    assert not whole.cos.is_inference()  # autograd may keep it later
    again = rotation(raster(grid, device=cpu), **asked)
    assert again.cos.data_ptr() == whole.cos.data_ptr()
    ids = torch.tensor([[4, 0, 29], [7, 7, 1]])
    some, made = (
        rotation(raster(grid, device=cpu)[ids], **asked),
        rotation(raster(grid, device=cpu).coordinates[ids], **asked),
    )
    assert torch.equal(some.cos, made.cos)
    assert torch.equal(some.sin, made.sin)


def test_coordinates_may_differ_by_clip() -> None:
    x = torch.randn(2, 1, 3, 24, generator=torch.Generator().manual_seed(5))
    places = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(6)) * 8
    each = torch.cat([turned(x[i : i + 1], places[i]) for i in range(2)])
    torch.testing.assert_close(turned(x, places), each, rtol=0, atol=0)
