"""The arithmetic behind a speed claim, by hand-computed numbers; contenders compute what we compute."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks import ceilings, report
from benchmarks.case import Case, close_to_ours, floor_seconds, judge
from benchmarks.measuring import Timing, interleave, summarize
from benchmarks.operators import add_layer_norm, cross_modal_attention, space_time_attention
from hsta_kernels import ops

CPU = torch.device("cpu")


@pytest.fixture
def known_ceilings(monkeypatch):
    monkeypatch.setattr(ceilings, "copy_bandwidth", lambda device: 100.0)
    monkeypatch.setattr(ceilings, "gemm_rate", lambda device, dtype: 1000.0)


def case(**floor) -> Case:
    return Case("op", "work", torch.float32, CPU, lambda: None, {}, **floor)


def timing(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds, 5)


def test_percentiles():
    assert summarize([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == Timing(3.5, 2.0, 5.0, 6)
    assert summarize([7.0]) == Timing(7.0, 7.0, 7.0, 1)


def test_every_call_takes_turns():
    order: list[str] = []
    calls = {name: partial(order.append, name) for name in "abc"}
    timings = interleave(calls, CPU, 0.0)
    assert order == list("abc") * (len(order) // 3) and len(order) > 3
    assert {t.rounds for t in timings.values()} == {len(order) // 3 - 1}  # the first turn is not timed


def test_the_binding_ceiling_is_the_slower_one(known_ceilings):
    assert floor_seconds(case(bytes=200, flops=1000)) == ("copy bandwidth", 2.0)
    assert floor_seconds(case(bytes=200, flops=5000)) == ("GEMM rate", 5.0)


def test_ratio_is_against_the_fastest_contender(known_ceilings):
    timings = {"ours": timing(4.0), "slow": timing(9.0), "fast": timing(6.0), "part": timing(2.0)}
    subject = case(bytes=200)
    subject.limit = "part"
    result = judge(subject, timings)
    assert (result.best, result.ratio, result.share) == ("fast", 1.5, 0.5)
    assert result.limit_ratio == 2.0 and "part" not in result.contenders
    assert "**1.50x**" in report.table([result]) and "2.00x part" in report.table([result])


def test_a_contender_that_computes_something_else_is_refused():
    ours = torch.randn(1000)
    close_to_ours("same", ours + 1e-4 * torch.randn(1000), ours)
    close_to_ours("noise where we have zero", torch.full((3,), 1e-9), torch.zeros(3))
    with pytest.raises(AssertionError, match="contender wrong disagrees"):
        close_to_ours("wrong", ours * 1.01, ours)


@pytest.mark.parametrize("axis", ("time", "space", "joint"))
def test_attention_contenders_agree(axis):
    qkv = torch.randn(2, 1 + 3 * 5, 3, 2, 8)
    expected = ops.space_time_attention(qkv, (3, 5), axis, 1)
    attends = [torch.nn.functional.scaled_dot_product_attention, space_time_attention.broadcast_attend]
    for attend in attends:
        close_to_ours("grouped", space_time_attention.grouped(attend, qkv, (3, 5), axis, 1), expected)


def test_other_contenders_agree():
    width = 24
    shapes = [(2, width), (2, 7, width), (width,), (width,), *[(width, width), (width,)] * 3]
    inputs = [torch.randn(shape) for shape in shapes]
    for name, contender in cross_modal_attention.contenders().items():
        if "compiled" not in name:
            close_to_ours(name, contender(*inputs), ops.cross_modal_attention(*inputs, num_heads=12))
    inputs = [torch.randn(shape) for shape in ((6, width), (6, width), (width,), (width,))]
    for name, contender in add_layer_norm.contenders().items():
        if "compiled" not in name:
            close_to_ours(name, contender(*inputs), ops.add_layer_norm(*inputs))
