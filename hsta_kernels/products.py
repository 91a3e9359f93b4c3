"""A frozen linear layer's product, ``activation(x @ weight.T + bias)``, by each of the libraries behind PyTorch.

Each of them takes any number of rows. Which is the fastest depends on the processor and on the shape: `fastest.py`.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


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
        y = F.linear(x, self.weight, self.bias)
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


# In the order in which they are taken where none is clearly faster: MKL's needs more memory. The first one that runs
# is what `freeze` takes without a measurement.
PRODUCTS: dict[str, type[Product]] = {
    "onednn": OneDNN,
    "linear": Linear,
    "onednn then gelu": OneDNNThenGelu,
    "mkl": MKL,
}
