"""Freezing a model for inference: weights laid out once as the fastest matrix library of this machine wants them."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hsta_kernels import ops
from hsta_kernels.fastest import Fastest
from hsta_kernels.models import hsta, reference
from hsta_kernels.models.hsta import HSTA, tubelets
from hsta_kernels.models.plain import drop_rate, is_plain, is_plain_linear
from hsta_kernels.products import KEPT, PRODUCTS, QUANTIZED, Linear

_DTYPES = (torch.float32, torch.bfloat16)

# Modules of ours and of PyTorch's that do no more than call their children; hooks on them stay.
_CONTAINERS = (
    HSTA, hsta.Block, hsta.Stack, hsta.Layer, hsta.CrossModalAttention, hsta.Attention, hsta.MLP, hsta.PatchEmbed,
    nn.ModuleList, nn.Sequential,
)  # fmt: skip


def freeze(
    model: HSTA,
    dtype: torch.dtype = torch.float32,
    *,
    batch_size: int = 1,
    measure: bool = True,
    int8: bool = False,
    weights: torch.dtype | None = None,
) -> FrozenHSTA:
    """A copy of the model for inference only, faster, with the same call.

    On a processor every linear layer takes the product that is fastest there: ``F.linear``, oneDNN's of a packed
    weight, with GELU in its epilogue or after it, or MKL's of a packed weight, which keeps the plain weight too.
    Elsewhere layers hold their weights in `dtype` and call ``F.linear``. What is not an ordinary layer of the model (an
    adapter, a quantized or pruned layer, a module with hooks, another head) is copied as it is and called.

    The products are measured here, for each shape of the model and in the process's number of threads: a second or two
    for the base model. What was found is kept in the user's cache folder (``HSTA_CACHE_DIR``) for the same processor,
    version of PyTorch and number of threads; a cache that cannot be read or written is passed by.

    Products differ in rounding. The logits of a frozen model, of its copies and of its pickles have the same bits from
    run to run; freezing again on another machine, or on this one without its cache, may choose other products and give
    other last bits, with `int8` more than these, unless `measure` is False.

    The copy is a snapshot: later changes of the model's weights do not show in it. It drops nothing and stays in
    evaluation mode, also as a part of a module that is trained. It can be copied, pickled, moved, and its state dict
    saved and loaded; it cannot be trained, and ``save_pretrained`` is the model's.

    Args:
        model: a fused HSTA of any floating dtype, on the device it is to run on.
        dtype: float32, or bfloat16 for products as autocast makes them: matrix products and attention in bfloat16, the
            residual stream and layer norms in float32.
        batch_size: clips a call for which the products are chosen. Any other number is right too, and may be slower.
        measure: False measures nothing and takes oneDNN's packed product, with the epilogue, where PyTorch has it.
        int8: weights of the linear layers and the rows that they multiply are rounded to integers of 8 bits, each
            output's weights and each row with a scale of its own: a quarter of the memory, large products several
            times as fast with VNNI or AMX and less elsewhere, and inexact by about 1 % of a layer's output (without
            VNNI 2 %). Try it on your own clips. Nothing is measured then. The state dict has the rounded weights in
            float32; a copy that is moved off the processor multiplies those.
        weights: ``torch.bfloat16`` or ``torch.int8`` for less memory, on any device: the linear layers keep their
            weights so, int8 with a scale for each output, and widen them to float32 at each call, one layer at a time.
            A half or a quarter of the memory, inexact by about 0.2 or 0.6 % of a layer's output, and slower. Nothing is
            measured then. The state dict has the rounded weights in float32.

    Returns:
        A module in eval mode, called as ``frozen(video, special)``. Its logits are those of `model.eval()` in float32,
        under autocast if `dtype` is bfloat16, up to rounding.

    Raises:
        TypeError: `model` is not an ``hsta_kernels.HSTA``.
        ValueError: another dtype; a `batch_size` that is no positive integer; `int8` with a dtype other than float32 or
            for a model that is not on a processor with oneDNN; other `weights`, or with `int8` or a dtype other than
            float32; a module of the model cannot be copied, and the message names it.
    """
    if not isinstance(model, HSTA):
        raise TypeError(f"model must be an hsta_kernels.HSTA, got {type(model).__name__}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
    if int8 and dtype != torch.float32:
        raise ValueError(f"int8 goes with dtype torch.float32, got {dtype}")
    if weights is not None and str(weights) not in KEPT:
        raise ValueError(f"weights must be torch.bfloat16 or torch.int8, got {weights}")
    if weights is not None and (int8 or dtype != torch.float32):
        with_what = "int8=True, which has integers of its own" if int8 else f"dtype {dtype}"
        raise ValueError(f"weights={weights} goes with products in float32, not with {with_what}")
    where = next(model.parameters()).device
    if int8 and not QUANTIZED["int8"].runs(torch.empty(1, device=where), "none"):
        raise ValueError(f"int8 needs a model on a processor, and PyTorch with oneDNN there; the model is on {where}")
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
    frozen = _frozen(frozen, dtype, batch_size)  # type: ignore[assignment]
    linears = [module for module in frozen.modules() if isinstance(module, FrozenLinear)]
    if int8 or weights is not None:
        for linear in linears:
            linear.take("int8" if int8 else str(weights))
    elif measure:
        fastest = Fastest()
        for linear in linears:
            linear.take_fastest(fastest)
    return FrozenHSTA(frozen, dtype)


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
        kind, mixed = video.device.type, self.dtype == torch.bfloat16
        known = torch.amp.is_autocast_available(kind)
        # Also where there is nothing to cast: an autocast around the call would reach some products and not others.
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=mixed) if known else nullcontext():
            return self.model(video, special).float()


class FrozenLinear(nn.Module):
    """``activation(x @ weight.T + bias)`` by one of `PRODUCTS`, `QUANTIZED` or `KEPT`.

    Takes any dtype, returns the weight's. `rows` is how many it is to be fast for.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int, activation: str = "none"):
        super().__init__()
        self.activation, self.rows, self.choice = activation, rows, next(iter(PRODUCTS))
        self._pack(weight.detach().to(dtype, copy=True), None if bias is None else bias.detach().to(dtype, copy=True))

    def take_fastest(self, fastest: Fastest) -> None:
        weight = self._unpacked()
        if weight.device.type == "cpu":
            self.take(fastest(weight, self.bias, self.activation, self.rows))

    def take(self, choice: str) -> None:
        self.choice = choice
        self._pack(self._unpacked(), self.bias)

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        # Plain attributes: an opaque tensor as a parameter could neither be saved nor moved.
        self.dtype, self.bias = weight.dtype, bias
        chosen = (PRODUCTS | QUANTIZED | KEPT)[self.choice]  # it need not run where the layer is moved or unpickled
        product = chosen if chosen.runs(weight, self.activation) else Linear
        self.product = product(weight, bias, self.activation, self.rows)

    def _unpacked(self) -> Tensor:
        return self.product.unpacked()

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x.to(self.dtype))

    # What copies, pickles, moves, saves or loads a module sees the weight unpacked.

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"product": self._unpacked()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pack(state["product"], self.bias)

    def _apply(self, fn: Any, recurse: bool = True) -> FrozenLinear:
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


def _frozen(module: Any, dtype: torch.dtype, rows: int) -> nn.Module:
    """What takes the place of `module`: itself, changed in place, where it has no faster form.

    `rows` is how many a linear layer there multiplies in a call: clips, and in a layer of a branch their tokens.
    """
    if is_plain(module, nn.Linear):
        return _linear(module, dtype, rows)
    if (
        is_plain(module, hsta.Attention)
        and is_plain_linear(module.qkv, bias=False)
        and drop_rate(module.attn_drop) == 0
    ):
        return _Attention(module, dtype, rows)
    if is_plain(module, hsta.MLP) and drop_rate(module.drop) == 0 and is_plain(module.fc1, nn.Linear):
        return nn.Sequential(_linear(module.fc1, dtype, rows, "gelu"), _frozen(module.fc2, dtype, rows))
    if is_plain(module, hsta.PatchEmbed) and module.is_matrix_product():
        return _PatchEmbed(module.proj, dtype, rows)
    if is_plain(module, reference.CrossAttention):
        for linear in (module.wq, module.wk, module.wv):  # their weights are the operator's arguments
            if is_plain(linear, nn.Linear):
                linear.to(dtype)
        module.proj = _frozen(module.proj, dtype, rows)
    elif type(module) in _CONTAINERS:
        if type(module) is hsta.Layer:
            rows *= reference.NUM_PREFIX_TOKENS + math.prod(module.grid)
        elif type(module) is HSTA and type(module.patch_embed) is nn.ModuleList:
            for branch, grid in enumerate(module.config.grids):
                module.patch_embed[branch] = _frozen(module.patch_embed[branch], dtype, rows * math.prod(grid))
        for name, child in module.named_children():
            module._modules[name] = _frozen(child, dtype, rows)
    return module


def _linear(linear: Any, dtype: torch.dtype, rows: int, activation: str = "none") -> FrozenLinear:
    return FrozenLinear(linear.weight, linear.bias, dtype, rows, activation)


class _Attention(nn.Module):
    """Attention on frozen projections."""

    def __init__(self, attn: Any, dtype: torch.dtype, rows: int):
        super().__init__()
        self.num_heads = attn.num_heads
        self.qkv = FrozenLinear(attn.qkv.weight, attn.qkv_bias(), dtype, rows)
        self.proj = _frozen(attn.proj, dtype, rows)
        self.proj_drop = _frozen(attn.proj_drop, dtype, rows)

    def forward(self, x: Tensor, grid: tuple[int, int], axis: str) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        out = ops.space_time_attention(qkv, grid, axis, num_prefix_tokens=reference.NUM_PREFIX_TOKENS)
        return self.proj_drop(self.proj(out.flatten(2)))


class _PatchEmbed(nn.Module):
    def __init__(self, proj: nn.Conv3d, dtype: torch.dtype, rows: int):
        super().__init__()
        self.size = proj.kernel_size
        self.proj = FrozenLinear(proj.weight.flatten(1), proj.bias, dtype, rows)

    def forward(self, frames: Tensor) -> Tensor:
        return self.proj(tubelets(frames, self.size))
