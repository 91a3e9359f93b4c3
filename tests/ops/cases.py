"""One example call, or a few, of every operator, and of the two fused linear layers, as functions of tensors alone.

An operator's are the EXAMPLES of its tests/ops/test_<operator>.py: a name to a function of tensors, and their shapes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from hsta_kernels import backends
from hsta_kernels.ops.fused_linear import add_layer_norm_linear, bias_gelu_linear

Example = tuple[Callable, dict[str, tuple[int, ...]]]


def examples(operator: str) -> dict[str, Example]:
    return importlib.import_module(f"tests.ops.test_{operator}").EXAMPLES


WIDTH = 32
OF_OPERATORS = {name: example for operator in backends.OPERATORS for name, example in examples(operator).items()}
CASES: dict[str, Example] = OF_OPERATORS | {
    "add_layer_norm_linear": (
        add_layer_norm_linear,
        {"x": (8, 9, WIDTH), "residual": (8, 9, WIDTH), "norm_weight": (WIDTH,), "norm_bias": (WIDTH,)}
        | {"weight": (5, WIDTH), "bias": (5,)},
    ),
    "bias_gelu_linear": (
        bias_gelu_linear,
        {"x": (8, 9, WIDTH), "bias_before": (WIDTH,), "weight": (5, WIDTH), "bias": (5,)},
    ),
}


def run(name: str, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The results of a case."""
    out = CASES[name][0](*tensors)
    return out if isinstance(out, tuple) else (out,)


def tensors(
    name: str, dtype: torch.dtype = torch.float32, seed: int = 0, width: int = WIDTH
) -> tuple[torch.Tensor, ...]:
    """Arguments of a case: the same numbers in every dtype, weights of the size that keeps that of their rows."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(argument: str, shape: tuple[int, ...]) -> torch.Tensor:
        sizes = [width if size == WIDTH else size for size in shape]
        return torch.randn(sizes, generator=generator) * (width**-0.5 if "weight" in argument else 1)

    return tuple(drawn(argument, shape).bfloat16().to(dtype) for argument, shape in CASES[name][1].items())
