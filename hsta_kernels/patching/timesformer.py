"""TimeSformer (arXiv 2102.05095) of Hugging Face transformers: a layer in its place that copies no tokens.

The original gives each frame a copy of CLS, regroups the patches by copies for attention over space, and averages the
copies of CLS. Here all tokens stay where they are, patch-major with CLS first: attention over time leaves CLS out, and
attention over space takes the mean over frames itself. Residual additions are one pass with the norm that follows.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.timesformer import modeling_timesformer as original

from hsta_kernels import ops
from hsta_kernels.models.plain import is_plain, is_plain_linear, is_plain_norm
from hsta_kernels.patching.fused import can_fuse_mlp, mlp, norm_linear, not_gelu
from hsta_kernels.patching.kernels import has_kernels


def patch(model: nn.Module) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, module in model.named_modules():
        if type(module) in (original.TimesformerLayer, TimesformerLayer):
            found[name] = not_gelu(module.intermediate.intermediate_act_fn)
            if found[name] is None:
                module.__class__ = TimesformerLayer
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
            heads, residual = self._attend(
                self.temporal_layernorm, self.temporal_attention, update, residual, grid, axis="time", prefix="none"
            )
            update = _two_linears(heads, self.temporal_attention.output.dense, self.temporal_dense)
            update[:, 0] = 0  # CLS takes no part, and nothing is added to it
            heads, residual = self._attend(
                self.layernorm_before, self.attention, update, residual, grid, axis="space", prefix="frame_mean"
            )
        else:
            grid = (1, hidden_states.shape[1] - 1)
            heads, residual = self._attend(
                self.layernorm_before, self.attention, update, residual, grid, axis="joint", prefix="all"
            )
        update = F.linear(heads, self.attention.output.dense.weight, self.attention.output.dense.bias)
        before, activation = self.intermediate.dense, self.intermediate.intermediate_act_fn
        return (mlp(self.layernorm_after, before, activation, self.output.dense, update, residual),)

    def _attend(
        self,
        norm: nn.LayerNorm,
        attention: original.TimeSformerAttention,
        update: Tensor | None,
        residual: Tensor,
        grid: tuple[int, int],
        **who_sees_whom: Any,
    ) -> tuple[Tensor, Tensor]:
        """The heads' results, (B, L, C), and the residual stream with the update before added."""
        inner = attention.attention
        qkv, residual = norm_linear(norm, inner.qkv, update, residual, bias=inner.qkv.bias)
        qkv = qkv.unflatten(-1, (3, inner.num_heads, -1))
        out = ops.space_time_attention(qkv, grid, scale=inner.scale, token_order="patch_major", **who_sees_whom)
        return out.flatten(2), residual

    def _can_fuse(self) -> bool:
        """Whether no module inside has to be called: nothing drops out, nothing is attached to one."""
        attentions, norms, linears = [self.attention], [self.layernorm_before], []
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
            and can_fuse_mlp(
                self.layernorm_after, self.intermediate.dense, self.intermediate.intermediate_act_fn, self.output.dense
            )
            and all(is_plain_linear(a.attention.qkv, bias=a.attention.qkv.bias is not None) for a in attentions)
            and all(is_plain_linear(linear, bias=True) for linear in linears)
            and all(is_plain_norm(norm) for norm in norms)
            and all(is_plain(d, nn.Dropout) and not (d.training and d.p > 0) for d in dropouts)
            and (is_plain(self.drop_path, nn.Identity) or not self.drop_path.training)
        )


def _two_linears(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """second(first(x)), in one product where x has more rows than they have columns: their product is then the smaller
    one, in both passes, and nothing between them is saved."""
    if x.shape[:-1].numel() <= first.in_features:
        return F.linear(F.linear(x, first.weight, first.bias), second.weight, second.bias)
    return F.linear(x, second.weight @ first.weight, F.linear(first.bias, second.weight, second.bias))
