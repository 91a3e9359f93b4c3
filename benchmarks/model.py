"""Other ways to run HSTA: the reference model, the same on PyTorch's attention, both compiled; and its GEMMs alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hsta_kernels
from benchmarks.operators.space_time_attention import grouped

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


def title(size: dict) -> str:
    return size["name"] + (f", depth {size['depth']}" if "depth" in size else "")


def build(
    size: dict, attention: str, batch: int, device: torch.device
) -> tuple[nn.Module, nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """Our ``create_model(**size)``, the reference model with the same weights, and inputs for both."""
    fused = hsta_kernels.create_model(**size, attention=attention).to(device)
    reference = hsta_kernels.reference.HSTA(fused.config).to(device)
    reference.load_state_dict(fused.state_dict())
    pixels = fused.config.image_size
    video = torch.randn(batch, 3, fused.config.num_frames, pixels, pixels, device=device)
    return fused, reference, (video, torch.randn(batch, 3, 2, pixels, pixels, device=device))


def training_step(module: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Forward pass, loss, and backward pass; under autocast unless `dtype` is float32."""
    device = inputs[0].device
    target = torch.zeros(inputs[0].shape[0], dtype=torch.long, device=device)
    module.zero_grad()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = F.cross_entropy(module(*inputs), target)
    loss.backward()
    return loss.detach().float()


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
