"""A frozen linear layer's product, ``activation(x @ weight.T + bias)``, by a kernel of ours and each of the libraries
behind PyTorch.

Each of them takes any number of rows. Which is the fastest depends on the processor and on the shape: `fastest.py`.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hsta_kernels import backends
from hsta_kernels.ops.checks import rows_contiguous
from hsta_kernels.ops.dispatch import call, custom_op
from hsta_kernels.ops.launch import cpu
from hsta_kernels.ops.quantized_rows import SMALLEST, quantize_rows, scale_rows


class Product(Protocol):
    """A weight (out, in) laid out for one library, ready to be called with x (..., in)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str, rows: int): ...

    def __call__(self, x: Tensor) -> Tensor: ...

    def unpacked(self) -> Tensor:
        """The weight (out, in)."""

    @staticmethod
    def runs(weight: Tensor, activation: str) -> bool:
        """Whether it can be made of this weight here, and is another product than those before it in `PRODUCTS`."""


class Linear:
    """PyTorch's own; on a processor MKL's or oneDNN's of the weight as it is. GELU is a pass of its own."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str, rows: int):
        self.weight, self.bias, self.activation = weight, bias, activation

    def __call__(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.unpacked(), self.bias)
        return F.gelu(y) if self.activation == "gelu" else y

    def unpacked(self) -> Tensor:
        return self.weight

    @staticmethod
    def runs(weight: Tensor, activation: str) -> bool:
        return True


class OneDNN:
    """oneDNN's of a packed weight, with bias and GELU in the epilogue."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str, rows: int):
        self.packed, self.bias, self.epilogue = torch.ops.mkldnn._reorder_linear_weight(weight), bias, activation

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, self.epilogue, [], "none")

    def unpacked(self) -> Tensor:
        return self.packed.to_dense()

    @staticmethod
    def runs(weight: Tensor, activation: str) -> bool:
        if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return False
        return weight.dtype == torch.float32 or (
            weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )


class OneDNNThenGelu(OneDNN):
    """The same with GELU as a pass of its own: on AVX2 oneDNN's epilogue takes longer than PyTorch's GELU."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str, rows: int):
        super().__init__(weight, bias, "none", rows)

    def __call__(self, x: Tensor) -> Tensor:
        return F.gelu(super().__call__(x))

    @staticmethod
    def runs(weight: Tensor, activation: str) -> bool:
        return activation == "gelu" and OneDNN.runs(weight, activation)


class Packed:
    """Ours, of the weight in panels, with bias and GELU in the epilogue. A row's result depends on no other."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str, rows: int):
        self.out_features, self.activation = len(weight), activation
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias.contiguous()
        padded = F.pad(weight, (0, 0, 0, -len(weight) % _PANEL_COLUMNS))
        self.panels = padded.unflatten(0, (-1, _PANEL_COLUMNS)).transpose(1, 2).contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
        out = call(_packed_product, rows, self.panels, self.bias, self.activation == "gelu")
        return out.view(*x.shape[:-1], self.out_features)

    def unpacked(self) -> Tensor:
        return self.panels.transpose(1, 2).flatten(0, 1)[: self.out_features]

    @staticmethod
    def runs(weight: Tensor, activation: str) -> bool:
        return weight.device.type == "cpu" and weight.dtype == torch.float32 and backends.unavailable("cpu") is None


_PANEL_COLUMNS = 48  # csrc/operators.h


@custom_op("packed_product")
def _packed_product(x: torch.Tensor, panels: torch.Tensor, bias: torch.Tensor, gelu: bool) -> torch.Tensor:
    out = x.new_empty(len(x), len(bias))
    cpu.run("packed_product", len(bias), rows_contiguous(x), panels, bias, gelu, out)
    return out


@_packed_product.register_fake
def _(x: Tensor, panels: Tensor, bias: Tensor, gelu: bool) -> Tensor:
    return x.new_empty(len(x), len(bias))


class MKL(Linear):
    """MKL's of a weight packed for one number of rows, as inductor's freezing has it. The plain weight is kept beside
    it, twice the memory, and multiplies any other number of rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str, rows: int):
        super().__init__(weight, bias, activation, rows)
        self.rows, self.packed = rows, torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)

    def __call__(self, x: Tensor) -> Tensor:
        y = torch.ops.mkl._mkl_linear(x, self.packed, self.weight, self.bias, self.rows)
        return F.gelu(y) if self.activation == "gelu" else y

    @staticmethod
    def runs(weight: Tensor, activation: str) -> bool:
        return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkl.is_available()


class BFloat16Weights(Linear):
    """PyTorch's own of a weight that is kept in bfloat16 and widened at each call: for its memory, not for speed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str, rows: int):
        super().__init__(weight.to(torch.bfloat16), bias, activation, rows)

    def unpacked(self) -> Tensor:
        return self.weight.float()

    @staticmethod
    def runs(weight: Tensor, activation: str) -> bool:
        return weight.dtype == torch.float32


class Int8Weights(Linear):
    """The same of a weight kept in integers of 8 bits, with a scale for each output."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str, rows: int):
        integers, self.scale = _integers(weight)
        super().__init__(integers, bias, activation, rows)

    def unpacked(self) -> Tensor:
        return self.weight * self.scale[:, None]

    @staticmethod
    def runs(weight: Tensor, activation: str) -> bool:
        return weight.dtype == torch.float32


class Int8:
    """oneDNN's of integers of 8 bits: weights with a scale for each output, and each row of x with its own as it comes,
    so that a row's result depends on no other. Sums are exact in 32 bits; scales of rows, bias and GELU are one pass.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str, rows: int):
        integers, self.scale = _integers(weight)
        self.packed = torch.ops.onednn.qlinear_prepack(integers, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias
        self.activation = activation
        self.most = 127 if _sums_are_exact() else 63

    def __call__(self, x: Tensor) -> Tensor:
        # Around a zero point in the middle, as oneDNN has it.
        integers, scale = quantize_rows(x.reshape(-1, x.shape[-1]), self.most)
        y = torch.ops.onednn.qlinear_pointwise(
            integers,
            1.0,
            self.most + 1,
            self.packed,
            self.scale,
            self.zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return scale_rows(y, scale, self.bias, self.activation == "gelu").view(*x.shape[:-1], -1)

    def unpacked(self) -> Tensor:
        return self.packed.to_dense().T.contiguous() * self.scale[:, None]

    @staticmethod
    def runs(weight: Tensor, activation: str) -> bool:
        return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()


@cache
def _sums_are_exact() -> bool:
    """Whether this processor's instructions, as far as oneDNN may use them, add products of 8 bits in 32 bits. Without
    VNNI pairs are added in 16 first, which products of 7 and 8 bits do not overflow."""
    packed = torch.ops.onednn.qlinear_prepack(torch.full((16, 64), 127, dtype=torch.int8), None)
    scale, zeros, rows = (
        torch.ones(16),
        torch.zeros(16, dtype=torch.int32),
        torch.full((16, 64), 255, dtype=torch.uint8),
    )
    sums = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, 0, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return bool((sums == 64 * 255 * 127).all())


def _integers(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers of 8 bits and a scale for each output. Scales have 16 bits: a weight is then exactly its integer times
    its scale, and made integers once more it gives the same."""
    scale = _of_16_bits(weight.abs().amax(1).clamp_min(SMALLEST) / 127)
    return (weight / scale[:, None]).round().to(torch.int8), scale


def _of_16_bits(positive: Tensor) -> Tensor:
    """The next float32 that is no smaller and whose last eight bits are zeros."""
    return ((positive.view(torch.int32) + 0xFF) & ~0xFF).view(torch.float32)


# In the order in which they are taken where none is clearly faster: MKL's needs more memory. The first one that runs
# is what `freeze` takes without a measurement.
PRODUCTS: dict[str, type[Product]] = {
    "onednn": OneDNN,
    "linear": Linear,
    "onednn then gelu": OneDNNThenGelu,
    "packed": Packed,
    "mkl": MKL,
}
# What rounds weights and rows, and is taken only where it is asked for.
QUANTIZED: dict[str, type[Product]] = {"int8": Int8}
# What keeps rounded weights for their memory, by the dtype that they are kept in.
KEPT: dict[str, type[Product]] = {"torch.bfloat16": BFloat16Weights, "torch.int8": Int8Weights}
