"""Freezing a model for inference: weights laid out once as the processor's matrix library wants them."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsta_kernels import ops
from hsta_kernels.models import hsta, reference
from hsta_kernels.models.hsta import HSTA, tubelets
from hsta_kernels.models.plain import drop_rate, is_plain, is_plain_linear

_DTYPES = (torch.float32, torch.bfloat16)

# Modules of ours and of PyTorch's that do no more than call their children; hooks on them stay.
_CONTAINERS = (
    HSTA, hsta.Block, hsta.Stack, hsta.Layer, hsta.CrossModalAttention, hsta.Attention, hsta.MLP, hsta.PatchEmbed,
    nn.ModuleList, nn.Sequential,
)  # fmt: skip


def freeze(model: HSTA, dtype: torch.dtype = torch.float32) -> FrozenHSTA:
    """A copy of the model for inference only, faster, with the same call.

    Linear layers hold their weights packed for oneDNN, with bias and GELU in the product's epilogue, where PyTorch has
    it (processors); elsewhere they hold them in `dtype`. What is not an ordinary layer of the model (an adapter, a
    quantized or pruned layer, a module with hooks, another head) is copied as it is and called.

    The copy is a snapshot: later changes of the model's weights do not show in it. It drops nothing and stays in
    evaluation mode, also as a part of a module that is trained. It can be copied, pickled, moved, and its state dict
    saved and loaded; it cannot be trained, and ``save_pretrained`` is the model's.

    Args:
        model: a fused HSTA of any floating dtype, on the device it is to run on.
        dtype: float32, or bfloat16 for products as autocast makes them: matrix products and attention in bfloat16, the
            residual stream and layer norms in float32.

    Returns:
        A module in eval mode, called as ``frozen(video, special)``. Its logits are those of `model.eval()` in float32,
        under autocast if `dtype` is bfloat16, up to rounding.

    Raises:
        TypeError: `model` is not an ``hsta_kernels.HSTA``.
        ValueError: another dtype; a module of the model cannot be copied, and the message names it.
    """
    if not isinstance(model, HSTA):
        raise TypeError(f"model must be an hsta_kernels.HSTA, got {type(model).__name__}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:  # an older pruned or normed layer that has run
                raise ValueError(
                    f"model cannot be frozen: {name}.{attribute} was computed with gradients and cannot be copied; "
                    "call the model once under torch.no_grad(), or make the reparametrization permanent"
                )
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    frozen._apply(_to_float32)
    for module in frozen.modules():  # lest a part that is put in training mode by itself should drop again
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, reference.DropPath):
            module.rate = 0.0
    return FrozenHSTA(_frozen(frozen, dtype), dtype)  # type: ignore[arg-type]


class FrozenHSTA(nn.Module):
    """A model made by `freeze`."""

    def __init__(self, model: HSTA, dtype: torch.dtype):
        super().__init__()
        self.model, self.config, self.dtype = model, model.config, dtype
        self.eval()

    def train(self, mode: bool = True) -> FrozenHSTA:
        """Stays in evaluation mode, whatever `mode`."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, video: Tensor, special: Tensor) -> Tensor:
        """Logits (B, num_classes), float32; arguments and errors as those of `HSTA.forward`."""
        mixed = self.dtype == torch.bfloat16
        with torch.autocast(video.device.type, dtype=torch.bfloat16) if mixed else nullcontext():
            return self.model(video, special).float()


class PackedLinear(nn.Module):
    """``activation(x @ weight.T + bias)`` with the weight packed for oneDNN. Takes any dtype, returns the weight's."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, activation: str = "none"):
        super().__init__()
        self.activation = activation
        self._pack(weight.detach().to(dtype, copy=True), None if bias is None else bias.detach().to(dtype, copy=True))

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        # Plain attributes: an opaque tensor as a parameter could neither be saved nor moved.
        self.dtype, self.bias = weight.dtype, bias
        self.packed = weight.device.type == "cpu" and torch.backends.mkldnn.is_available() and weight.dtype in _DTYPES
        if self.packed and weight.dtype == torch.bfloat16:
            self.packed = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight

    def _unpacked(self) -> Tensor:
        return self.weight.to_dense() if self.packed else self.weight

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], "none")
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if self.activation == "gelu" else y

    # What copies, pickles, moves, saves or loads a module sees the weight unpacked.

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"weight": self._unpacked()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pack(self.weight, self.bias)

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        self._pack(fn(self._unpacked()), None if self.bias is None else fn(self.bias))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self._unpacked()
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        tensors = {"weight": self._unpacked()} | ({} if self.bias is None else {"bias": self.bias})
        for name, old in tensors.items():
            new = state_dict.get(prefix + name)
            if new is None:
                missing_keys.append(prefix + name)
            elif new.shape != old.shape:
                error_msgs.append(f"{prefix}{name} has shape {tuple(new.shape)}, expected {tuple(old.shape)}")
            else:
                tensors[name] = new.to(old, copy=True)
        self._pack(tensors["weight"], tensors.get("bias"))


def _to_float32(tensor: Tensor) -> Tensor:
    """An ordinary tensor in float32; quantized ones stay as they are."""
    ordinary = type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point()
    return tensor.float() if ordinary else tensor


def _frozen(module: Any, dtype: torch.dtype) -> nn.Module:
    """What takes the place of `module`: itself, changed in place, where it has no faster form."""
    if is_plain(module, nn.Linear):
        return _packed(module, dtype)
    if (
        is_plain(module, hsta.Attention)
        and is_plain_linear(module.qkv, bias=False)
        and drop_rate(module.attn_drop) == 0
    ):
        return _Attention(module, dtype)
    if is_plain(module, hsta.MLP) and drop_rate(module.drop) == 0 and is_plain(module.fc1, nn.Linear):
        return nn.Sequential(_packed(module.fc1, dtype, "gelu"), _frozen(module.fc2, dtype))
    if is_plain(module, hsta.PatchEmbed) and module.is_matrix_product():
        return _PatchEmbed(module.proj, dtype)
    if is_plain(module, reference.CrossAttention):
        for linear in (module.wq, module.wk, module.wv):  # their weights are the operator's arguments
            if is_plain(linear, nn.Linear):
                linear.to(dtype)
        module.proj = _frozen(module.proj, dtype)
    elif type(module) in _CONTAINERS:
        for name, child in module.named_children():
            module._modules[name] = _frozen(child, dtype)
    return module


def _packed(linear: Any, dtype: torch.dtype, activation: str = "none") -> PackedLinear:
    return PackedLinear(linear.weight, linear.bias, dtype, activation)


class _Attention(nn.Module):
    """Attention on packed projections."""

    def __init__(self, attn: Any, dtype: torch.dtype):
        super().__init__()
        self.num_heads = attn.num_heads
        self.qkv = PackedLinear(attn.qkv.weight, attn.qkv_bias(), dtype)
        self.proj = _frozen(attn.proj, dtype)
        self.proj_drop = _frozen(attn.proj_drop, dtype)

    def forward(self, x: Tensor, grid: tuple[int, int], axis: str) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        out = ops.space_time_attention(qkv, grid, axis, num_prefix_tokens=reference.NUM_PREFIX_TOKENS)
        return self.proj_drop(self.proj(out.flatten(2)))


class _PatchEmbed(nn.Module):
    def __init__(self, proj: nn.Conv3d, dtype: torch.dtype):
        super().__init__()
        self.size = proj.kernel_size
        self.proj = PackedLinear(proj.weight.flatten(1), proj.bias, dtype)

    def forward(self, frames: Tensor) -> Tensor:
        return self.proj(tubelets(frames, self.size))
