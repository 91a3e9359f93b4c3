"""Clips of different lengths in one batch: each sample is what it is alone."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from hsta_kernels import backends
from hsta_kernels.ops import space_time_attention
from hsta_kernels.ops.space_time_attention.grid import AXES, TOKEN_ORDERS
from tests.kernels import SIMULATED
from tests.ops.parity import assert_parity

pytestmark = pytest.mark.usefixtures("poisoned_empty")

OPERATOR = backends.OPERATORS["space_time_attention"]


@pytest.mark.parametrize(("seen_along", "prefix_sees"), [("time", "all"), ("space", "frame_mean"), ("joint", "none")])
@pytest.mark.parametrize("token_order", TOKEN_ORDERS)
def test_valid_frames_are_clips_of_their_own(seen_along, prefix_sees, token_order, kernel):
    """Each sample is what it is alone; padding has no influence, NaN included, and no results."""
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


@pytest.mark.parametrize("seen_along", AXES)
@pytest.mark.parametrize("token_order", TOKEN_ORDERS)
def test_frames_by_a_mask_are_a_clip_of_their_own(seen_along, token_order, kernel):
    """Of frames valid here and there a sample is what it is with these alone, tables and bias of theirs included."""
    frames, patches, prefix = 4, 3, 1
    mask = torch.tensor([[True, False, True, True], [True, False, True, True], [False, True, False, False]])
    place = torch.arange(frames * patches)
    frame = place // patches if token_order == "time_major" else place % frames
    ours = torch.cat([torch.ones(3, 1, dtype=torch.bool), mask[:, frame]], dim=1).to(kernel.device)  # (B, L)
    tokens = torch.randn(3, 13, 3, 2, 16).to(kernel.device)
    tokens[~ours] = math.nan
    qkv, grad = tokens.requires_grad_(), torch.randn(3, 13, 2, 16).to(kernel.device)
    options = {"token_order": token_order, "backend": kernel.name}
    of_all, of_sample = {}, [{}, {}, {}]
    if kernel.name == "cpu":
        rows = prefix + {"time": frames, "space": patches, "joint": frames * patches}[seen_along]
        of_all = {"rotary": (torch.randn(13, 16), torch.randn(13, 16)), "bias": torch.randn(2, rows, rows)}
        for sample, more in enumerate(of_sample):
            of_rows = {"time": mask[sample], "space": torch.ones(patches, dtype=torch.bool), "joint": ours[sample, 1:]}
            row = torch.cat([torch.ones(1, dtype=torch.bool), of_rows[seen_along]])
            more["rotary"] = tuple(table[ours[sample]] for table in of_all["rotary"])
            more["bias"] = of_all["bias"][:, row][:, :, row]
    attend = partial(space_time_attention, axis=seen_along, num_prefix_tokens=prefix, **options)
    out = attend(qkv, (frames, patches), valid_frames=mask.to(kernel.device), **of_all)
    (of_qkv,) = torch.autograd.grad(out, qkv, grad)
    assert not out[~ours].any() and not of_qkv[~ours].any()
    for sample in range(3):
        mine = ours[sample]
        alone = qkv.detach()[sample][mine][None].requires_grad_()
        expected = attend(alone, (int(mask[sample].sum()), patches), **of_sample[sample])
        (of_alone,) = torch.autograd.grad(expected, alone, grad[sample][mine][None])
        torch.testing.assert_close(out[sample][mine], expected[0], rtol=0, atol=0)
        torch.testing.assert_close(of_qkv[sample][mine], of_alone[0], rtol=0, atol=0)


def test_a_mask_of_first_frames_is_their_number():
    """Nothing is copied then; samples of any masks drop by seeds of their own, and share keys."""
    q, k, v = torch.randn(3, 13, 4, 16), *torch.randn(2, 3, 13, 2, 16)
    options = {"dropout_rate": 0.4, "seed": torch.tensor(5), "token_order": "patch_major"}
    attend = partial(space_time_attention, (q, k, v), (3, 4), "time", **options)
    first = torch.tensor([[True, False, False], [True, True, True], [True, True, False]])
    assert torch.equal(attend(valid_frames=first), attend(valid_frames=(1, 3, 2)))
    later = first.clone()
    later[0] = torch.tensor([False, True, False])
    assert torch.equal(attend(valid_frames=later)[1:], attend(valid_frames=first)[1:])


@pytest.mark.parametrize("token_order", TOKEN_ORDERS)
def test_valid_frames_in_the_reference(token_order, kernel):
    """Differentiable twice, and what a kernel's are; each launch drops by a seed of its own."""
    qkv = torch.randn(3, 1 + 2 * 3, 3, 1, 4, dtype=torch.float64, requires_grad=True)
    options = {"token_order": token_order, "valid_frames": torch.tensor([2, 1, 1])}
    attend = partial(space_time_attention, grid_size=(2, 3), axis="time", **options)
    if not SIMULATED:
        assert torch.autograd.gradgradcheck(attend, qkv)
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
        (torch.ones(2, 4, dtype=torch.bool), r"valid_frames must be \(B, T\) = \(2, 3\); got \(2, 4\)"),
        (torch.tensor([[True] * 3, [False] * 3]), r"from 1 to T=3; got \[3, 0\]"),
        (torch.tensor([[False] * 3, [False, True, True]]), "a valid frame in each sample; sample 0 has none"),
    ],
)
def test_valid_frames_that_are_none(valid_frames, message):
    with pytest.raises((TypeError, ValueError), match=message):
        space_time_attention(torch.randn(2, 13, 3, 2, 16), (3, 4), "time", valid_frames=valid_frames)
