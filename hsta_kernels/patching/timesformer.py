"""TimeSformer (arXiv 2102.05095) of Hugging Face transformers: a layer in its place that copies no tokens.

The original gives each frame a copy of CLS, regroups the patches by copies for attention over space, and averages the
copies of CLS. Here all tokens stay where they are, patch-major with CLS first: attention over time leaves CLS out, and
attention over space takes the mean over frames itself. Residual additions are one pass with the norm that follows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation
from transformers.models.timesformer import modeling_timesformer as original

from hsta_kernels import ops
from hsta_kernels.models.plain import is_plain, is_plain_linear, is_plain_norm
from hsta_kernels.ops.fused_linear import add_layer_norm_linear, bias_gelu_linear
from hsta_kernels.patching.kernels import has_kernels


def patch(model: nn.Module) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, module in model.named_modules():
        if type(module) in (original.TimesformerLayer, TimesformerLayer):
            activation = module.intermediate.intermediate_act_fn
            if _is_gelu(activation):
                module.__class__, found[name] = TimesformerLayer, None
            else:
                kind = type(activation).__name__
                found[name] = f"hidden_act is {kind}; the kernels have the GELU by the error function"
    return found


def unpatch(model: nn.Module) -> None:
    kind: Any = original.TimesformerLayer
    for module in model.modules():
        if type(module) is TimesformerLayer:
            module.__class__ = kind


class TimesformerLayer(original.TimesformerLayer):
    """In place of the class of the same name: same parameters, arguments and results."""

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, ...]:
        head_dim = hidden_states.shape[-1] // self.config.num_attention_heads
        if output_attentions or not has_kernels(hidden_states, head_dim) or not self._can_fuse():
            return super().forward(hidden_states, output_attentions)
        residual, update = hidden_states, None
        if self.attention_type == "divided_space_time":
            num_frames = self.config.num_frames
            grid = (num_frames, (hidden_states.shape[1] - 1) // num_frames)
            update, residual = self._attend(
                self.temporal_layernorm, self.temporal_attention, update, residual, grid, axis="time", prefix="none"
            )
            update = F.linear(update, self.temporal_dense.weight, self.temporal_dense.bias)
            update[:, 0] = 0  # CLS takes no part, and nothing is added to it
            update, residual = self._attend(
                self.layernorm_before, self.attention, update, residual, grid, axis="space", prefix="frame_mean"
            )
        else:
            grid = (1, hidden_states.shape[1] - 1)
            update, residual = self._attend(
                self.layernorm_before, self.attention, update, residual, grid, axis="joint", prefix="all"
            )
        hidden, residual = _norm_linear(self.layernorm_after, self.intermediate.dense, update, residual)
        return (residual + _gelu_linear(hidden, self.intermediate.dense, self.output.dense),)

    def _attend(
        self,
        norm: nn.LayerNorm,
        attention: original.TimeSformerAttention,
        update: Tensor | None,
        residual: Tensor,
        grid: tuple[int, int],
        **who_sees_whom: Any,
    ) -> tuple[Tensor, Tensor]:
        """The next update of the residual stream, and the stream with the one before added."""
        inner = attention.attention
        qkv, residual = _norm_linear(norm, inner.qkv, update, residual, bias=inner.qkv.bias)
        qkv = qkv.unflatten(-1, (3, inner.num_heads, -1))
        out = ops.space_time_attention(qkv, grid, scale=inner.scale, token_order="patch_major", **who_sees_whom)
        return F.linear(out.flatten(2), attention.output.dense.weight, attention.output.dense.bias), residual

    def _can_fuse(self) -> bool:
        """Whether no module inside has to be called: nothing drops out, nothing is attached to one."""
        attentions, norms = [self.attention], [self.layernorm_before, self.layernorm_after]
        linears = [self.intermediate.dense, self.output.dense]
        if self.attention_type == "divided_space_time":
            attentions.append(self.temporal_attention)
            norms.append(self.temporal_layernorm)
            linears.append(self.temporal_dense)
        dropouts = [self.intermediate.dropout, self.output.dropout]
        for attention in attentions:
            dropouts += [attention.attention.attn_drop, attention.output.dropout]
            linears.append(attention.output.dense)
        return (
            all(is_plain(attention, original.TimeSformerAttention) for attention in attentions)
            and all(is_plain(a.attention, original.TimesformerSelfAttention) for a in attentions)
            and all(is_plain(a.output, original.TimesformerSelfOutput) for a in attentions)
            and is_plain(self.intermediate, original.TimesformerIntermediate)
            and is_plain(self.output, original.TimesformerOutput)
            and _is_gelu(self.intermediate.intermediate_act_fn)
            and all(is_plain_linear(a.attention.qkv, bias=a.attention.qkv.bias is not None) for a in attentions)
            and all(is_plain_linear(linear, bias=True) for linear in linears)
            and all(is_plain_norm(norm) for norm in norms)
            and all(is_plain(d, nn.Dropout) and not (d.training and d.p > 0) for d in dropouts)
            and (is_plain(self.drop_path, nn.Identity) or not self.drop_path.training)
        )


def _is_gelu(activation: nn.Module) -> bool:
    """The GELU by the error function, of PyTorch or of transformers."""
    if is_plain(activation, nn.GELU):
        return activation.approximate == "none"
    return is_plain(activation, GELUActivation)


def _norm_linear(
    norm: nn.LayerNorm, linear: nn.Linear, update: Tensor | None, residual: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """linear(norm(residual + update)) with `bias` for the layer's own, and the sum."""
    if update is None:
        return F.linear(norm(residual), linear.weight, bias), residual
    if torch.is_grad_enabled():  # the norm is not saved, but computed once more
        return add_layer_norm_linear(update, residual, norm.weight, norm.bias, linear.weight, bias, norm.eps)
    y, residual = ops.add_layer_norm(update, residual, norm.weight, norm.bias, norm.eps)
    return F.linear(y, linear.weight, bias), residual


def _gelu_linear(x: Tensor, before: nn.Linear, linear: nn.Linear) -> Tensor:
    """linear(gelu(x + bias of the layer before))."""
    if torch.is_grad_enabled():
        return bias_gelu_linear(x, before.bias, linear.weight, linear.bias)
    return F.linear(ops.bias_gelu(x, before.bias), linear.weight, linear.bias)
