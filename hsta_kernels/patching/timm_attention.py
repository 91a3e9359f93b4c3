"""Attention of timm's vision transformers: q, k and v are read where the projection left them.

timm permutes the projection's result to three tensors (B, H, N, D), and attention's result back to tokens. Ours reads
and writes tokens: a view makes (B, N, 3, H, D), and the gradient comes packed. Modules inside are called as before.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from timm.layers import attention as original
from torch import Tensor, nn

from hsta_kernels import ops
from hsta_kernels.models.plain import is_plain
from hsta_kernels.ops.checks import autocast_enabled
from hsta_kernels.patching.kernels import has_kernels

# What the forward pass below goes through. A module with more in it does more: a gate, or what a later timm may add.
PARTS = {"qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop"}


def patch(model: nn.Module) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, module in model.named_modules():
        if "fused_attn" in vars(module):  # so timm marks what may call PyTorch's attention
            found[name] = _replace(module)
    return found


def unpatch(model: nn.Module) -> None:
    kind: Any = original.Attention
    for module in model.modules():
        if type(module) is Attention:
            module.__class__ = kind


def _replace(module: nn.Module) -> str | None:
    """Replaces a module's class, or says why not."""
    kind: Any = Attention
    if type(module) not in (original.Attention, kind):
        return f"it is a {type(module).__module__}.{type(module).__name__}; timm.layers.Attention is replaced"
    if "forward" in module.__dict__:
        return "somebody has given it a forward of its own"
    if more := {name for name, _ in module.named_children()} - PARTS:
        return f"it has {', '.join(sorted(more))}, which timm.layers.Attention does not have by default"
    module.__class__ = kind
    return None


class Attention(original.Attention):
    """In place of the class of the same name: same parameters, arguments and results."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self._can_run(x) or any(more is not None and more is not False for more in (*args, *kwargs.values())):
            return super().forward(x, *args, **kwargs)  # with a mask, or causal
        qkv: Any = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        if not all(is_plain(norm, nn.Identity) for norm in (self.q_norm, self.k_norm)):
            q, k, v = qkv.transpose(1, 3).unbind(2)
            q, k = self.q_norm(q), self.k_norm(k)
            if autocast_enabled(v):  # where a norm's result is float32
                q, k = q.to(v.dtype), k.to(v.dtype)
            qkv = tuple(part.transpose(1, 2) for part in (q, k, v))
        scale = None if self.fused_attn else self.scale  # scaled_dot_product_attention is not told it
        drops = self.training if self.fused_attn else self.attn_drop.training
        rate = self.attn_drop.p if drops else 0.0
        out = ops.space_time_attention(qkv, (1, x.shape[1]), "joint", 0, scale=scale, dropout_rate=rate)
        return self.proj_drop(self.proj(self.norm(out.flatten(2))))

    def _can_run(self, x: Tensor) -> bool:
        """Whether this is a call with numbers, in which nobody looks at probabilities."""
        return (
            not isinstance(x, torch.fx.Proxy)
            and not torch.jit.is_tracing()
            and not torch.onnx.is_in_onnx_export()
            and (self.fused_attn or is_plain(self.attn_drop, nn.Dropout))  # fused attention does not call it
            and has_kernels(x, self.head_dim)
        )

    def __prepare_scriptable__(self) -> NoReturn:
        """torch.jit.script asks before it compiles; to answer with the original would leave it in the model."""
        raise RuntimeError("torch.jit.script cannot compile a patched model; hsta_kernels.unpatch(model) comes first")
