"""The code below the operators on the CPU: its exponential, its instruction sets, its threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hsta_kernels import backend, backends, ops
from hsta_kernels.ops.cross_modal_attention.autograd import AbsorbedAttention
from tests.kernels import suites

pytestmark = pytest.mark.skipif(backends.cpu is None, reason="the CPU kernels are not built on this machine")


BOUNDS = {"exp2": 2**-22, "exp2_for_bfloat16": 2**-18}


def computed(function: str, x: torch.Tensor) -> torch.Tensor:
    y = torch.full_like(x, float("nan"))
    getattr(backends.cpu, function)(x, y)
    return y


@pytest.mark.parametrize("function", BOUNDS)
def test_exponential_keeps_its_error_bound(function):
    x = torch.linspace(-126, 0, 2_000_003)
    exact = x.double().exp2()
    assert ((computed(function, x).double() - exact).abs() / exact).max() < BOUNDS[function]


@pytest.mark.parametrize("function", BOUNDS)
def test_exponential_at_its_ends(function):
    x = torch.tensor([0.0, -0.0, -1.0, -126.0, -150.0, float("-inf"), float("nan")])
    y = computed(function, x)
    assert y[:6].tolist() == [1.0, 1.0, 0.5, 2.0**-126, 0.0, 0.0]
    assert y[6].isnan()


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_parity_of_halves(dtype):
    """Every number of 16 bits is read for what it is, and sums on and beside the middle between two are rounded."""
    numbers = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype).view(-1, 64)
    weight, bias = torch.ones(64, dtype=dtype), torch.zeros(64, dtype=dtype)
    ulp = torch.finfo(dtype).eps
    for share in (0, ulp / 2, -ulp / 2, ulp / 4, -ulp / 4, ulp * 0.75):
        addend = (numbers.float() * share).to(dtype)
        with backend("cpu"):
            _, total = ops.add_layer_norm(addend, numbers, weight, bias)
        expected = (numbers.float() + addend.float()).to(dtype)
        if dtype == torch.bfloat16:  # AVX-512's instruction for it makes zeros of subnormal numbers
            subnormal = (expected.abs() < torch.finfo(dtype).tiny) & (total == 0)
            expected = torch.where(subnormal, total, expected)
        torch.testing.assert_close(total, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("isa", backends.cpu.runnable_cpu_isas().split()[1:] if backends.cpu else [])
def test_parity_suite_on_every_instruction_set(isa):
    """The instruction set is chosen once a process, so each of the others gets a process of its own.

    PyTorch's kernels are of another one there, too. They are what the error rule measures by, with errors of their own
    on every processor: what passes by their luck here fails on the next machine. Only sets below those of a processor
    that runs ours are asked for, since PyTorch believes what it is told.
    """
    tests = Path(__file__).parents[1]
    more = "ops/test_quantized_rows.py", "ops/test_cpu.py", "test_products.py"
    files = [tests / file for file in (*suites("cpu"), *more)]
    select = (
        "(test_parity or test_inference or exponential or test_error or packed or stays_in_its_row)"
        " and not every_instruction_set"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", select, *files]
    of_torch = {"x86_64_v4": {"ATEN_CPU_CAPABILITY": "avx2"}, "x86_64_v3": {"ATEN_CPU_CAPABILITY": "default"}}
    environment = os.environ | {"HSTA_CPU_ISA": isa} | of_torch.get(isa, {})  # the baseline meets the processor's own
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def _weights(width: int, square: int) -> list[torch.Tensor]:
    return [t for _ in range(square) for t in (torch.randn(width, width) * width**-0.5, torch.randn(width))]


# A call and its arguments for a batch of 3: those that have a batch dimension, then the rest.
CALLS = {
    # Which deals out each group's queries in two runs where threads are many.
    "space_time_attention of large groups": (
        lambda qkv: ops.space_time_attention(qkv, (2, 400), "space", 2),
        [torch.randn(3, 802, 3, 1, 16)],
        [],
    ),
    "absorbed attention": (
        lambda u, query, tokens, k_bias: AbsorbedAttention.apply(
            u.float(), query, tokens, k_bias, 1e-6, 0.0, None, "cpu"
        ),
        [torch.randn(3, 3, 48), torch.randn(3, 48), torch.randn(3, 197, 48)],
        [torch.randn(48)],
    ),
    "absorbed attention with dropout": (
        lambda u, query, tokens, k_bias: torch.cat(
            [
                result.flatten(1)
                for result in AbsorbedAttention.apply(
                    u.float(), query, tokens, k_bias, 1e-6, 0.25, torch.tensor([1 << 40]), "cpu"
                )
            ],
            dim=1,
        ),
        [torch.randn(3, 3, 48), torch.randn(3, 48), torch.randn(3, 197, 48)],
        [torch.randn(48)],
    ),
    "cross_modal_attention": (
        lambda query, tokens, *weights: ops.cross_modal_attention(query, tokens, *weights, num_heads=3),
        [torch.randn(3, 48), torch.randn(3, 197, 48)],
        [torch.randn(48), torch.randn(48), *_weights(48, 3)],
    ),
    "add_layer_norm": (
        lambda x, residual, *weights: torch.cat(ops.add_layer_norm(x, residual, *weights)),
        [torch.randn(3, 67, 40), torch.randn(3, 67, 40)],
        [torch.randn(40), torch.randn(40)],
    ),
    "bias_gelu": (ops.bias_gelu, [torch.randn(3, 67, 40)], [torch.randn(40)]),
}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_same_bits_for_any_thread_count_and_batch(name, dtype):
    call, samples, weights = CALLS[name]
    grad = name != "cross_modal_attention"  # in training its projections are PyTorch's

    def run(batch: int) -> list[torch.Tensor]:
        """The result; with gradients also those of the samples, and of the weights where these are whole."""
        chosen = [t[:batch].to(dtype, copy=True).requires_grad_(grad) for t in samples]
        rest = [t.to(dtype, copy=True).requires_grad_(grad) for t in weights]
        out = call(*chosen, *rest)
        if grad:
            out.sum().backward()
        return [out.detach(), *(t.grad for t in chosen if grad), *(t.grad for t in rest if grad and batch == 3)]

    threads, expected = torch.get_num_threads(), run(3)
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            for ours, theirs in zip(run(3), expected, strict=True):
                assert torch.equal(ours, theirs), f"{count} threads"
    finally:
        torch.set_num_threads(threads)
    alone = run(1)
    if name != "add_layer_norm":  # whose two results are one above the other
        assert torch.equal(alone[0], expected[0][:1])
    for ours, theirs in zip(alone[1:], expected[1:], strict=False):
        assert torch.equal(ours, theirs[:1])


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("name", ("space_time_attention", "absorbed attention", "add_layer_norm", "bias_gelu"))
def test_large_outputs_hold_the_bits_of_small_ones(name, dtype):
    """Outputs of more than 2 MB go past the caches (csrc/cpu/writer.h); a sample alone is smaller."""
    weight = torch.randn(128)
    calls = {
        "space_time_attention": (
            lambda qkv: ops.space_time_attention(qkv, (4, 49), "time", 1),
            [torch.randn(32, 1 + 4 * 49, 3, 4, 32)],
        ),
        "absorbed attention": (
            lambda u, query, tokens: AbsorbedAttention.apply(u.float(), query, tokens, weight, 1e-6, 0.0, None, "cpu"),
            [torch.randn(32, 3, 128), torch.randn(32, 128), torch.randn(32, 300, 128)],
        ),
        "add_layer_norm": (
            lambda x, residual: torch.cat(ops.add_layer_norm(x, residual, weight.to(x), weight.to(x)), dim=-1),
            [torch.randn(32, 300, 128), torch.randn(32, 300, 128)],
        ),
        "bias_gelu": (lambda x: ops.bias_gelu(x, weight.to(x)), [torch.randn(32, 300, 128)]),
    }
    call, samples = calls[name]

    def run(first: int, last: int) -> list[torch.Tensor]:
        chosen = [t[first:last].to(dtype, copy=True).requires_grad_() for t in samples]
        out = call(*chosen)
        out.backward(torch.ones_like(out))
        return [out.detach(), *(t.grad for t in chosen)]

    whole = run(0, 32)
    assert max(t.nbytes for t in whole) > 2 << 20
    for i in (0, 17, 31):
        for large, small in zip(whole, run(i, i + 1), strict=True):
            assert torch.equal(large[i : i + 1], small)
