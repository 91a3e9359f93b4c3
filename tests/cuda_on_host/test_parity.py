"""What is special to the CUDA kernels, on the emulator (test_emulator.py says how) and on a GPU: the forms that they
take by a GPU's shared memory, many tiles, and what they refuse.

All else that is right for every backend is in tests/ops/test_<operator>.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from hsta_kernels import BackendError, backend, backends
from hsta_kernels.ops import add_layer_norm, cross_modal_attention, space_time_attention
from tests.ops import attention as of_attention
from tests.ops import test_cross_modal_attention as of_cross_modal
from tests.ops.parity import assert_same_bits, run

if backends.cuda_emulated:
    from tests.cuda_on_host import counters

pytestmark = pytest.mark.usefixtures("poisoned_empty")
# grid, prefix, heads, head_dim
SHAPES = [
    *(((frames, 197), prefix, 1, 8) for frames, prefix in ((1, 2), (3, 1), (7, 0))),  # many tiles
    ((33, 2), 0, 1, 24),
    ((64, 3), 2, 1, 32),
    ((64, 1), 16, 1, 8),
]


@pytest.fixture(params=("sm_86", "sm_80", "sm_90"))
def gpu(request) -> Iterator[str]:
    """By whose shared memory the kernels choose their form; a GPU has its own."""
    with counters.shared_memory_of(request.param) if backends.cuda_emulated else nullcontext():
        yield request.param


def test_attention_over_many_tiles(dtype, kernel):
    for grid, prefix, heads, head_dim in SHAPES:
        qkv = torch.randn(1, prefix + grid[0] * grid[1], 3, heads, head_dim, dtype=torch.float64)
        of_attention.check(qkv, grid, "time", prefix, dtype, kernel)


def test_attention_over_long_times(dtype, gpu, kernel):
    """Whose heads some GPUs take a span of columns at a time: of equal spans, and of a last one that is narrower."""
    for frames, patches, prefix, head_dim in ((64, 1, 2, 128), (64, 2, 0, 128), (47, 2, 1, 104), (64, 1, 16, 72)):
        length = prefix + frames * patches
        qkv = torch.randn(1, length, 3, 1, head_dim, dtype=torch.float64)
        of_attention.check(qkv, (frames, patches), "time", prefix, dtype, kernel, qkv[:, :, 1])
        if dtype == torch.float32:
            of_attention.check(qkv * 1e4, (frames, patches), "time", prefix, dtype, kernel, qkv[:, :, 1])


@pytest.mark.skipif(not backends.cuda_emulated, reason="a GPU's shared memory is what it is")
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_attention_over_time_gives_the_same_bits_in_spans(dtype, kernel):
    qkv, grad = torch.randn(1, 130, 3, 1, 128).to(dtype), torch.randn(1, 130, 1, 128)
    results = []
    for name in counters.SHARED_MEMORY:
        with counters.shared_memory_of(name):
            results.append(run(of_attention.attention((64, 2), "time", 2), {"qkv": qkv}, kernel.name, [grad]))
    for result in results:
        assert_same_bits(result, results[0])


@pytest.mark.parametrize(("batch", "tokens", "width", "heads"), [(1, 197, 96, 1), (1, 5, 400, 16)])
def test_crossmodal_runs_of_rows(batch, tokens, width, heads, dtype, kernel):
    """Several of them; as many heads as there may be."""
    of_cross_modal.check(of_cross_modal.arguments(batch, tokens, width), heads, dtype, kernel)


@pytest.mark.parametrize(
    ("gpu", "batch", "tokens", "width", "heads"),
    [
        *((gpu, 2, 17, 768, 12) for gpu in ("sm_86", "sm_80")),  # in spans, where an sm_90 takes rows whole
        *((gpu, 1, 5, 1280, 16) for gpu in ("sm_86", "sm_80", "sm_90")),
        ("sm_86", 1, 17, 1288, 23),  # two squares of heads, two blocks a run
        ("sm_90", 1, 40, 136, 17),
        ("sm_90", 1, 97, 776, 2),  # two runs of rows
        ("sm_90", 2, 15, 1800, 3),
    ],
    indirect=["gpu"],
)
def test_crossmodal_wide_rows(batch, tokens, width, heads, dtype, gpu, kernel):
    of_cross_modal.check(of_cross_modal.arguments(batch, tokens, width), heads, dtype, kernel)


def of_zeros(zeros, width: int) -> list[torch.Tensor]:
    return [zeros(*value.shape) for value in of_cross_modal.arguments(1, 5, width).values()]


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda zeros: space_time_attention(zeros(1, 7, 3, 1, 8), (2, 3), "space"), "axis is 'space'"),
        (lambda zeros: space_time_attention(zeros(1, 65, 3, 1, 8), (65, 1), "time", 0), "there are 65 frames"),
        (lambda zeros: space_time_attention(zeros(1, 7, 3, 1, 12), (2, 3), "time"), "head_dim of 12"),
        (lambda zeros: space_time_attention(zeros(1, 7, 3, 1, 8).double(), (2, 3), "time"), "qkv is torch.float64"),
        (lambda zeros: cross_modal_attention(*of_zeros(zeros, 264), num_heads=33), "there are 33 heads"),
        (lambda zeros: cross_modal_attention(*of_zeros(zeros, 12), num_heads=1), "tokens has rows of 12"),
        (lambda zeros: add_layer_norm(*[zeros(2, 12)] * 2, *[zeros(12)] * 2), "x has rows of 12"),
    ],
)
def test_what_is_refused_is_refused_by_name(run, reason, kernel):
    with backend("cuda"), pytest.raises(BackendError, match=reason):
        run(lambda *shape: torch.zeros(shape, device=kernel.device))


@pytest.mark.skipif(not backends.cuda_emulated, reason="a GPU's shared memory is what it is")
def test_too_little_shared_memory_is_said(kernel):
    values = {key: value.float() for key, value in of_cross_modal.arguments(1, 5, 16).items()}
    needs = r"a block needs \d+ bytes of shared memory, and this GPU has 1000"
    with backend("cuda"), counters.shared_memory_limit(1000):
        with pytest.raises(RuntimeError, match=rf"space_time_attention_forward of .*\(1, 6, 3, 1, 8\), .*: {needs}"):
            space_time_attention(torch.zeros(1, 6, 3, 1, 8, device=kernel.device), (2, 3), "time", 0)
        with pytest.raises(RuntimeError, match=rf"absorbed_attention_forward of .*\(1, 2, 16\), .*: {needs}"):
            cross_modal_attention(**values, num_heads=2)
