"""The same training step of layers that Hugging Face's transformers has, as one would write it there."""

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rayjepa.bench.clock import Clock
from rayjepa.bench.step_ours import Inputs
from rayjepa.config import RunConfig
from rayjepa.masks import Split
from rayjepa.model import Jepa
from rayjepa.model.jepa import TARGET_EPS
from rayjepa.model.vit import EPS
from rayjepa.train.engine import autocast
from rayjepa.train.optim import parameter_groups, set_rates


def why_not(run: RunConfig) -> str:
    """Why layers of transformers cannot do this run's mathematics; empty: they can."""
    model, masks = run.model, run.masks
    unlike = {
        "model.position": model.position != "rope",
        "model.rope_pairing": model.rope_pairing != "tiled",
        "model.mlp": model.mlp != "gelu",
        "model.rope_table": model.rope_table != "fp32" and run.train.precision == "bf16",
        "masks.kind": masks.kind == "ijepa",
        "masks.truncate": masks.truncate == "none" and masks.kind == "multiblock",
        "data.frames": run.data.frames == 1,
        "objective.kind": run.objective.kind != "l1",
        "optim.clip_parts": run.optim.clip is not None and run.optim.clip_parts != "joint",
    }
    keys = [key for key, differs in unlike.items() if differs]
    return f"transformers' V-JEPA 2 layers have no such {', '.join(keys)}" if keys else ""


class HfStep:
    """A step of VJEPA2Encoder's and VJEPA2Predictor's layers, with the weights of `jepa` as they are now.

    Clips are tokenised once for all masks, as ours are; masks gather the layers' inputs, and the predictor does what
    its own forward does after its masks. AdamW is what PyTorch makes of its defaults.
    Raises:  ImportError if transformers is not installed.
    """

    def __init__(self, run: RunConfig, jepa: Jepa, *, device: torch.device, clock: Clock) -> None:
        from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder, VJEPA2Predictor

        self.run, self.device, self.clock = run, device, clock
        config = _config(run, mask_tokens=len(jepa.predictor.mask_tokens))
        self.encoder: Any = VJEPA2Encoder(config)
        self.predictor: Any = VJEPA2Predictor(config)
        _copy_weights(self, jepa)
        self.target: Any = copy.deepcopy(self.encoder).requires_grad_(False)
        modules: list[Any] = [self.encoder, self.predictor, self.target]
        nn.ModuleList(modules).to(device).train()
        for layer in (*self.encoder.layer, *self.predictor.layer):
            if run.train.checkpoint_blocks:  # as PreTrainedModel.gradient_checkpointing_enable does
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        if run.train.compile_blocks:
            for layer in (layer for module in modules for layer in module.layer):
                layer.compile(dynamic=True)  # as ours are
        trained = nn.ModuleDict({"encoder": self.encoder, "predictor": self.predictor})
        self.parameters = list(trained.parameters())
        self.optimizer = torch.optim.AdamW(
            parameter_groups(trained, run.optim), betas=run.optim.betas, eps=run.optim.eps
        )

    def step(self, inputs: Inputs, *, lr: float, weight_decay: float, momentum: float, clip: float | None) -> Tensor:
        """Learn from `inputs`; the mean loss, on the device."""
        part, total = self.clock.part, torch.zeros((), device=self.device)
        for views, splits in inputs:
            with part("rest"), autocast(self.run, self.device):
                loss = self._loss(views.transpose(1, 2), splits)
            with part("backward"):
                (loss / len(inputs)).backward()
            total += loss.detach() / len(inputs)
        if clip is not None:
            with part("guard"):
                nn.utils.clip_grad_norm_(self.parameters, clip)
        set_rates(self.optimizer, lr=lr, weight_decay=weight_decay)
        with part("optimizer"):
            self.optimizer.step()
        with part("ema"), torch.no_grad():
            slow, fast = list(self.target.parameters()), list(self.encoder.parameters())
            torch._foreach_lerp_(slow, fast, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]  # no public name
        self.optimizer.zero_grad()
        return total

    def _loss(self, frames: Tensor, splits: tuple[Split, ...]) -> Tensor:
        part = self.clock.part
        with part("target"), torch.no_grad():
            features = self.target(frames).last_hidden_state
        with part("loss"):
            truth = F.layer_norm(features.float(), features.shape[-1:], eps=TARGET_EPS)
        with part("encoder"):
            tokens = self.encoder.embeddings(frames)
        losses: list[Tensor] = []
        for number, split in enumerate(splits):
            with part("encoder"):
                x = _gather(tokens, split.context)
                for layer in self.encoder.layer:
                    x = layer(x, split.context)[0]
                x = self.encoder.layernorm(x)
            with part("predictor"):
                guess = self._predict(x, split, token=number if self.run.predictor.mask_token == "mask" else 0)
            with part("loss"):
                losses.append(F.l1_loss(guess.float(), _gather(truth, split.target)))
        return torch.stack(losses).mean()

    def _predict(self, context: Tensor, split: Split, *, token: int) -> Tensor:
        """What VJEPA2Predictor.forward does with an encoder's output, which here is gathered already."""
        predictor = self.predictor
        x, at = predictor.embeddings(context, [split.context], [split.target], mask_index=token)
        order = torch.argsort(at, dim=1)
        x, at = predictor.sort_tokens(x, at, order)
        for layer in predictor.layer:
            x = layer(x, at)[0]
        x = predictor.unsort_tokens(predictor.layernorm(x), order)
        return predictor.proj(x[:, split.context.shape[1] :])


def _config(run: RunConfig, *, mask_tokens: int) -> Any:
    from transformers import VJEPA2Config

    model, small = run.model, run.predictor
    config = VJEPA2Config(
        patch_size=model.patch_px,
        crop_size=run.data.size_px,
        frames_per_clip=run.data.frames,
        tubelet_size=model.tubelet,
        hidden_size=model.width,
        num_attention_heads=model.heads,
        num_hidden_layers=model.depth,
        mlp_ratio=model.mlp_ratio,
        layer_norm_eps=EPS,
        pred_hidden_size=small.width,
        pred_num_attention_heads=small.heads,
        pred_num_hidden_layers=small.depth,
        pred_num_mask_tokens=mask_tokens,
        pred_mlp_ratio=small.mlp_ratio,
    )
    config._attn_implementation = "sdpa"
    return config


@torch.no_grad()
def _copy_weights(peer: HfStep, jepa: Jepa) -> None:
    encoder, predictor = jepa.encoder, jepa.predictor
    pairs: list[tuple[Any, nn.Module]] = [
        (peer.encoder.embeddings.patch_embeddings.proj, encoder.patch_embed.proj),
        (peer.encoder.layernorm, encoder.norm),
        (peer.predictor.embeddings.predictor_embeddings, predictor.predictor_embed),
        (peer.predictor.layernorm, predictor.predictor_norm),
        (peer.predictor.proj, predictor.predictor_proj),
    ]
    blocks = zip(
        (*peer.encoder.layer, *peer.predictor.layer), (*encoder.blocks, *predictor.predictor_blocks), strict=True
    )
    for layer, block in blocks:
        own: Any = block
        pairs += [(layer.norm1, own.norm1), (layer.norm2, own.norm2), (layer.mlp, own.mlp)]
        pairs.append((layer.attention.proj, own.attn.proj))
        thirds = zip(own.attn.qkv.weight.chunk(3), own.attn.qkv.bias.chunk(3), strict=True)
        linears = (layer.attention.query, layer.attention.key, layer.attention.value)
        for linear, (weight, bias) in zip(linears, thirds, strict=True):
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    for token, own in zip(peer.predictor.embeddings.mask_tokens, predictor.mask_tokens, strict=True):
        token.copy_(own)


def _gather(tokens: Tensor, ids: Tensor) -> Tensor:
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
