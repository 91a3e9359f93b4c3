"""Freezing a model for inference: weights laid out once as the processor's matrix library wants them."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsta_kernels.models import reference
from hsta_kernels.models.hsta import HSTA, tubelets

_DTYPES = (torch.float32, torch.bfloat16)


def freeze(model: HSTA, dtype: torch.dtype = torch.float32) -> FrozenHSTA:
    """A copy of the model for inference only, faster, with the same call.

    Linear layers hold their weights packed for oneDNN, with bias and GELU in the product's epilogue, where PyTorch has
    it (processors); elsewhere they hold them in `dtype`. Keep the model to train it or to save it: the copy can do
    neither.

    Args:
        model: a fused HSTA, on the device it is to run on.
        dtype: float32, or bfloat16 for products as autocast makes them: matrix products and attention in bfloat16, the
            residual stream and layer norms in float32.

    Returns:
        A module in eval mode, called as ``frozen(video, special)``. Its logits are those of `model.eval()`, under
        autocast if `dtype` is bfloat16, up to rounding.

    Raises:
        TypeError: `model` is not an ``hsta_kernels.HSTA``.
        ValueError: another dtype.
    """
    if not isinstance(model, HSTA):
        raise TypeError(f"model must be an hsta_kernels.HSTA, got {type(model).__name__}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    frozen.patch_embed = nn.ModuleList(_PatchEmbed(embed.proj, dtype) for embed in frozen.patch_embed)
    for block in frozen.blocks:
        for layers in block.blocks:
            for layer in layers:
                for name in ("attn_time", "attn") if layer.has_time else ("attn",):
                    setattr(layer, name, _Attention(getattr(layer, name), dtype))
                layer.mlp = _mlp(layer.mlp, dtype)
        for sequence in (*block.projs, *block.revert_projs):
            sequence[2] = _packed(sequence[2], dtype)
        for fusion in block.fusion:
            fusion.attn.proj = _packed(fusion.attn.proj, dtype)
            for name in ("wq", "wk", "wv"):
                getattr(fusion.attn, name).to(dtype)
    frozen.head = _packed(frozen.head, dtype)  # type: ignore[assignment]
    return FrozenHSTA(frozen, dtype)


class FrozenHSTA(nn.Module):
    """A model made by `freeze`."""

    def __init__(self, model: HSTA, dtype: torch.dtype):
        super().__init__()
        self.model, self.config, self.dtype = model, model.config, dtype

    @torch.no_grad()
    def forward(self, video: Tensor, special: Tensor) -> Tensor:
        """Logits (B, num_classes), float32; arguments and errors as those of `HSTA.forward`."""
        with torch.autocast(video.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self.model(video, special).float()


class PackedLinear(nn.Module):
    """``activation(x @ weight.T + bias)`` with the weight packed for oneDNN. Takes any dtype, returns the weight's."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, activation: str = "none"):
        super().__init__()
        self.activation, self.dtype = activation, dtype
        weight = weight.detach().to(dtype)
        self.packed = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        if self.packed and dtype == torch.bfloat16:
            self.packed = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        # Plain attributes: an opaque tensor can neither be saved nor moved.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight
        self.bias = None if bias is None else bias.detach().to(dtype, copy=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], "none")
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if self.activation == "gelu" else y


def _packed(linear: nn.Linear, dtype: torch.dtype, activation: str = "none") -> PackedLinear:
    return PackedLinear(linear.weight, linear.bias, dtype, activation)


def _mlp(mlp: reference.MLP, dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(_packed(mlp.fc1, dtype, "gelu"), _packed(mlp.fc2, dtype))


class _Attention(nn.Module):
    """What the fused model asks of an attention layer, on packed projections."""

    def __init__(self, attn: reference.Attention, dtype: torch.dtype):
        super().__init__()
        self.num_heads = attn.num_heads
        self.attn_drop, self.proj_drop = attn.attn_drop, attn.proj_drop
        self.qkv = PackedLinear(attn.qkv.weight, attn.qkv_bias(), dtype)
        self.proj = _packed(attn.proj, dtype)

    def project(self, x: Tensor) -> Tensor:
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1))


class _PatchEmbed(nn.Module):
    def __init__(self, proj: nn.Conv3d, dtype: torch.dtype):
        super().__init__()
        self.size = proj.kernel_size
        self.proj = PackedLinear(proj.weight.flatten(1), proj.bias, dtype)

    def forward(self, frames: Tensor) -> Tensor:
        return self.proj(tubelets(frames, self.size))
