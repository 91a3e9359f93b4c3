"""The HSTA model on the fused operators."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsta_kernels import ops
from hsta_kernels.ops.fused_linear import add_layer_norm_linear, bias_gelu_linear, in_pieces

from . import reference
from .config import SPECIAL, VIDEO
from .former_names import former_names
from .plain import drop_rate, is_plain, is_plain_linear, is_plain_norm


class PatchEmbed(reference.PatchEmbed):
    """Kernel and stride of the convolution are equal, so it is a reshape and a matrix product."""

    def is_matrix_product(self) -> bool:
        proj = self.proj
        return (
            is_plain(proj, nn.Conv3d)
            and proj.kernel_size == proj.stride
            and proj.padding == (0, 0, 0)
            and proj.dilation == (1, 1, 1)
            and proj.groups == 1
        )

    def forward(self, frames: Tensor) -> Tensor:
        if not self.is_matrix_product():
            return super().forward(frames)
        return F.linear(tubelets(frames, self.proj.kernel_size), self.proj.weight.flatten(1), self.proj.bias)


def tubelets(frames: Tensor, size: tuple[int, ...]) -> Tensor:
    """Pixels of each tubelet: (B, 3, T, H, W) -> (B, T' * N, 3 * size), time-major; incomplete borders are dropped."""
    times, height, width = (extent // step for extent, step in zip(frames.shape[2:], size, strict=True))
    tubelet, patch, _ = size
    pixels = frames[:, :, :, : height * patch, : width * patch]
    pixels = pixels.unflatten(4, (width, patch)).unflatten(3, (height, patch)).unflatten(2, (times, tubelet))
    return pixels.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


class Attention(reference.Attention):
    """Attention reads the packed projection in place, and drops probabilities as it goes."""

    def input_projection(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias of the first projection; None if that has to be called."""
        return (self.qkv.weight, self.qkv_bias()) if is_plain_linear(self.qkv, bias=False) else None

    def after_input_projection(self, qkv: Tensor, grid: tuple[int, int], axis: str) -> Tensor:
        return self.output(qkv.unflatten(-1, (3, self.num_heads, -1)), grid, axis)

    def attend(self, qkv: Tensor, grid: tuple[int, int], axis: str) -> Tensor:
        rate = drop_rate(self.attn_drop)
        if rate is None:
            return super().attend(qkv, grid, axis)
        return ops.space_time_attention(
            qkv, grid, axis, num_prefix_tokens=reference.NUM_PREFIX_TOKENS, dropout_rate=rate
        )


class MLP(reference.MLP):
    """Bias, GELU and dropout between the two projections are one pass."""

    def input_projection(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight of the first projection, whose bias is added later; None if the projection has to be called."""
        return (self.fc1.weight, None) if is_plain_linear(self.fc1, bias=True) else None

    def after_input_projection(self, hidden: Tensor) -> Tensor:
        fc1, fc2, rate = self.fc1, self.fc2, drop_rate(self.drop)
        if rate is not None and is_plain_linear(fc2, bias=True):
            out = bias_gelu_linear(hidden, fc1.bias, fc2.weight, fc2.bias, rate)
        else:
            hidden = ops.bias_gelu(hidden, fc1.bias, rate or 0.0)
            out = fc2(hidden if rate is not None else self.drop(hidden))
        return self.drop(out)

    def forward(self, x: Tensor) -> Tensor:
        projection = self.input_projection()
        if projection is None:
            return super().forward(x)
        if not (self.training or torch.is_grad_enabled()):
            # There is nothing to save, and PyTorch's product adds its bias itself.
            if not is_plain_linear(self.fc2, bias=True) or drop_rate(self.drop) is None:
                return super().forward(x)
            return in_pieces(super().forward, x.flatten(0, -2), self.fc1.out_features).view(x.shape)
        # In training also without gradients: a checkpoint's first pass drops and rounds as its second one.
        return self.after_input_projection(F.linear(x, *projection))


class Layer(reference.Layer):
    """One USTA layer, prenorm as Mamba's and FlashAttention's blocks are: a sub-layer's output is added by the norm
    that follows it, in one pass, be that in this layer or in the next one.

    Called as ``hidden_states, residual = layer(hidden_states, residual)``, each (B, L, C): `residual` is the residual
    stream and `hidden_states` what is yet to be added to it. The first layer is given the stream alone, as
    `hidden_states`. The tokens after a layer are ``hidden_states + residual``.
    """

    attention_class, mlp_class = Attention, MLP

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = hidden_states, residual
        if self.has_time:
            x = self._sublayer(self.norm_time, self.attn_time, *x, self.grid, "time")
        x = self._sublayer(self.norm1, self.attn, *x, self.grid, self.axis)
        return self._sublayer(self.norm2, self.mlp, *x)

    def _sublayer(
        self, norm: nn.LayerNorm, sublayer: Any, hidden_states: Tensor, residual: Tensor | None, *arguments: Any
    ) -> tuple[Tensor, Tensor]:
        if residual is None or not is_plain_norm(norm):
            residual = hidden_states if residual is None else residual + hidden_states
            out = sublayer(norm(residual), *arguments)
        elif projection := self._fused_projection(sublayer):
            projected, residual = add_layer_norm_linear(
                hidden_states, residual, norm.weight, norm.bias, *projection, norm.eps
            )
            out = sublayer.after_input_projection(projected, *arguments)
        else:
            y, residual = ops.add_layer_norm(hidden_states, residual, norm.weight, norm.bias, norm.eps)
            out = sublayer(y, *arguments)
        return self.drop_path(out), residual

    @staticmethod
    def _fused_projection(sublayer: Any) -> tuple[Tensor, Tensor | None] | None:
        """The projection to fuse with the norm before it, which saves memory where there are gradients."""
        if torch.is_grad_enabled() and type(sublayer) in (Attention, MLP) and is_plain(sublayer, type(sublayer)):
            return sublayer.input_projection()
        return None


class Stack(nn.Sequential):
    """The layers of one branch: (B, L, C) -> (B, L, C)."""

    def forward(self, x: Tensor) -> Tensor:
        hidden_states, residual = x, None
        for layer in self:
            hidden_states, residual = layer(hidden_states, residual)
        return hidden_states if residual is None else residual + hidden_states


class CrossModalAttention(reference.CrossModalAttention):
    """Keys and values of the patches are never computed."""

    def forward(self, cls: Tensor, patches: Tensor) -> Tensor:
        norm, attn = self.norm1, self.attn
        rate = drop_rate(attn.attn_drop)
        if rate is None or not (
            is_plain_norm(norm)
            and is_plain(attn, reference.CrossAttention)
            and all(is_plain_linear(linear, bias=True) for linear in (attn.wq, attn.wk, attn.wv))
        ):
            return super().forward(cls, patches)
        out = ops.cross_modal_attention(
            cls,
            patches,
            norm.weight,
            norm.bias,
            attn.wq.weight,
            attn.wq.bias,
            attn.wk.weight,
            attn.wk.bias,
            attn.wv.weight,
            attn.wv.bias,
            attn.num_heads,
            norm.eps,
            dropout_rate=rate,
        )
        return cls + self.drop_path(attn.proj_drop(attn.proj(out)))


class Block(reference.Block):
    """One HSTA block on fused layers."""

    layer_class, stack_class, cross_modal_attention_class = Layer, Stack, CrossModalAttention

    def forward(self, video: Tensor, special: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + T' * N, C) of the video and of the special frames, after the block."""
        xs = [self.blocks[SPECIAL](special), self.blocks[VIDEO](video)]
        # One split, whose backward pass is one concatenation; that of a slice is a tensor of zeros and a copy.
        classes, patches = zip(*(x.split((1, x.shape[1] - 1), dim=1) for x in xs), strict=True)
        attended = [self.fusion[i](self.projs[i](classes[i].squeeze(1)), patches[1 - i]) for i in (0, 1)]
        xs = [_join(revert(cls), x) for revert, cls, x in zip(self.revert_projs, attended, patches, strict=True)]
        return xs[VIDEO], xs[SPECIAL]


class HSTA(reference.HSTA):
    """Hierarchical space-time attention for micro-expression recognition (arXiv 2405.03202).

    The parameters, their names and the results are those of ``hsta_kernels.reference.HSTA``; only the way
    through them differs: attention reads the packed projection in place, each residual addition is one pass
    with the layer norm that follows it, crossmodal attention never computes keys and values, and the last
    norms are applied only to what the classifier reads. In divided attention CLS sees everything, over time
    and over space, as in Motionformer and Frozen-in-Time (in TimeSformer it takes no part in attention over
    time).

    Blocks and layers are called as modules. Within a layer the modules at the leaves are passed by, their weights
    read, only where they are plain: an ``nn.Linear``, ``nn.LayerNorm`` or ``nn.Dropout`` with no hooks, no
    parametrization, no wrapper and ordinary parameters. Anything else, such as an adapter or a quantized layer in
    its place, is called, and what lies around it stays fused.

    Args:
        config: an ``HSTAConfig``; or give its fields as keywords.
    """

    patch_embed_class, block_class = PatchEmbed, Block

    def embed(self, branch: int, frames: Tensor) -> Tensor:
        """CLS and patch tokens of a branch with their positions: (B, 1 + T' * N, C)."""
        position = self.get_buffer(f"position_{branch}")
        cls = (self.cls_token[branch][0] + position[:1]).expand(frames.shape[0], -1)
        return self.pos_drop(_join(cls, self.patch_embed[branch](frames) + position[1:]))

    def normalize(self, norm: nn.Module, x: Tensor) -> Tensor:
        """The last norm, of no more rows than `classify` reads."""
        if is_plain_norm(norm):
            if self.config.head == "cls":
                x = x[:, :1]
            elif self.config.head == "cls_last":
                x = x[:, :: x.shape[1] - 1]
        return norm(x)


def _join(cls: Tensor, patches: Tensor) -> Tensor:
    return torch.cat([cls[:, None], patches], dim=1)


__getattr__ = former_names(__name__, {"Fusion": CrossModalAttention})
