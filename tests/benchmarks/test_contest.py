"""The arithmetic behind a speed claim, by hand-computed numbers; contenders compute what we compute."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks import report
from benchmarks.case import Case, backward_call, close_to_ours
from benchmarks.contest import contest, floor_seconds, judge
from benchmarks.measuring import OutOfTime, Timing, interleave, summarize
from benchmarks.operators import add_layer_norm, cross_modal_attention, space_time_attention
from benchmarks.record import Results, read
from hsta_kernels import ops

CPU = torch.device("cpu")


def case(contenders=None, **more) -> Case:
    return Case("op", "work", torch.float32, CPU, **{"ours": lambda: None, "contenders": contenders or {}} | more)


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
    assert {t.rounds for t in timings.values()} == {len(order) // 3}


def test_the_binding_ceiling_is_the_slower_one(known_ceilings):
    assert floor_seconds(case(bytes=200, flops=1000)) == ("copy bandwidth", 2.0)
    assert floor_seconds(case(bytes=200, flops=5000)) == ("GEMM rate", 5.0)


def test_ratio_is_against_the_fastest_contender(known_ceilings):
    timings = {"ours": timing(4.0), "slow": timing(9.0), "fast": timing(6.0), "part": timing(2.0)}
    result = judge("name", case(bytes=200, limit="part"), timings, {"peak": 0.5}, {"absent": "not installed"})
    assert (result.best, result.ratio, result.share) == ("fast", 1.5, 0.5)
    assert result.limit_ratio == 2.0 and "part" not in result.contenders
    table = report.table(Results({}, [result], {"other": "no time"}))
    assert "| **1.50x** | 50 % of copy bandwidth, 2.00x part, peak 0.50x |" in table
    assert table.endswith("Left out:\n\n- other: no time\n- name, without absent: not installed")


@pytest.mark.parametrize(("compiled", "ratio"), [(2.0, 3.0), (5.0, 1.5)])
def test_the_faster_way_of_running_ours_counts(compiled, ratio, known_ceilings, tmp_path):
    timings = {"ours": timing(4.0), "compiled": timing(compiled), "eager": timing(6.0)}
    result = judge("name", case(ways={"compiled": lambda: None}), timings, {}, {})
    assert (result.best, result.ratio, set(result.contenders)) == ("eager", ratio, {"eager"})
    if compiled < 4:
        assert (result.facts, result.ways) == ({"ours": "compiled"}, {"ours": timing(4.0)})
    else:
        assert (result.facts, result.ways) == ({}, {"compiled": timing(5.0)})
    Results({}, [result]).write(tmp_path / "run.json")
    assert read(tmp_path / "run.json").results == [result]


def test_a_way_of_running_ours_is_no_contender(known_ceilings, clock):
    with pytest.raises(OutOfTime, match="no contender"):
        contest("name", case({}, ways={"compiled": clock.taking(1)}, ours=clock.taking(1)), 0.1, 30.0, clock)


def test_slow_calls_have_time_for_a_round(known_ceilings, clock):
    """One that compiles for as long as it may takes the others' time to get ready, not that of their rounds."""
    slow = case({"slow": clock.taking(2.0), "compiled": clock.taking(1000.0)}, ours=clock.taking(1.0))
    result = contest("slow", slow, 0.1, until=60.0, clock=clock)
    assert result.ours.rounds >= 1 and set(result.left_out) == {"compiled"}
    assert clock.now <= 60.0


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


def test_a_backward_pass_is_the_call_and_its_forward_pass_runs_once():
    forwards = []

    def square(x):
        forwards.append(x)
        return x * x

    call = backward_call(square, [torch.tensor([3.0])], [torch.tensor([1.0])])
    assert not forwards
    assert call() == call() == (torch.tensor([6.0]),)
    assert len(forwards) == 1


def test_what_does_not_run_here_is_left_out_by_name(known_ceilings):
    def absent():
        raise ImportError("No module named 'absent'\nand more")

    def refused():
        raise RuntimeError("no kernel")

    result = contest("name", case({"eager": lambda: None, "absent": absent, "refused": refused}), 0.0)
    assert result.left_out == {"absent": "ImportError: No module named 'absent'", "refused": "RuntimeError: no kernel"}
    assert result.best == "eager" and set(result.contenders) == {"eager"}


def test_a_contender_that_finds_no_time_is_left_out_and_the_others_are_timed(known_ceilings, clock):
    calls = {"quick": clock.taking(1), "compiled": clock.taking(60, then=1), "late": clock.taking(1)}
    result = contest("name", case(calls, ours=clock.taking(1)), 5.0, 30.0, clock)
    assert result.left_out == {"compiled": "not ready in the time there was", "late": "not ready in the time there was"}
    assert set(result.contenders) == {"quick"}


def test_a_case_that_cannot_end_has_no_result(known_ceilings, clock):
    with pytest.raises(OutOfTime):
        contest("name", case({"eager": clock.taking(1)}, ours=clock.taking(100)), 5.0, 30.0, clock)
    with pytest.raises(OutOfTime, match="no contender to compare with \\(eager: not ready"):
        contest("name", case({"eager": clock.taking(100)}, ours=clock.taking(1)), 5.0, clock() + 30.0, clock)


def test_slow_calls_are_repeated_less(clock):
    both = {"ours": clock.taking(1), "theirs": clock.taking(1)}
    assert interleave(both, CPU, 10.0, clock() + 1000, clock)["ours"].rounds == 10  # 10 seconds each
    assert interleave(both, CPU, 1.0, clock() + 1000, clock)["ours"].rounds == 5  # more than its seconds: five at least
    assert interleave(both, CPU, 1.0, clock() + 5, clock)["ours"].rounds == 2  # the third did not end in time


def test_figures_besides_time_are_left_out_too(known_ceilings, clock):
    subject = case(
        {"eager": clock.taking(1)}, ours=clock.taking(1), notes={"peak": lambda: 0.5, "late": clock.taking(99)}
    )
    result = contest("name", subject, 1.0, 40.0, clock)
    assert result.notes == {"peak": 0.5} and list(result.left_out) == ["late"]
