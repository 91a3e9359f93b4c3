"""One case decided: every contender is checked against ours, then all of them are timed in turns."""

from __future__ import annotations

import time

from benchmarks import ceilings, gpu_timing
from benchmarks.case import Case
from benchmarks.measuring import Call, Clock, OutOfTime, Timing, interleave, interrupted_after
from benchmarks.record import Result

NO_TIME = "not ready in the time there was"


def floor_seconds(case: Case) -> tuple[str, float]:
    """Which ceiling binds, and the seconds the work takes at it."""
    moving = case.bytes / ceilings.copy_bandwidth(case.device) if case.bytes else 0.0
    computing = case.flops / ceilings.gemm_rate(case.device, case.dtype) if case.flops else 0.0
    return ("copy bandwidth", moving) if moving >= computing else ("GEMM rate", computing)


def contest(
    name: str, case: Case, seconds_each: float, until: float = float("inf"), clock: Clock = time.monotonic
) -> Result:
    """The result of a case that has to be done when `clock` says `until`.

    Contenders get ready one after the other, and leave `seconds_each` for every call's rounds, more where a call takes
    longer, at most a third of the time; a contender for which no time was left, or that does not run here, is left out
    by name.

    Raises:
        OutOfTime: there was not even time for ours and one contender.
        AssertionError: a contender computes something else.
    """
    with gpu_timing.capturable(case.device):
        return _contest(name, case, seconds_each, until, clock)


def _contest(name: str, case: Case, seconds_each: float, until: float, clock: Clock) -> Result:
    start = clock()
    third = max(0.0, until - start) / 3
    with interrupted_after(2 * third):
        expected = case.ours()
    # Of slow calls not one round would be complete in `seconds_each`: two of them, as far as ours tells.
    each = max(seconds_each, 2 * (clock() - start))
    rounds = min(each * (1 + len(case.ways) + len(case.contenders)), third)
    ready_by = until - rounds
    calls: dict[str, Call] = {"ours": case.ours}
    left_out: dict[str, str] = {}
    for contender, call in {**case.ways, **case.contenders}.items():
        if clock() >= ready_by:
            left_out[contender] = NO_TIME
            continue
        try:
            with interrupted_after(ready_by - clock()):
                theirs = call()
        except OutOfTime:
            left_out[contender] = NO_TIME
        except (ImportError, RuntimeError) as error:
            left_out[contender] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
        else:
            calls[contender] = call
            if case.check is not None and contender != case.limit:
                case.check(contender, theirs, expected)
    if not calls.keys() - {"ours", case.limit, *case.ways}:
        reasons = "; ".join(f"{contender}: {reason}" for contender, reason in left_out.items())
        raise OutOfTime(f"no contender to compare with ({reasons})")
    # What could not be interrupted in time is paid for by later cases, not by this one's rounds.
    timings = interleave(calls, case.device, seconds_each, max(until, clock() + rounds), clock)
    notes = {}
    for note, measure in case.notes.items():
        try:
            with interrupted_after(until - clock()):
                notes[note] = measure()
        except OutOfTime:
            left_out[note] = NO_TIME
        except RuntimeError as error:  # the times are in hand
            left_out[note] = str(error)
    return judge(name, case, timings, notes, left_out)


def judge(
    name: str, case: Case, timings: dict[str, Timing], notes: dict[str, float], left_out: dict[str, str]
) -> Result:
    ways = {way: timings[way] for way in ("ours", *case.ways) if way in timings}
    fastest = min(ways, key=lambda way: ways[way].p50)
    ours = ways.pop(fastest)
    rivals = {rival: timing for rival, timing in timings.items() if rival not in ("ours", *case.ways, case.limit)}
    best = min(rivals, key=lambda rival: rivals[rival].p50)
    ceiling, seconds = floor_seconds(case)
    return Result(
        name=name,
        operator=case.operator,
        work=case.work,
        dtype=str(case.dtype).removeprefix("torch."),
        device=str(case.device),
        ours=ours,
        contenders=rivals,
        best=best,
        ratio=rivals[best].p50 / ours.p50,
        ceiling=ceiling if seconds else "",
        share=seconds / ours.p50,
        limit=case.limit,
        limit_ratio=ours.p50 / timings[case.limit].p50 if case.limit in timings else None,
        notes=notes,
        left_out=left_out,
        facts={**case.facts} | ({} if fastest == "ours" else {"ours": fastest}),
        ways=ways,
    )
