"""Other ways to add a residual and normalize the sum."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F


def eager(x, residual, weight, bias):
    total = x + residual
    return F.layer_norm(total, total.shape[-1:], weight, bias, 1e-6), total


def contenders() -> dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]]:
    return {"eager": eager, "compiled": torch.compile(eager, dynamic=False)}
