"""One example call of every operator, and of the two fused linear layers, as functions of tensors alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hsta_kernels.ops import add_layer_norm, bias_gelu, cross_modal_attention, space_time_attention
from hsta_kernels.ops.fused_linear import add_layer_norm_linear, bias_gelu_linear

WIDTH, HEADS = 32, 2
VECTOR, MATRIX = (WIDTH,), (WIDTH, WIDTH)
QKV = (3, 13, 3, HEADS, WIDTH // HEADS)  # 1 + 3 * 4 tokens
ROWS = (8, 9, WIDTH)
SEED = torch.tensor([77])


# name -> function of tensors, and their shapes by name
CASES: dict[str, tuple[Callable, dict[str, tuple[int, ...]]]] = {
    **{
        f"space_time_attention_{axis}": (
            lambda qkv, axis=axis: space_time_attention(qkv, (3, 4), axis),
            {"qkv": QKV},
        )
        for axis in ("time", "space", "joint")
    },
    "cross_modal_attention": (
        lambda *tensors: cross_modal_attention(*tensors, HEADS),
        {"query_token": (8, WIDTH), "tokens": ROWS, "norm_weight": VECTOR, "norm_bias": VECTOR}
        | {f"{name}_{kind}": shape for name in "qkv" for kind, shape in (("weight", MATRIX), ("bias", VECTOR))},
    ),
    "add_layer_norm": (
        add_layer_norm,
        {"x": ROWS, "residual": ROWS, "weight": VECTOR, "bias": VECTOR},
    ),
    "bias_gelu": (bias_gelu, {"x": ROWS, "bias": VECTOR}),
    "bias_gelu_dropout": (lambda x, bias: bias_gelu(x, bias, 0.5, SEED.to(x.device)), {"x": ROWS, "bias": VECTOR}),
    "add_layer_norm_linear": (
        add_layer_norm_linear,
        {"x": ROWS, "residual": ROWS, "norm_weight": VECTOR, "norm_bias": VECTOR}
        | {"weight": (5, WIDTH), "bias": (5,)},
    ),
    "bias_gelu_linear": (
        bias_gelu_linear,
        {"x": ROWS, "bias_before": VECTOR, "weight": (5, WIDTH), "bias": (5,)},
    ),
}
OPERATORS = [name for name in CASES if not name.endswith("_linear")]


def run(name: str, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The results of a case."""
    out = CASES[name][0](*tensors)
    return out if isinstance(out, tuple) else (out,)


def tensors(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Arguments of a case: the same numbers in every dtype, weights of the size that keeps that of their rows."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        (torch.randn(shape, generator=generator) * (WIDTH**-0.5 if "weight" in argument else 1)).bfloat16().to(dtype)
        for argument, shape in CASES[name][1].items()
    )
