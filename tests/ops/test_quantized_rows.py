"""What is before and after a product of 8-bit integers: the kernels against PyTorch's operations, which stand in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hsta_kernels import backends
from hsta_kernels.ops.quantized_rows import quantize_rows, scale_rows
from tests.tolerances import assert_close_to_reference, nearby

pytestmark = pytest.mark.skipif(backends.cpu is None, reason="the CPU kernels are not built on this machine")

SHAPES = [(1, 1), (7, 3), (5, 16), (3, 65), (70, 192), (2, 3072), (0, 8)]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def plain(monkeypatch, function, *arguments):
    with monkeypatch.context() as patched:
        patched.setattr(backends, "cpu", None)
        return function(*arguments)


@pytest.mark.parametrize("most", (63, 127))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity_of_integers(shape, most, monkeypatch):
    x = torch.randn(shape) * torch.logspace(-44, 38, shape[0])[:, None]
    x[1:2], x[2:3] = 0, torch.arange(shape[1]) - 0.5  # ties, where the largest is `most`
    x[2:3, -1:] = most
    for rows in (x, torch.stack((x, x), -1)[..., 0], torch.cat((x, x), 1)[:, : shape[1]]):
        integers, scale = quantize_rows(rows, most)
        expected, expected_scale = plain(monkeypatch, quantize_rows, rows, most)
        assert torch.equal(scale, expected_scale)
        assert torch.equal(integers, expected)
        assert integers.dtype == torch.uint8 and (integers[1:2] == most + 1).all()


@pytest.mark.parametrize("gelu", (False, True))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity_of_scaled_rows(shape, gelu):
    y, scale, bias = torch.randn(shape), torch.rand(shape[0]), torch.randn(2 * shape[1])[::2]

    def formula(y: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y = torch.addcmul(bias, y, scale[:, None])
        return F.gelu(y) if gelu else y

    same, exact, moved = (
        formula(*map(convert, (y, scale, bias))) for convert in (torch.clone, torch.Tensor.double, nearby)
    )
    assert_close_to_reference(scale_rows(y, scale, bias, gelu), same, exact, nearby64=moved)


@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
@pytest.mark.parametrize("column", (0, 20, 36))
def test_parity_of_rows_that_are_not_finite(value, column, monkeypatch):
    x = torch.randn(4, 37)
    x[2, column] = value
    x[3, :2] = torch.tensor([torch.nan, torch.inf])
    integers, scale = quantize_rows(x, 127)
    expected, expected_scale = plain(monkeypatch, quantize_rows, x, 127)
    torch.testing.assert_close(scale, expected_scale, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(integers[:2], expected[:2])
    for gelu in (False, True):
        y = scale_rows(torch.randint(-9, 9, (4, 21)).float(), scale, torch.randn(21), gelu)
        assert y[:2].isfinite().all()
        assert not y[2].isfinite().any()
        assert y[3].isnan().all()


def test_threads_change_nothing():
    x, scale, bias = torch.randn(300, 65), torch.rand(300), torch.randn(65)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append((*quantize_rows(x, 127), scale_rows(x.clone(), scale, bias, True)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(other, results[0], strict=True))


def test_opcheck_and_refusals():
    x = torch.randn(3, 8)
    torch.library.opcheck(torch.ops.hsta_kernels.quantize_rows, (x, 127))
    torch.library.opcheck(torch.ops.hsta_kernels.scale_rows, (x.clone(), torch.rand(3), torch.randn(8), True))
    integers, scale = torch.empty(3, 8, dtype=torch.uint8), torch.empty(3)
    with pytest.raises(ValueError, match=r"integers is float32 .*expected uint8 of shape \(3, 8\)"):
        backends.cpu.quantize_rows(x, 127, x, scale)
    with pytest.raises(ValueError, match=r"x is uint8 of shape .*expected float32"):
        backends.cpu.quantize_rows(integers, 127, integers, scale)
    with pytest.raises(ValueError, match=r"residual is uint8 of shape .*expected float32, bfloat16 or float16"):
        backends.cpu.add_layer_norm_forward(*[integers] * 4, 1e-6, integers, integers)
