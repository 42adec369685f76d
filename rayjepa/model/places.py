"""Where tokens lie, and tables of that: made once for a whole grid, and gathered for some of its tokens."""

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

Grid = tuple[int, int, int]
"""Tokens of a clip along time, height and width."""


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Coordinates of tokens, for all clips or for each, and the tables that were made of them.

    `places[ids]` are those of some tokens of each clip; they share the tables of the whole.
    """

    whole: Float[Tensor, "*b N k"]
    ids: Int64[Tensor, "B C"] | None = None
    _tables: dict[Hashable, Tensor] = field(default_factory=dict[Hashable, Tensor])

    def __getitem__(self, ids: Int64[Tensor, "B C"]) -> "Places":
        assert self.ids is None, "places are chosen from the whole"
        assert self.whole.dim() == 2, "places that differ by clip have no ids"
        return replace(self, ids=ids)

    @property
    def coordinates(self) -> Float[Tensor, "*b N k"]:
        """Where each token lies."""
        return self._chosen(self.whole)

    @property
    def tokens(self) -> int:
        """How many tokens of a clip."""
        return self.whole.shape[-2] if self.ids is None else self.ids.shape[-1]

    def table(self, key: Hashable, make: Callable[[Tensor], Tensor]) -> Float[Tensor, "*b N R"]:
        """Each place's row of `make(coordinates)`, called once for a `key`: that names all that it hangs on."""
        if key not in self._tables:
            with torch.no_grad(), torch.inference_mode(False):  # autograd may keep it, whoever asks first
                self._tables[key] = make(self.whole)
        return self._chosen(self._tables[key])

    def _chosen(self, rows: Tensor) -> Tensor:
        return rows if self.ids is None else F.embedding(self.ids, rows)


def as_places(at: Places | Float[Tensor, "*b N k"]) -> Places:
    """`at`, if need be with room for its tables."""
    return at if isinstance(at, Places) else Places(at)


@functools.lru_cache(maxsize=16)  # a run has one grid for each stream and for what is examined
def raster(grid: Grid, *, device: torch.device, base: Grid | None = None) -> Places:
    """Places of all tokens in raster order t*(H*W) + h*W + w, the same object at every call.

    Shapes:  (N, 3): (t, h, w).
    Units:   a tubelet and a patch; with `base`, the steps of that grid, over which this one is laid.
    """
    with torch.inference_mode(False):
        axes = [torch.arange(n, dtype=torch.float32, device=device) for n in grid]
        if base is not None:
            axes = [(axis + 0.5) * (m / n) - 0.5 for axis, n, m in zip(axes, grid, base, strict=True)]
        return Places(torch.cartesian_prod(*axes))
