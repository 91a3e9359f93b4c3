"""Other ways to run HSTA: the reference model, the same on PyTorch's attention, both compiled; and its GEMMs alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import torch.nn.functional as F  # isort: skip
from benchmarks.contenders.space_time_attention import grouped

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


def with_sdpa(model: nn.Module) -> nn.Module:
    """A copy of a reference model whose space-time attention is PyTorch's scaled_dot_product_attention."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "attend") and hasattr(module, "q_bias"):
            module.attend = MethodType(
                lambda _, qkv, grid, axis: grouped(F.scaled_dot_product_attention, qkv, grid, axis, 1), module
            )
    return model


def contenders(reference: nn.Module) -> dict[str, nn.Module]:
    sdpa = with_sdpa(reference)
    return {
        "eager": reference,
        "SDPA": sdpa,
        "compiled eager": torch.compile(reference, dynamic=False),
        "compiled SDPA": torch.compile(sdpa, dynamic=False),
    }


class _RecordProducts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in _PRODUCTS:
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def gemms_alone(run: Callable[[], object]) -> Callable[[], None]:
    """The matrix products that `run` makes, on the same operands, and nothing between them: a lower bound for it."""
    with _RecordProducts() as record, torch.no_grad():
        run()

    def replay() -> None:
        with torch.no_grad():
            for function, args, kwargs in record.calls:
                function(*args, **kwargs)

    return replay
