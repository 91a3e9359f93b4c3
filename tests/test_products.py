"""Products of frozen linear layers, each against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hsta_kernels.products import PRODUCTS
from tests.tolerances import assert_close_to_reference, nearby

ROWS = 24  # that they are made for


@pytest.mark.parametrize("shape", ((ROWS,), (2, 12), (5,), (1,), (0,), (3, 24)), ids=str)
@pytest.mark.parametrize("biased", (True, False), ids=("bias", "no bias"))
@pytest.mark.parametrize("activation", ("none", "gelu"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_product(name, dtype, activation, biased, shape):
    weight, x = torch.randn(40, 56).to(dtype), torch.randn(*shape, 2 * 56).to(dtype)[..., ::2]
    bias = torch.randn(40).to(dtype) if biased else None
    if not PRODUCTS[name].runs(weight, activation):
        pytest.skip(f"{name} is none for this layer with this PyTorch on this processor")

    def linear(*tensors: torch.Tensor | None) -> torch.Tensor:
        y = F.linear(*tensors)
        return F.gelu(y) if activation == "gelu" else y

    ours = PRODUCTS[name](weight, bias, activation, ROWS)(x)
    exact, moved = (
        linear(*(None if tensor is None else convert(tensor) for tensor in (x, weight, bias)))
        for convert in (torch.Tensor.double, nearby)
    )
    assert_close_to_reference(ours, linear(x, weight, bias), exact, nearby64=moved)


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_weight_comes_back(name):
    weight = torch.randn(40, 56)
    if not PRODUCTS[name].runs(weight, "gelu"):
        pytest.skip(f"this PyTorch does not have {name}")
    assert torch.equal(PRODUCTS[name](weight, None, "gelu", ROWS).unpacked(), weight)


@pytest.mark.parametrize("name", PRODUCTS)
def test_threads_may_change(name):
    """A weight is packed by one number of threads and multiplied by another."""
    weight, x = torch.randn(192, 96), torch.randn(ROWS, 96)
    if not PRODUCTS[name].runs(weight, "gelu"):
        pytest.skip(f"this PyTorch does not have {name}")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        product = PRODUCTS[name](weight, None, "gelu", ROWS)
        torch.set_num_threads(1)
        torch.testing.assert_close(product(x), F.gelu(F.linear(x, weight)), rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(threads)
