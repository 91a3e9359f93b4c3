"""NaN and infinity stay where they are: cases of tests/ops/test_special_values.py that the interpreter has time for.

Every kernel's indexing and masks are the same in all dtypes, so float32 is enough under the interpreter.
Over time NaN and infinity get into neighbouring places: README.md says so.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from hsta_kernels import backends
from tests.ops import test_special_values as of

pytestmark = [
    pytest.mark.usefixtures("poisoned_empty"),
    *([] if backends.triton_interpreted else [pytest.mark.gpu]),
]


@pytest.mark.parametrize("axis", ("space", "joint"))
def test_of_one_token(axis, device):
    """In q, k or v of the prefix or of a patch; in some shapes several tiles, several places in a tile, tails."""
    comparison = of.Comparison()
    for (members, groups), prefix in (((3, 2), 1), ((1, 2), 0), ((8, 5), 1)):
        grid = (groups, members) if axis == "space" else (members, groups)
        length = prefix + members * groups
        cases = [None, *itertools.product(of.SPECIAL[:2], range(3), (0, length - 1))]
        qkv = torch.randn(len(cases), length, 3, 1, 16, device=device)
        for sample, case in enumerate(cases[1:], 1):
            value, part, token = case
            qkv[sample, token, part, 0, 8] = value
        of.compare_attention(comparison, qkv, grid, axis, prefix, None, "triton", cases)
    comparison.finish()


@pytest.mark.parametrize("axis", ("space", "joint"))
def test_of_scores(axis, device):
    """Of all, of every other, of a frame: groups of -inf, which the prefix sees beside others."""
    comparison = of.Comparison()
    for grid, prefix, scale in (((3, 2), 1, 0.35), ((1, 2), 0, 1.0), ((2, 17), 1, 0.35)):
        length = prefix + grid[0] * grid[1]
        keys = [*range(length)], [*range(prefix, length, 2)], [*range(prefix, prefix + grid[1])]
        cases = [*itertools.product((1, -1), keys)]
        qkv = torch.rand(len(cases), length, 3, 1, 8, device=device) + 0.5
        for sample, (sign, infinite) in enumerate(cases):
            qkv[sample, infinite, 1] = sign * float("inf")
        of.compare_attention(comparison, qkv, grid, axis, prefix, scale, "triton", cases)
    comparison.finish()


@pytest.mark.parametrize("width", (3, 40))
def test_in_rows(width):
    of.test_parity_of_special_values_in_rows(width, torch.float32, "triton")
