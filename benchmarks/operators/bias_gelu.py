"""Adding the MLP's bias and applying GELU, and other ways to do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F

import hsta_kernels
from benchmarks.case import WIDTH, Case, Work, dtypes, operator_case


def eager(x, bias):
    return F.gelu(x + bias)


def contenders() -> dict[str, Callable[..., torch.Tensor]]:
    return {"eager": eager, "compiled": torch.compile(eager, dynamic=False)}


def case(rows: int, backward: bool, dtype: torch.dtype, device: torch.device) -> Case:
    inputs = [torch.randn(s, device=device).to(dtype) for s in ((rows, 4 * WIDTH), (4 * WIDTH,))]
    return operator_case(
        "bias_gelu",
        f"{'backward' if backward else 'forward'} rows={rows} C={4 * WIDTH}",
        hsta_kernels.ops.bias_gelu,
        contenders(),
        inputs,
        inputs[:1],
        backward,
        bytes=(3 if backward else 2) * rows * 4 * WIDTH * inputs[0].element_size(),
    )


def works(device: torch.device, quick: bool) -> Iterator[Work]:
    rows = 589 * (4 if device.type == "cpu" else 64)
    for backward, (short, dtype) in product((False, True), dtypes(quick).items()):
        yield Work(f"bias_gelu-{'bwd' if backward else 'fwd'}-{short}", partial(case, rows, backward, dtype, device))
