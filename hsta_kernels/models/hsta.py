"""The HSTA model on the fused operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsta_kernels import ops

from . import reference
from .recompute import add_norm_linear, bias_gelu_linear

# Patches that the classifier reads of a branch, beside CLS.
_READ_BY_HEAD = {"cls": slice(0, 0), "cls_last": slice(-1, None), "mean": slice(None)}


class PatchEmbed(reference.PatchEmbed):
    """Kernel and stride of the convolution are equal, so it is a reshape and a matrix product."""

    def forward(self, frames: Tensor) -> Tensor:
        return F.linear(tubelets(frames, self.proj.kernel_size), self.proj.weight.flatten(1), self.proj.bias)


def tubelets(frames: Tensor, size: tuple[int, ...]) -> Tensor:
    """Pixels of each tubelet: (B, 3, T, H, W) -> (B, T' * N, 3 * size), time-major; incomplete borders are dropped."""
    times, height, width = (extent // step for extent, step in zip(frames.shape[2:], size, strict=True))
    tubelet, patch, _ = size
    pixels = frames[:, :, :, : height * patch, : width * patch]
    pixels = pixels.unflatten(4, (width, patch)).unflatten(3, (height, patch)).unflatten(2, (times, tubelet))
    return pixels.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


class HSTA(reference.HSTA):
    """Hierarchical space-time attention for micro-expression recognition (arXiv 2405.03202).

    The parameters, their names and the results are those of ``hsta_kernels.reference.HSTA``; only the way
    through them differs: attention reads the packed projection in place, each residual addition is one pass
    with the layer norm that follows it, CSTA never computes keys and values of the patches, and the last
    norms are applied only to what the classifier reads. In divided attention CLS sees everything, over time
    and over space, as in Motionformer and Frozen-in-Time (in TimeSformer it takes no part in attention over
    time).

    The attention operators have no dropout of probabilities: in training with ``attn_drop_rate > 0``
    attention goes through the reference's explicit path, which is slower and needs more memory.

    Args:
        config: an ``HSTAConfig``; or give its fields as keywords.
    """

    patch_embed_class = PatchEmbed

    def forward(self, video: Tensor, special: Tensor) -> Tensor:
        """Logits (B, num_classes) of clips.

        Args:
            video: (B, 3, num_frames, image_size, image_size), floating point.
            special: (B, 3, 2, image_size, image_size): the onset and apex frames, or two optical-flow images.

        Raises:
            ValueError, TypeError: shapes or types other than these; the message names the input.
        """
        self.check_inputs(video, special)
        xs = [self.embed(0, special), self.embed(1, video)]
        for i, block in enumerate(self.blocks):
            classes, patches = _hsta_block(block, xs)
            if i == len(self.blocks) - 1:  # the rest has no reader
                rows = _READ_BY_HEAD[self.config.head]
                patches = [x[:, rows] for x in patches]
            xs = [_join(cls, x) for cls, x in zip(classes, patches, strict=True)]
        return self.classify([norm(x) for norm, x in zip(self.norm, xs, strict=True)])

    def embed(self, branch: int, frames: Tensor) -> Tensor:
        """CLS and patch tokens of a branch with their positions: (B, 1 + T' * N, C)."""
        position = self.get_buffer(f"position_{branch}")
        cls = (self.cls_token[branch][0] + position[:1]).expand(frames.shape[0], -1)
        return self.pos_drop(_join(cls, self.patch_embed[branch](frames) + position[1:]))


def _hsta_block(block: reference.Block, xs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """New CLS tokens (B, C) and patches (B, N, C) of both branches."""
    xs = [_usta(layers, x) for layers, x in zip(block.blocks, xs, strict=True)]
    # One split, whose backward pass is one concatenation; that of a slice is a tensor of zeros and a copy.
    classes, patches = zip(*(x.split((1, x.shape[1] - 1), dim=1) for x in xs), strict=True)
    return [_csta(block, i, classes[i].squeeze(1), patches[1 - i]) for i in (0, 1)], list(patches)


@dataclass(frozen=True)
class _AttentionStep:
    """A sub-layer of USTA behind its norm."""

    attn: reference.Attention
    grid: tuple[int, int]
    axis: str

    def __call__(self, x: Tensor) -> Tensor:
        return self.attend(self.attn.project(x))

    def after_norm(self, x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        qkv, x = add_norm_linear(x, residual, norm, self.attn.qkv.weight, self.attn.qkv_bias())
        return self.attend(qkv.unflatten(-1, (3, self.attn.num_heads, -1))), x

    def attend(self, qkv: Tensor) -> Tensor:
        if _drops(self.attn.attn_drop):
            out = self.attn.attend(qkv, self.grid, self.axis)
        else:
            out = ops.space_time_attention(qkv, self.grid, self.axis, num_prefix_tokens=reference.NUM_PREFIX_TOKENS)
        return self.attn.proj_drop(self.attn.proj(out.flatten(2)))


@dataclass(frozen=True)
class _MLPStep:
    mlp: reference.MLP

    def __call__(self, x: Tensor) -> Tensor:
        return self.mlp(x)

    def after_norm(self, x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        fc1, fc2, drop = self.mlp.fc1, self.mlp.fc2, self.mlp.drop
        hidden, x = add_norm_linear(x, residual, norm, fc1.weight, None)
        rate = drop.p if _drops(drop) else 0.0
        return drop(bias_gelu_linear(hidden, fc1.bias, fc2.weight, fc2.bias, rate)), x


def _steps(layer: reference.Layer) -> Iterator[tuple[nn.LayerNorm, _AttentionStep | _MLPStep]]:
    if layer.has_time:
        yield layer.norm_time, _AttentionStep(layer.attn_time, layer.grid, "time")
    yield layer.norm1, _AttentionStep(layer.attn, layer.grid, layer.axis)
    yield layer.norm2, _MLPStep(layer.mlp)


def _usta(layers: Iterable[reference.Layer], x: Tensor) -> Tensor:
    """The layers of one branch. A sub-layer's output is added by the norm of the next one.

    With gradients, a sub-layer recomputes in the backward pass what is cheap to recompute. Without them, projections
    take their biases themselves: that costs nothing, and it is what a frozen model packs.
    """
    residual: Tensor | None = None
    for layer in layers:
        for norm, step in _steps(layer):
            if residual is None:
                residual = step(norm(x))
            elif torch.is_grad_enabled():
                residual, x = step.after_norm(x, residual, norm)
            else:
                y, x = ops.add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps)
                residual = step(y)
            residual = layer.drop_path(residual)
    return x if residual is None else x + residual


def _csta(block: reference.Block, i: int, cls: Tensor, patches: Tensor) -> Tensor:
    """CLS (B, C_i) of branch i after it has read the patches (B, N, C_j) of the other branch."""
    cls = block.projs[i](cls)
    fusion = block.fusion[i]
    attn, norm = fusion.attn, fusion.norm1
    if _drops(attn.attn_drop):
        return block.revert_projs[i](fusion(cls, patches))
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
    )
    return block.revert_projs[i](cls + fusion.drop_path(attn.proj_drop(attn.proj(out))))


def _drops(dropout: nn.Dropout) -> bool:
    return dropout.training and dropout.p > 0


def _join(cls: Tensor, patches: Tensor) -> Tensor:
    return torch.cat([cls[:, None], patches], dim=1)
