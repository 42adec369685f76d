"""Names of the same layers in transformers (as of 5.23) and here, and how to go from the ones to the others."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from rayjepa.interop.weights import State

Table = Mapping[str, str]
"""Layers by name, `{}` for the number of a block; a layer's weight and bias keep their names."""


def _blocks(ours: str, theirs: str, inner: Table) -> dict[str, str]:
    return {f"{ours}.{{}}.{old}": f"{theirs}.{{}}.{new}" for old, new in inner.items()}


_VIDEO_BLOCK = {
    "norm1": "norm1",
    "attn.query": "attention.query",
    "attn.key": "attention.key",
    "attn.value": "attention.value",
    "attn.proj": "attention.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
VIDEO_ENCODER: Table = {
    "patch_embed.proj": "encoder.embeddings.patch_embeddings.proj",
    **_blocks("blocks", "encoder.layer", _VIDEO_BLOCK),
    "norm": "encoder.layernorm",
}
"""VJEPA2Model by ours."""
VIDEO_PREDICTOR: Table = {
    "predictor_embed": "predictor.embeddings.predictor_embeddings",
    **_blocks("predictor_blocks", "predictor.layer", _VIDEO_BLOCK),
    "predictor_norm": "predictor.layernorm",
    "predictor_proj": "predictor.proj",
}
IMAGE_ENCODER: Table = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    **_blocks(
        "blocks",
        "encoder.layer",
        {
            "norm1": "layernorm_before",
            "attn.query": "attention.attention.query",
            "attn.key": "attention.attention.key",
            "attn.value": "attention.attention.value",
            "attn.proj": "attention.output.dense",
            "norm2": "layernorm_after",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
    ),
    "norm": "layernorm",
}
"""IJepaModel, as it is written to disk, by ours."""
IMAGE_MEMORY: Table = _blocks(
    "layers",
    "encoder.layer",
    {
        "layernorm_before": "layernorm_before",
        "layernorm_after": "layernorm_after",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
)
"""IJepaModel on disk, by the names that it has in memory."""


def inverse(table: Table) -> Table:
    """From the second names to the first."""
    return {new: old for old, new in table.items()}


def renamed(state: Mapping[str, Tensor], table: Table) -> State:
    """The same tensors under the names of `table`; what it does not know keeps its name."""
    found: State = {}
    for name, tensor in state.items():
        layer, _, part = name.rpartition(".")
        number = re.search(r"\.(\d+)\.", layer)
        known = table.get(layer if number is None else f"{layer[: number.start()]}.{{}}.{layer[number.end() :]}")
        found[name if known is None else f"{known.format(number and number[1])}.{part}"] = tensor
    return found


def qkv_apart(state: Mapping[str, Tensor]) -> State:
    """Our blocks with query, key and value as layers of their own."""
    found: State = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[name.replace(".qkv.", f".{part}.")] = third
        else:
            found[name] = tensor
    return found


def qkv_fused(state: Mapping[str, Tensor]) -> State:
    """Our blocks with query, key and value in one layer; where one of the three is missing, so is that layer."""
    found = dict(state)
    for name in state:
        if ".attn.query." not in name:
            continue
        names = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in state for part in names):
            found[name.replace(".query.", ".qkv.")] = torch.cat([found.pop(part) for part in names])
    return found
