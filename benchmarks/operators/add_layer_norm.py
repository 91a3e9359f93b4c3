"""Adding a residual and normalizing the sum, and other ways to do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F

import hsta_kernels
from benchmarks.case import WIDTH, Case, Work, dtypes, operator_case


def eager(x, residual, weight, bias):
    total = x + residual
    return F.layer_norm(total, total.shape[-1:], weight, bias, 1e-6), total


def contenders() -> dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]]:
    return {"eager": eager, "compiled": torch.compile(eager, dynamic=False)}


def case(rows: int, backward: bool, dtype: torch.dtype, device: torch.device) -> Case:
    inputs = [torch.randn(s, device=device).to(dtype) for s in ((rows, WIDTH), (rows, WIDTH), (WIDTH,), (WIDTH,))]
    return operator_case(
        "add_layer_norm",
        f"{'backward' if backward else 'forward'} rows={rows} C={WIDTH}",
        hsta_kernels.ops.add_layer_norm,
        contenders(),
        inputs,
        inputs[:2],
        backward,
        bytes=4 * rows * WIDTH * inputs[0].element_size(),
    )


def works(device: torch.device, quick: bool) -> Iterator[Work]:
    rows = 589 * (4 if device.type == "cpu" else 64)
    for backward, (short, dtype) in product((False, True), dtypes(quick).items()):
        name = f"add_layer_norm-{'bwd' if backward else 'fwd'}-{short}"
        yield Work(name, partial(case, rows, backward, dtype, device))
