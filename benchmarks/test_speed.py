"""Every case against its contenders.

pytest-benchmark times one function after the other; what we report are ratios, so the contenders take turns in our own
loop. The fixture has what ours took there, for its own tables and its ``--benchmark-compare``.
"""

from __future__ import annotations

import pytest

from benchmarks.case import Case
from benchmarks.conftest import RUN


def test_speed(benchmark, work, pytestconfig):
    def time_ours(case: Case) -> None:
        benchmark.pedantic(case.ours, rounds=3)

    result = pytestconfig.stash[RUN].measure(work, time_ours)
    if isinstance(result, str):
        pytest.skip(result)
    benchmark.extra_info |= {"best": result.best, "ratio": result.ratio, "share": result.share}
