"""How encoder and predictor know where a token lies: by turning queries and keys, or by a code added to it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rayjepa.config import ModelConfig
from rayjepa.model.places import Grid, Places, raster
from rayjepa.model.rope import Pairing, Precision, Rotation, rotation
from rayjepa.model.sincos import Axes, sincos


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding in every attention, by whole coordinates: any grid is as good as another."""

    pairing: Pairing
    precision: Precision

    def places(self, grid: Grid, device: torch.device) -> Places:
        """Places of all tokens of a clip."""
        return raster(grid, device=device)

    def added(self, tokens: Float[Tensor, "B N D"], at: Places) -> Float[Tensor, "B N D"]:
        """`tokens` as they are."""
        return tokens

    def rotation(self, at: Places, *, head_dim: int, dtype: torch.dtype) -> Rotation | None:
        """What every attention turns by."""
        return rotation(at, head_dim=head_dim, pairing=self.pairing, dtype=dtype, precision=self.precision)


@dataclass(frozen=True, slots=True)
class SinCos:
    """A code made for the grid `base`, added once to the tokens of encoder and predictor."""

    base: Grid
    axes: Axes

    def places(self, grid: Grid, device: torch.device) -> Places:
        """Places of all tokens of a clip, in steps of the base grid.

        Source:  V-JEPA 2's implementation: fewer time slots of the same frame are the first ones; any other grid is
                 laid over the whole of the base grid.
        Raises:  ValueError if the code is an image's and the clip is none.
        """
        if self.base[0] == 1 < grid[0]:
            raise ValueError(f"the position code of {self.base} is of images: set model.sincos_grid to one with T > 1")
        is_cut = grid[1:] == self.base[1:] and grid[0] <= self.base[0]
        return raster(grid, device=device, base=None if is_cut else self.base)

    def added(self, tokens: Float[Tensor, "B N D"], at: Places) -> Float[Tensor, "B N D"]:
        """`tokens` with their codes, in their own dtype."""
        width, dtype = tokens.shape[-1], tokens.dtype
        key = ("sincos", self, width, dtype)
        return tokens + at.table(key, lambda c: sincos(c, width=width, base=self.base, axes=self.axes).to(dtype))

    def rotation(self, at: Places, *, head_dim: int, dtype: torch.dtype) -> Rotation | None:
        """Nothing to turn by."""
        return None


Position = Rope | SinCos


def position_of(cfg: ModelConfig, *, grid: Grid | None) -> Position:
    """The position encoding of a model; `grid` is that of the run.

    Raises:  ValueError if a code is to be made and neither model.sincos_grid nor `grid` says for which grid.
    """
    if cfg.position == "rope":
        return Rope(pairing=cfg.rope_pairing, precision=cfg.rope_table)
    base = cfg.sincos_grid or grid
    if base is None:
        raise ValueError("model.position=sincos without a run needs model.sincos_grid=[T, H, W]")
    return SinCos(base=base, axes=cfg.sincos_axes)
