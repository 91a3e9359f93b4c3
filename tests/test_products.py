"""Products of frozen linear layers, each against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hsta_kernels import backends
from hsta_kernels.products import KEPT, PRODUCTS, Int8, Packed
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


@pytest.fixture
def packed():
    if not Packed.runs(torch.ones(1), "none"):
        pytest.skip("the CPU kernels are not built")


@pytest.mark.parametrize("activation", ("none", "gelu"))
@pytest.mark.parametrize(
    ("rows", "inner", "columns"),
    ((1, 1, 1), (9, 37, 95), (13, 768, 17), (8, 769, 48), (41, 1541, 49), (300, 500, 10), (3, 0, 5)),
)
def test_packed_product(packed, rows, inner, columns, activation):
    """Edges of tiles, panels, spans and blocks; and a row's bits, whatever the others are."""
    weight, bias, x = torch.randn(columns, inner), torch.randn(columns), torch.randn(rows, inner)
    product = Packed(weight, bias, activation, rows)

    def linear(*tensors: torch.Tensor) -> torch.Tensor:
        y = F.linear(*tensors)
        return F.gelu(y) if activation == "gelu" else y

    result = product(x)
    exact, moved = (linear(*map(convert, (x, weight, bias))) for convert in (torch.Tensor.double, nearby))
    assert_close_to_reference(result, linear(x, weight, bias), exact, nearby64=moved)
    for first, last in ((0, 1), (rows // 2, rows), (rows - 1, rows)):
        assert torch.equal(product(x[first:last]), result[first:last])
    assert torch.equal(product(F.pad(x, (1, 2))[:, 1 : inner + 1]), result)  # rows read in place


@pytest.mark.parametrize("special", (torch.nan, torch.inf, -torch.inf))
def test_what_is_not_finite_stays_in_its_row(packed, special):
    weight, x = torch.randn(50, 20).abs(), torch.randn(19, 20)
    product = Packed(weight, None, "none", 19)
    expected = product(x)
    x[11, 3] = expected[11] = special
    torch.testing.assert_close(product(x), expected, rtol=0, atol=0, equal_nan=True)
    weight[7, 2] = special
    x[11] = 1
    result = Packed(weight, None, "none", 19)(x)
    assert not result[:, 7].isfinite().any()
    assert result[:, torch.arange(50) != 7].isfinite().all()


def test_packed_product_compiles(packed):
    product, x = Packed(torch.randn(50, 20), torch.randn(50), "gelu", 6), torch.randn(2, 3, 20)
    with torch.no_grad():
        compiled = torch.compile(product.__call__, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), product(x))


needs_onednn = pytest.mark.skipif(not Int8.runs(torch.ones(1), "none"), reason="this PyTorch has no oneDNN")


@needs_onednn
@pytest.mark.parametrize("extreme", (True, False))
@pytest.mark.parametrize("rows", (1, 5, 300))
def test_integers_are_multiplied_exactly(rows, extreme):
    """Rows at the extremes too, where processors without VNNI would overflow."""
    weight, x, bias = torch.randn(40, 256), torch.randn(rows, 256), torch.randn(40)
    if extreme:
        weight, x = weight.sign(), x.sign()
        weight[0], x[0] = 1, 1
    product = Int8(weight, bias, "none", rows)
    scale = x.abs().amax(1, keepdim=True) / product.most
    expected = ((x / scale).round().double() * scale) @ product.unpacked().double().T + bias
    torch.testing.assert_close(product(x), expected.float(), rtol=1e-5, atol=1e-4)
    assert (product.unpacked() - weight).abs().max() <= weight.abs().max() / 254 * 1.001


@needs_onednn
@pytest.mark.parametrize("activation", ("none", "gelu"))
def test_integers_without_the_kernels(activation, monkeypatch):
    product, x = Int8(torch.randn(40, 56), torch.randn(40), activation, ROWS), torch.randn(2, ROWS, 112)[..., ::2]
    with torch.no_grad():
        ours = product(x)
        monkeypatch.setattr(backends, "cpu", None)
        torch.testing.assert_close(product(x), ours, rtol=1e-6, atol=1e-5)


@needs_onednn
def test_packing_integers_once_more_changes_nothing():
    first = Int8(torch.randn(40, 56) * torch.logspace(-30, 30, 40)[:, None], None, "none", ROWS)
    second = Int8(first.unpacked(), None, "none", ROWS)
    assert torch.equal(second.unpacked(), first.unpacked())
    assert torch.equal(second.scale, first.scale)


@needs_onednn
def test_a_row_of_integers_depends_on_no_other():
    product, x = Int8(torch.randn(40, 56), torch.randn(40), "gelu", ROWS), torch.randn(4, 56)
    x[1] *= 1e6
    x[2] = 0
    x[3, 5] = torch.nan
    for row, result in zip(x, product(x), strict=True):
        torch.testing.assert_close(product(row), result, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(product(x)[2], F.gelu(product.bias), rtol=0, atol=2**-22)  # another GELU, in one pass
    assert product(x)[3].isnan().all()
    assert not product(x)[:3].isnan().any()


@pytest.mark.parametrize("activation", ("none", "gelu"))
@pytest.mark.parametrize(("name", "item", "unit"), (("torch.bfloat16", 2, 2.0**-7), ("torch.int8", 1, 1 / 127)))
def test_kept_weights(name, item, unit, activation):
    """Of the weight nothing else is kept; what it has lost is at most half a unit, and products are float32's."""
    weight = torch.randn(40, 56) * torch.logspace(-3, 3, 40)[:, None]
    weight[7] = 0
    bias, x = torch.randn(40), torch.randn(3, 5, 56)
    product = KEPT[name](weight, bias, activation, ROWS)
    rounded = product.unpacked()
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, weight)
    assert ((rounded - weight).abs() <= weight.abs().amax(1, keepdim=True) * unit / 2 * 1.001).all()
    y = F.linear(x, rounded, bias)
    assert torch.equal(product(x), F.gelu(y) if activation == "gelu" else y)
    kept = [tensor for tensor in vars(product).values() if isinstance(tensor, torch.Tensor) and tensor is not bias]
    assert sum(tensor.nbytes for tensor in kept) == item * weight.numel() + (4 * 40 if item == 1 else 0)
    assert torch.equal(KEPT[name](rounded, bias, activation, ROWS).unpacked(), rounded)
