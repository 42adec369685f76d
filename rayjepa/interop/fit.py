"""Names and shapes that an architecture asks for, beside those of given tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rayjepa.config import ModelConfig, PredictorConfig
from rayjepa.model import Predictor, Vit

Shapes = dict[str, tuple[int, ...]]
State = Mapping[str, Tensor]


def encoder_shapes(model: ModelConfig, *, images: bool) -> Shapes:
    """Names and shapes of an encoder; `images` if it also has a tokeniser of single frames."""
    with torch.device("meta"):
        return shapes_of(Vit(model, images=images).state_dict())


def predictor_shapes(model: ModelConfig, predictor: PredictorConfig, *, mask_tokens: int) -> Shapes:
    """Names and shapes of a predictor beside the encoder of `model`."""
    with torch.device("meta"):
        return shapes_of(Predictor(predictor, model=model, mask_tokens=mask_tokens).state_dict())


def shapes_of(state: State) -> Shapes:
    """The shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def has_image_tokeniser(state: State) -> bool:
    """Whether an encoder has a tokeniser of single frames beside that of clips."""
    return any(name.startswith("patch_embed_image.") for name in state)


def mask_tokens(state: State) -> int:
    """Mask tokens of a predictor."""
    return sum(name.startswith("mask_tokens.") for name in state)


def misfits(there: Shapes, here: Shapes) -> list[str]:
    """What tensors of the shapes `there` lack, have too many or in another shape than `here`; empty if nothing."""
    found: list[str] = []
    if missing := sorted(here.keys() - there.keys()):
        found.append(f"lacks {listed(missing)}")
    if extra := sorted(there.keys() - here.keys()):
        found.append(f"has {listed(extra)}, which the model has not")
    wrong = [name for name in sorted(here.keys() & there.keys()) if here[name] != there[name]]
    if wrong:
        shapes = [f"{name} {list(there[name])} for {list(here[name])}" for name in wrong]
        found.append(f"has other shapes: {listed(shapes)}")
    return found


def require_fit(what: str, state: State, wanted: Shapes) -> None:
    """Raises:  ValueError naming what is missing, too many, or of another shape than `wanted`."""
    if found := misfits(shapes_of(state), wanted):
        raise ValueError(f"{what} {'; it '.join(found)}")


def listed(items: list[str], *, most: int = 3) -> str:
    """The first of `items`, and how many there are."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more ({len(items)} in all)" if more > 0 else "")
