"""Clips of different lengths in one batch: each sample is what it is alone."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from hsta_kernels import backends
from hsta_kernels.ops import space_time_attention
from hsta_kernels.ops.space_time_attention.grid import TOKEN_ORDERS
from tests.kernels import SIMULATED
from tests.ops.parity import assert_parity

pytestmark = pytest.mark.usefixtures("poisoned_empty")

OPERATOR = backends.OPERATORS["space_time_attention"]


@pytest.mark.parametrize(("seen_along", "prefix_sees"), [("time", "all"), ("space", "frame_mean"), ("joint", "none")])
@pytest.mark.parametrize("token_order", TOKEN_ORDERS)
def test_valid_frames_are_clips_of_their_own(seen_along, prefix_sees, token_order, kernel):
    """Each sample is what it is alone; padding has no influence, NaN included, and no results."""
    if kernel.name == "cuda" and (seen_along != "time" or prefix_sees != "all" or token_order != "time_major"):
        pytest.skip("the CUDA kernels attend over time alone, frames after frames, with prefix='all'")
    frames, patches, prefix, valid = 4, 3, 1, (2, 2, 4, 1)
    place = torch.arange(frames * patches)
    frame = place // patches if token_order == "time_major" else place % frames
    ours = torch.stack([torch.cat([torch.tensor([True]), frame < f]) for f in valid]).to(kernel.device)  # (B, L)
    tokens = torch.randn(4, prefix + frames * patches, 3, 2, 16).to(kernel.device)
    tokens[~ours] = math.nan
    qkv, grad = tokens.requires_grad_(), torch.randn(4, prefix + frames * patches, 2, 16).to(kernel.device)
    options = {"prefix": prefix_sees, "token_order": token_order, "backend": kernel.name}
    out = space_time_attention(qkv, (frames, patches), seen_along, prefix, valid_frames=valid, **options)
    (of_qkv,) = torch.autograd.grad(out, qkv, grad)
    assert not out[~ours].any() and not of_qkv[~ours].any()
    for sample, f in enumerate(valid):
        alone = qkv.detach()[sample][ours[sample]][None].requires_grad_()
        expected = space_time_attention(alone, (f, patches), seen_along, prefix, **options)
        (of_alone,) = torch.autograd.grad(expected, alone, grad[sample][ours[sample]][None])
        torch.testing.assert_close(out[sample][ours[sample]], expected[0], rtol=0, atol=0)
        torch.testing.assert_close(of_qkv[sample][ours[sample]], of_alone[0], rtol=0, atol=0)


@pytest.mark.parametrize("token_order", TOKEN_ORDERS)
def test_valid_frames_in_the_reference(token_order, kernel):
    """Differentiable twice, and what a kernel's are; each launch drops by a seed of its own."""
    qkv = torch.randn(3, 1 + 2 * 3, 3, 1, 4, dtype=torch.float64, requires_grad=True)
    options = {"token_order": token_order, "valid_frames": torch.tensor([2, 1, 1])}
    attend = partial(space_time_attention, grid_size=(2, 3), axis="time", **options)
    if not SIMULATED:
        assert torch.autograd.gradgradcheck(attend, qkv)
    if kernel.name != "cuda" or token_order == "time_major":
        wider, grad = torch.randn(3, 7, 3, 1, 8), torch.randn(3, 7, 1, 8)
        assert_parity(attend, {"qkv": wider.to(kernel.device)}, [grad.to(kernel.device)], kernel)
    same = qkv.detach()[:1].expand(3, -1, -1, -1, -1)
    dropped = space_time_attention(
        same, (2, 3), "joint", dropout_rate=0.5, seed=torch.tensor(7), valid_frames=[1, 2, 1], token_order=token_order
    )
    assert not torch.equal(dropped[0], dropped[2])


def test_valid_frames_under_the_compiler():
    torch._dynamo.reset()
    attend = partial(space_time_attention, grid_size=(3, 4), axis="time", valid_frames=(3, 1))
    qkv = torch.randn(2, 13, 3, 2, 16, requires_grad=True)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(function(qkv).square().sum(), qkv)[0] for function in (attend, compiled)]
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    ("valid_frames", "message"),
    [
        ((2,), r"valid_frames must be 2 numbers from 1 to T=3; got \[2\]"),
        ((0, 1), r"from 1 to T=3; got \[0, 1\]"),
        ((4, 1), r"from 1 to T=3; got \[4, 1\]"),
        ((1.5, 1), "valid_frames must be B integers.* got 1.5"),
        (3, "valid_frames must be B integers.* got int"),
        (torch.tensor([1.0, 2.0]), "got a tensor of torch.float32"),
    ],
)
def test_valid_frames_that_are_none(valid_frames, message):
    with pytest.raises((TypeError, ValueError), match=message):
        space_time_attention(torch.randn(2, 13, 3, 2, 16), (3, 4), "time", valid_frames=valid_frames)
