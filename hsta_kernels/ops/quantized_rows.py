"""What a product of 8-bit integers has before and after it: rows made integers, and scales, bias and GELU.

Each row has a scale of its own, so that its result depends on no other. For inference only: nothing here has a
gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hsta_kernels import backends
from hsta_kernels.onlookers import onlooker
from hsta_kernels.ops.checks import rows_contiguous
from hsta_kernels.ops.dispatch import call, custom_op
from hsta_kernels.ops.launch import cpu as launch

SMALLEST = torch.finfo(torch.float32).tiny  # lest a row of zeros be divided by zero


def quantize_rows(x: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers ``round(x / scale) + most + 1``, ties to even, and ``scale``, the largest magnitude of a row / `most`.

    Args:
        x: (R, C), float32, on the CPU.
        most: the largest integer before the zero point is added, odd, at most 127.

    Returns:
        (R, C), uint8, and (R,), float32. Integers of a row with a NaN or an infinity mean nothing; its scale is NaN or
        infinite, so that no result of it is finite.
    """
    if _kernels_run(x):
        return call(_quantize, x, most)
    scale = x.abs().amax(1, keepdim=True).clamp_min(SMALLEST) / most
    return (x / scale).round().add_(most + 1).to(torch.uint8), scale[:, 0]


def scale_rows(y: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, gelu: bool) -> torch.Tensor:
    """``y * scale + bias`` of rows of integers' product, or GELU of it. May be written over `y`.

    Args:
        y: (R, C), float32, contiguous.
        scale: (R,), as `quantize_rows` returns it.
        bias: (C,), float32.
        gelu: whether GELU, by the error function, comes last.
    """
    if _kernels_run(y):
        call(_scale, y, scale, bias, gelu)
        return y
    y = torch.addcmul(bias, y, scale[:, None])
    return F.gelu(y) if gelu else y


def _kernels_run(rows: torch.Tensor) -> bool:
    return backends.cpu is not None and onlooker((rows,)) is None


@custom_op("quantize_rows")
def _quantize(x: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    integers, scale = torch.empty(x.shape, dtype=torch.uint8), x.new_empty(len(x))
    if x.numel():
        launch.run("quantize_rows", rows_contiguous(x), most, integers, scale)
    return integers, scale


@_quantize.register_fake
def _(x, most):
    return x.new_empty(x.shape, dtype=torch.uint8), x.new_empty(len(x))


@custom_op("scale_rows", mutates=("y",))
def _scale(y: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, gelu: bool) -> None:
    if y.numel():
        launch.run("scale_rows", y, scale, bias.contiguous(), gelu)


@_scale.register_fake
def _(y, scale, bias, gelu):
    return None
