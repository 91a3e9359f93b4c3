"""Layers of ViViT, VideoMAE and V-JEPA 2 of Hugging Face transformers: what comes after attention is fused.

Attention is called, whichever it is (attention_interface.py, vjepa2.py); the residual sum, the norm and the MLP after
it are passed by.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers.models.videomae import modeling_videomae as videomae
from transformers.models.vivit import modeling_vivit as vivit
from transformers.models.vjepa2 import modeling_vjepa2 as vjepa2

from hsta_kernels.models.plain import drop_rate, is_plain
from hsta_kernels.patching.fused import can_fuse_mlp, mlp, normalized, not_gelu
from hsta_kernels.patching.kernels import has_kernels


class VideoMAELayer(videomae.VideoMAELayer):
    """In place of the class of the same name, as those below: same parameters, arguments and results."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not _can_fuse(self, hidden_states):
            return super().forward(hidden_states, *args, **kwargs)
        return _finish(
            self, self.attention(normalized(self.layernorm_before, hidden_states), *args, **kwargs), hidden_states
        )


class VivitLayer(vivit.VivitLayer):
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not _can_fuse(self, hidden_states):
            return super().forward(hidden_states, *args, **kwargs)
        update = self.attention(normalized(self.layernorm_before, hidden_states), *args, **kwargs)
        return _finish(self, update[0] if isinstance(update, tuple) else update, hidden_states)


class VJEPA2Layer(vjepa2.VJEPA2Layer):
    def forward(
        self, hidden_states: Tensor, position_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        asks_more = any(more is not None and more is not False for more in args)
        if asks_more or kwargs.get("output_attentions") or not _can_fuse(self, hidden_states):
            return super().forward(hidden_states, position_mask, *args, **kwargs)
        update, *weights = self.attention(normalized(self.norm1, hidden_states), position_mask=position_mask)
        return _finish(self, update, hidden_states), *weights


LAYERS: tuple[tuple[type, type], ...] = (
    (videomae.VideoMAELayer, VideoMAELayer),
    (vivit.VivitLayer, VivitLayer),
    (vjepa2.VJEPA2Layer, VJEPA2Layer),
)


def patch(model: nn.Module) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, module in model.named_modules():
        for theirs, ours in LAYERS:
            if type(module) in (theirs, ours):
                found[name] = not_gelu(_after_attention(module).activation)
                if found[name] is None:
                    module.__class__ = ours
    return found


def unpatch(model: nn.Module) -> None:
    for module in model.modules():
        for theirs, ours in LAYERS:
            if type(module) is ours:
                module.__class__ = theirs


class AfterAttention(NamedTuple):
    norm: nn.LayerNorm
    before: nn.Linear
    activation: nn.Module
    after: nn.Linear
    holders: tuple[nn.Module, ...]
    dropouts: tuple[nn.Module, ...]


def _after_attention(layer: Any) -> AfterAttention:
    """What is passed by. Of ViViT transformers 5 has other names than 4.57, where they are VideoMAE's."""
    if isinstance(layer, vjepa2.VJEPA2Layer):
        held = layer.mlp
        return AfterAttention(layer.norm2, held.fc1, held.activation, held.fc2, (held,), (layer.drop_path,))
    if hasattr(layer, "mlp"):
        held = layer.mlp
        return AfterAttention(layer.layernorm_after, held.fc1, held.activation_fn, held.fc2, (held,), (layer.dropout,))
    first, last = layer.intermediate, layer.output
    dropouts = tuple(module.dropout for module in (first, last) if hasattr(module, "dropout"))
    activation = first.intermediate_act_fn
    return AfterAttention(layer.layernorm_after, first.dense, activation, last.dense, (first, last), dropouts)


def _can_fuse(layer: nn.Module, hidden_states: Tensor) -> bool:
    """Whether no module after attention has to be called: nothing drops out, nothing is attached to one."""
    of = _after_attention(layer)
    file = type(layer).__base__.__module__
    return (
        has_kernels(hidden_states, head_dim=1)  # attention has its own say
        and can_fuse_mlp(of.norm, of.before, of.activation, of.after)
        and all(is_plain(module, type(module)) and type(module).__module__ == file for module in of.holders)
        and all(_drops_nothing(dropout) for dropout in of.dropouts)
    )


def _drops_nothing(module: nn.Module) -> bool:
    if is_plain(module, vjepa2.VJEPA2DropPath):
        return not module.training or float(module.drop_prob) == 0  # type: ignore[arg-type]
    return is_plain(module, nn.Identity) or drop_rate(module) == 0


def _finish(layer: nn.Module, update: Tensor, residual: Tensor) -> Tensor:
    of = _after_attention(layer)
    return mlp(of.norm, of.before, of.activation, of.after, update, residual)
