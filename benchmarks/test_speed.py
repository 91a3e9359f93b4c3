"""Every case against its contenders.

pytest-benchmark times one function after the other; what we report are ratios, so the contenders take turns in our own
loop (measuring.py). The fixture still times ours, for its own tables and its ``--benchmark-compare``.
"""

from __future__ import annotations

import torch

from benchmarks.case import compare
from benchmarks.conftest import RESULTS


def test_speed(benchmark, make_case, pytestconfig):
    torch._dynamo.reset()  # past eight compilations of one function PyTorch gives up and runs it uncompiled
    case = make_case()
    result = compare(case, pytestconfig.option.hsta_seconds)
    pytestconfig.stash[RESULTS].append(result)
    benchmark.extra_info |= {"best": result.best, "ratio": result.ratio, "share": result.share}
    benchmark.pedantic(case.ours, rounds=3, iterations=1)
