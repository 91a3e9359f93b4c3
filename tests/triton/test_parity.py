"""What is special to the Triton kernels: how they split crossmodal attention, and the bits of their offsets.

All else that is right for every backend is in tests/ops/test_<operator>.py.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from hsta_kernels import backends
from hsta_kernels.ops import add_layer_norm, bias_gelu, cross_modal_attention
from hsta_kernels.ops.cross_modal_attention import triton as absorbed_launch
from hsta_kernels.ops.launch.triton import power_of_2
from hsta_kernels.ops.space_time_attention import triton as attention_launch
from tests.ops import test_cross_modal_attention as of_cross_modal
from tests.ops.attention import attention, of_three
from tests.ops.parity import assert_parity, assert_same_bits, run

pytestmark = pytest.mark.usefixtures("poisoned_empty")


@pytest.mark.parametrize(
    ("batch", "tokens", "width", "heads"),
    # one run of rows, several (33 tokens a head is more than 18), very many; widths between the pieces' powers of 2;
    # wider rows and more heads than a GPU's registers hold
    [(24, 1, 32, 1), (1, 130, 96, 3), (1, 40, 192, 12), (1, 540, 16, 1), (2, 19, 1064, 8), (2, 33, 96, 24)],
)
def test_runs_of_rows_and_pieces_of_columns(batch, tokens, width, heads, dtype, kernel):
    of_cross_modal.check(of_cross_modal.arguments(batch, tokens, width), heads, dtype, kernel)


def test_the_size_of_the_gpu_has_no_say_in_crossmodal_attention(dtype, kernel, monkeypatch):
    """A program for each run of rows, or for half of a sample's: to the bit the same, so the batch has no say either.
    Seven runs, the last of 4 rows; a run's rows and what they weigh differ much from another's."""
    batch, tokens, width, heads = 2, 291, 96, 3
    rows = torch.randn(batch, 1 + tokens, width) * torch.linspace(0.5, 20, tokens + 1)[:, None]
    tensors = {"u": torch.randn(batch, heads, width), "query_token": rows[:, 0], "tokens": rows[:, 1:]}
    tensors = {key: t.to(kernel.device, dtype if key != "u" else torch.float32) for key, t in tensors.items()}
    grad = torch.randn(batch, heads, width, device=kernel.device)
    results, programs = [], []
    for multiprocessors in (1, 1000):
        monkeypatch.setattr(absorbed_launch, "multiprocessors", lambda device, count=multiprocessors: count)
        programs.append(absorbed_launch.split_rows(tensors["tokens"], heads, multiprocessors).programs)
        results.append(run(partial(of_cross_modal.pooled, kernel=kernel), tensors, "triton", [grad]))
    assert programs == [2, 7]
    assert_same_bits(*results)


@pytest.mark.parametrize("prefix", (0, 1))
@pytest.mark.parametrize("axis", ("space", "joint"))
def test_both_passes_have_the_same_scores(axis, prefix, dtype, kernel):
    """To the bit, also in the tails of tiles, which another matrix instruction may multiply: of a score of some 1e8 the
    last bit is worth a factor of 2⁸ or more in its probability. With one-hot rows the probabilities that the backward
    pass computes anew are 0 and 1; with incoming gradients of 1 a value's gradient is how many queries chose it."""
    grid = (2, 196) if axis == "space" else (1, 196)
    qkv = torch.randn(1, prefix + grid[0] * grid[1], 3, 1, 64)
    qkv[:, :, :2] *= 1e4
    tensors = {"qkv": qkv.to(kernel.device, dtype)}
    grads = [torch.ones(qkv.shape[:2] + qkv.shape[3:], device=kernel.device)]
    ours = run(attention(grid, axis, prefix), tensors, "triton", grads)
    exact = run(attention(grid, axis, prefix), {"qkv": tensors["qkv"].double()}, "reference", grads)
    chosen = exact["grad of qkv"][:, :, 2]
    assert torch.equal(chosen, chosen.round()) and chosen.sum() == grads[0].sum(), "the rows are not one-hot"
    assert torch.equal(ours["out 0"], exact["out 0"].to(dtype))
    assert torch.equal(ours["grad of qkv"][:, :, 2], chosen.to(dtype))


@pytest.mark.parametrize(
    ("axis", "grid", "prefix", "choices"),
    # groups with and without a tail of keys, a last tile that is all prefix, more prefix tokens than a tile has rows
    [
        ("space", (2, 16), 0, {}),
        ("space", (2, 32), 1, {}),
        ("space", (3, 21), 1, {"token_order": "patch_major"}),
        ("space", (2, 9), 20, {}),
        ("space", (2, 40), 2, {"prefix": "none"}),
        ("joint", (2, 9), 1, {}),
        ("time", (40, 2), 1, {}),
    ],
)
@pytest.mark.parametrize("packed", (True, False))
def test_groups_that_a_program_holds_whole(axis, grid, prefix, choices, packed, dtype, kernel, monkeypatch):
    """In small tiles. Magnitudes so that rows are nearly one-hot, where δ and dp have to cancel."""
    held = []

    def tile(rows, groups, grid):
        held.append(groups.members + groups.prefix)
        return {"ROWS": power_of_2(max(16, held[-1])), "BLOCK_N": 16, "TAIL_N": groups.tail(16)}

    monkeypatch.setattr(attention_launch, "_group_tile", tile)
    monkeypatch.setattr(attention_launch, "_time_tile", lambda *of: None)
    qkv = (3 * torch.randn(1, prefix + grid[0] * grid[1], 3, 2, 24)).to(kernel.device, dtype)
    function, tensors = partial(attention(grid, axis, prefix), **choices), {"qkv": qkv}
    if not packed:
        tensors = {key: part.contiguous() for key, part in zip("qkv", qkv.unbind(2), strict=True)}
        function = of_three(function)
    assert_parity(function, tensors, [torch.randn_like(qkv[:, :, 0])], kernel)
    assert held


def test_rows_past_the_end_of_a_group_take_no_part(dtype, kernel, monkeypatch):
    """They are zero, and zero times an infinite key is NaN; of a query that does not see it the key's weight is 0."""
    monkeypatch.setattr(attention_launch, "_group_tile", lambda *of: {"ROWS": 16, "BLOCK_N": 16, "TAIL_N": 16})
    qkv = (torch.rand(1, 1 + 2 * 9, 3, 1, 24) + 0.5).to(kernel.device, dtype)
    qkv[0, 3, 1] = -float("inf")
    tensors, grads = {"qkv": qkv}, [torch.ones_like(qkv[:, :, 0])]
    ours, exact = (run(attention((2, 9), "space"), tensors, name, grads) for name in ("triton", "reference"))
    isnan = exact["grad of qkv"].isnan()
    assert isnan.any() and not isnan[:, :, 2].any()
    assert torch.equal(ours["grad of qkv"].isnan(), isnan)


def far_apart(tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """The same values, with more than 2³¹ elements, nearly none of them touched, from the first index of `dim` on."""
    strides = list(tensor.contiguous().stride())
    strides[dim] = (2**31 + 4096) // (tensor.shape[dim] - 1)
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True))
    return torch.empty(reach + 1, dtype=tensor.dtype).as_strided(tensor.shape, strides).copy_(tensor)


@pytest.mark.skipif(not backends.triton_interpreted, reason="reserves memory that a GPU would have to have")
def test_offsets_have_64_bits():
    """The interpreter gives a stride the bits that its value needs, not those that the kernel declares."""
    halves = {key: value.half() for key, value in of_cross_modal.arguments(2, 5, 16).items()}
    qkv, grad = torch.randn(2, 5, 3, 2, 8).half(), torch.randn(2, 5, 2, 8).half()
    rows, weight = torch.randn(3, 16).half(), torch.ones(16).half()

    def attend(axis, qkv, grad):
        return run(attention((2, 2), axis), {"qkv": qkv}, "triton", [grad])

    def pool(tokens):
        function = partial(cross_modal_attention, num_heads=2)
        return run(function, halves | {"tokens": tokens}, "triton", [torch.ones(2, 16)])

    def norm(x):
        return run(add_layer_norm, {"x": x, "residual": x, "weight": weight, "bias": weight}, "triton", [x, x])

    cases = [
        *((lambda t, axis=axis: attend(axis, t, grad), qkv, dim)
          for axis, dim in (("time", 0), ("time", 1), ("space", 1), ("joint", 3))),
        *((lambda g, axis=axis: attend(axis, qkv, g), grad, 1) for axis in ("time", "space")),
        (pool, halves["tokens"], 0),
        (pool, halves["tokens"], 1),
        (norm, rows, 0),
        (lambda t: run(bias_gelu, {"x": t, "bias": weight}, "triton", [t]), rows, 0),
    ]  # fmt: skip
    for function, tensor, dim in cases:
        assert_same_bits(function(far_apart(tensor, dim)), function(tensor))
