"""A run ends in its time, loses nothing, goes on where it was; its file says everything that the report says."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path

import pytest
import torch

from benchmarks import compare, operators, record, report, run
from benchmarks.budget import Budget
from benchmarks.case import Case, Work
from benchmarks.measuring import OutOfTime, Timing, interrupted_after
from benchmarks.record import Result, Results, read
from hsta_kernels import backends

CPU = torch.device("cpu")


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    run.add_options(parser.add_argument)
    return parser.parse_args(["--device", "cpu", "--json", str(tmp_path / "run.json"), "--seconds", "1"])


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, known_ceilings: None) -> None:
    monkeypatch.setattr(run, "_set_up_compiler", lambda device, seconds: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "not used")


def work(name: str, clock, seconds: float = 1.0, weight: float = 1.0) -> Work:
    contenders = {"eager": clock.taking(2 * seconds)}
    return Work(name, lambda: Case("op", name, torch.float32, CPU, clock.taking(seconds), contenders), weight)


def measured(a_run: run.Run) -> None:
    for each in a_run.works:
        a_run.measure(each)


def test_time_goes_by_weight_and_what_is_saved_goes_to_the_others(clock):
    budget = Budget(100.0, {"a": 1, "b": 1, "model": 2}, clock)
    assert budget.begin("a") == 25.0
    clock.spend(10.0)
    assert budget.begin("b") == 10.0 + 90.0 / 3
    clock.spend(50.0)  # 20 too many
    assert budget.begin("model") == 100.0 and budget.waiting == 0
    clock.spend(100.0)
    assert budget.left == 0.0


def test_the_alarm_goes_through_and_is_put_back():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(OutOfTime), interrupted_after(1000.0):
        try:
            signal.raise_signal(signal.SIGALRM)
        except Exception:  # as compilers have it
            pytest.fail("it was swallowed")
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_run_ends_in_time_whatever_its_cases_take(clock, options):
    options.minutes = 10
    works = [work(f"w{i}", clock, 10.0**i) for i in range(5)]
    said: list[str] = []
    a_run = run.Run(options, iter(works), said.append, clock)
    measured(a_run)
    assert clock() <= 600.0
    file = read(options.json)
    assert [result.name for result in file.results] == ["w0", "w1"]
    assert set(file.left_out) == {"w2", "w3", "w4"}
    assert said[0].startswith("[1/5, ") and "left] w0: " in said[0]
    assert "w4: not ready in the " in said[-1]


def test_an_interrupted_run_loses_nothing_and_is_resumed(clock, options):
    def interrupt() -> Case:
        raise KeyboardInterrupt

    works = [work("first", clock), Work("second", interrupt), work("third", clock)]
    with pytest.raises(KeyboardInterrupt):
        measured(run.Run(options, iter(works), print, clock))
    assert [result.name for result in read(options.json).results] == ["first"]

    options.resume = True
    works[1] = work("second", clock)
    said: list[str] = []
    again = run.Run(options, iter(works), said.append, clock)
    assert said == ["1 of 3 cases are in run.json already"]
    measured(again)
    file = read(options.json)
    assert [result.name for result in file.results] == ["first", "second", "third"] and not file.left_out
    assert "| op | third | float32 |" in again.finish()
    assert options.json.with_suffix(".png").stat().st_size > 1000


def test_another_machines_file_is_not_resumed(clock, options):
    measured(run.Run(options, iter([work("first", clock)]), print, clock))
    content = json.loads(options.json.read_text())
    content["machine"]["torch"] = "1.0"
    options.json.write_text(json.dumps(content))
    options.resume = True
    with pytest.raises(ValueError, match=r"run.json cannot be resumed: its torch is 1.0, here 2\."):
        run.Run(options, iter([]), print, clock)


def test_a_failed_case_is_in_the_file_too(clock, options):
    def fail() -> Case:
        raise AssertionError("contender wrong disagrees")

    with pytest.raises(AssertionError):
        measured(run.Run(options, iter([Work("bad", fail)]), print, clock))
    assert read(options.json).left_out == {"bad": "failed: AssertionError: contender wrong disagrees"}


def test_only_and_quick_choose(options):
    everything = [each.name for each in run.works(CPU, False)]
    assert len(everything) == len(set(everything))
    quick = {each.name for each in run.works(CPU, True)}
    assert quick <= set(everything) and not any(name.endswith("bf16") for name in quick)
    options.only = "bias_gelu.*fp32"
    chosen = [each.name for each in run.Run(options, say=print).works]
    assert chosen == ["bias_gelu-fwd-fp32", "bias_gelu-bwd-fp32"]


def test_every_operator_has_its_file_and_one_without_is_named(monkeypatch):
    assert operators.missing() == {}
    names = {each.name.split("-")[0] for each in operators.works(CPU, False)}
    assert names == backends.OPERATORS.keys()
    monkeypatch.setitem(backends.OPERATORS, "new", None)
    assert operators.missing() == {"new": "there is no benchmarks/operators/new.py"}
    assert names == {each.name.split("-")[0] for each in operators.works(CPU, True)}


KEPT = sorted(path for path in record.FOLDER.glob("*.json") if path.stem != "latest")


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_results_that_are_kept_are_read_and_are_of_cases_that_there_are(path):
    file = read(path)
    assert {result.name for result in file.results} <= {each.name for each in run.works(CPU, False)}
    assert {"date", "device", "instruction_set", "torch"} <= file.machine.keys()
    assert len(report.table(file).splitlines()) >= 2 + len(file.results)


def test_a_file_that_is_none_is_refused_by_name(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"results": []}')
    with pytest.raises(ValueError, match=r"x\.json is no file of benchmarks\.run: KeyError: 'machine'"):
        read(path)


def result(name: str, ours: tuple[float, float, float], rounds: int = 5, **contenders: float) -> Result:
    low, middle, high = ours
    rivals = {rival: Timing(seconds, seconds, seconds, rounds) for rival, seconds in contenders.items()}
    best = min(contenders, key=contenders.__getitem__)
    return Result(
        name, "op", name, "float32", "cpu", Timing(middle, low, high, rounds), rivals, best, 1.0, "", 0, None, None
    )


def test_only_what_lies_outside_of_both_spreads_is_flagged():
    a = [result(name, (0.9, 1.0, 1.1), eager=4.0, best=2.0) for name in ("same", "slower", "faster", "gone", "few")]
    b = [
        result("same", (1.0, 1.15, 1.3), eager=4.0, best=2.0),
        result("slower", (1.2, 1.3, 1.4), eager=4.0, best=2.0),
        result("faster", (0.6, 0.7, 0.8), eager=1.0, best=2.0),  # eager became fast too: another matter
        result("few", (9.0, 9.0, 9.0), rounds=2, eager=4.0, best=2.0),
    ]
    text, slower = compare.table(Results({}, a), Results({}, b))
    said = {row.split(" | ")[0]: row.split(" | ")[-1] for row in text.splitlines() if "best" in row}
    assert said == {"| same": " |", "| slower": "slower |", "| faster": "faster |", "| few": "fewer than 5 rounds |"}
    assert slower == 1
    assert "| slower | best | 2.00 [1.82, 2.22] | 1.54 [1.43, 1.67] | slower |" in text
    assert "Only in A: gone" in text


def test_contenders_are_chosen_by_name(clock, options):
    options.contenders = "^(?!compiled)"
    calls = {name: clock.taking(1) for name in ("eager", "compiled eager")}
    case = Case("op", "w", torch.float32, CPU, clock.taking(1), calls)
    measured(run.Run(options, iter([Work("w", lambda: case)]), print, clock))
    assert set(read(options.json).results[0].contenders) == {"eager"}


def test_without_matplotlib_there_is_no_picture_and_all_else(clock, options, monkeypatch):
    a_run = run.Run(options, iter([work("first", clock)]), print, clock)
    measured(a_run)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert a_run.finish().endswith(f"written: {options.json}; without a picture: Matplotlib is not installed")
