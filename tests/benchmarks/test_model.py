"""A way to run the model that computes something else is no contender."""

from __future__ import annotations

import copy
import math
from functools import partial
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import model

SIZE = {"name": "hsta_tiny_224", "depth": ((1, 2),)}
CPU = torch.device("cpu")


def without_scale(reference: torch.nn.Module) -> torch.nn.Module:
    wrong, attend = copy.deepcopy(reference), partial(F.scaled_dot_product_attention, scale=1.0)
    for module in wrong.modules():
        if hasattr(module, "attend") and hasattr(module, "q_bias"):
            module.attend = MethodType(lambda _, qkv, grid, axis: model.grouped(attend, qkv, grid, axis, 1), module)
    return wrong


@pytest.mark.parametrize("attention", ("divided", "joint"))
def test_a_forward_pass_has_the_flops_that_its_ceiling_is_of(attention):
    _, reference, inputs = model.build({**SIZE, "num_frames": 4}, attention, 1, CPU)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # it does not count the CPU's flash
        model.with_sdpa(reference)(*inputs)
    # The reference projects every token to keys and values for crossmodal attention, which need not be.
    crossmodal = sum(
        4 * inputs[0].shape[0] * math.prod(grid) * dim**2
        for grid, dim in zip(reference.config.grids, reference.config.embed_dim, strict=True)
    )
    counted = counter.get_total_flops() - crossmodal
    assert model.forward_flops(reference.config, 1) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_the_check_tells_wrong_attention_from_rounding(dtype):
    fused, reference, inputs = model.build(SIZE, "divided", 1, CPU)

    @torch.no_grad()
    def infer(module: torch.nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            return module.eval()(*inputs).float()

    for run in (infer, partial(model.training_step, inputs=inputs, dtype=dtype)):
        ours = run(fused)
        for right in (reference, model.with_sdpa(reference)):
            model.agrees("right", run(right), ours, dtype)
        with pytest.raises(AssertionError, match="contender wrong is off by"):
            model.agrees("wrong", run(without_scale(reference)), ours, dtype)
