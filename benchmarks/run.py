"""A run: every case in its turn, within a time limit, each result written as it comes.

python -m benchmarks.run                    # everything, in 20 minutes
python -m benchmarks.run --quick            # a few cases, in 3
python -m benchmarks.run --resume           # goes on with what an interrupted run has not measured
pytest benchmarks/ --benchmark-only         # the same, with the same options, under pytest-benchmark

A case has its part of the time. Contenders that are not compiled by then, and cases that do not end, are left out by
name, in the table and in the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks import model, operators, patched, record, report
from benchmarks.budget import Budget
from benchmarks.case import Case, Work
from benchmarks.contest import contest
from benchmarks.measuring import Clock, OutOfTime, interrupted_after
from benchmarks.record import Result, Results

# Apart by instruction set: inductor takes what it made for another, if it finds it, and that writes past its memory.
COMPILED = Path(__file__).resolve().parents[1] / "build" / "inductor" / torch.backends.cpu.get_cpu_capability()


def add_options(add: Callable[..., Any]) -> None:
    """The options of a run, to argparse or pytest."""
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add("--quick", action="store_true", help="a few cases, the model with fewer blocks")
    add("--minutes", type=float, help="for all cases together: 18, or 2.5 for --quick")
    add("--seconds", type=float, default=0.4, help="measuring time for each contender of a case")
    add("--only", default="", help="only cases whose name matches this regular expression")
    add("--contenders", default="", help="only contenders whose name matches this regular expression")
    add("--json", type=Path, default=record.FOLDER / "latest.json", help="where the results go")
    add("--resume", action="store_true", help="keep the results that the file has, and measure the others")


def _set_up_compiler(device: torch.device, seconds: float) -> None:
    """What the first compilation on a machine costs besides (headers precompiled, instruction sets tried)."""
    importlib.import_module("torch._inductor.compile_fx")  # half imported, by an interruption, it would be of no use
    with suppress(OutOfTime), interrupted_after(seconds):
        torch.compile(lambda x: x + 1, dynamic=False)(torch.ones(8, device=device))


def works(device: torch.device, quick: bool) -> Iterator[Work]:
    yield from operators.works(device, quick)
    yield from model.works(device, quick)
    yield from patched.works(device, quick)


class Run:
    """What the two entry points share.

    Args:
        options: as `add_options` has them.
        everything: the cases to choose from.
        say: is given a line after each case.
        clock: seconds that only grow.

    Raises:
        ValueError: to be resumed is a file of another machine, or of other versions.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        everything: Iterator[Work] | None = None,
        say: Callable[[str], None] = print,
        clock: Clock = time.monotonic,
    ) -> None:
        # What contenders compile is kept between runs.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(COMPILED))
        self.device, self.path, self._seconds = torch.device(options.device), options.json, options.seconds
        found = works(self.device, options.quick) if everything is None else everything
        chosen = [w for w in found if re.search(options.only, w.name) and (options.only or not w.on_request)]
        minutes = (2.5 if options.quick else 18) if options.minutes is None else options.minutes
        self._say, self._clock = say, clock
        end = clock() + 60 * minutes
        self.file = self._opened(options.resume)
        had = {result.name for result in self.file.results}
        self.works = [work for work in chosen if work.name not in had]
        self._budget = Budget(end, {work.name: work.weight for work in self.works}, clock)
        self._contenders = options.contenders
        if self.works and re.search(self._contenders, "compiled"):
            _set_up_compiler(self.device, self._budget.left / 4)
        if len(self.works) < len(chosen):
            say(f"{len(chosen) - len(self.works)} of {len(chosen)} cases are in {self.path.name} already")

    def _opened(self, resume: bool) -> Results:
        missing = operators.missing()
        if not (resume and self.path.exists()):
            return Results(record.machine(self.device), left_out=missing)
        file = record.read(self.path)
        for fact, here in record.identity(self.device).items():
            if file.machine.get(fact) != here:
                raise ValueError(f"{self.path} cannot be resumed: its {fact} is {file.machine.get(fact)}, here {here}")
        return Results(file.machine, file.results, missing)

    def measure(self, work: Work, afterwards: Callable[[Case], object] = lambda case: None) -> Result | str:
        """The result of one of `works`, or why there is none. Either is in the file then.

        `afterwards` is called with a case that has a result.

        Raises:
            AssertionError: a contender computes something else.
        """
        until = self._budget.begin(work.name)
        seconds = max(0.0, until - self._clock())
        outcome: Result | str
        try:
            torch._dynamo.reset()  # past eight compilations of one function PyTorch gives up and runs it uncompiled
            with interrupted_after(seconds):
                case = self._among(work.make())
            outcome = contest(work.name, case, self._seconds, until, self._clock)
        except OutOfTime as error:
            outcome = f"not ready in the {seconds:.0f} s there were for it{f': {error}' if str(error) else ''}"
        except BaseException as error:
            self._note(work, f"failed: {type(error).__name__}: {error}")
            raise
        self._note(work, outcome)
        if isinstance(outcome, Result):
            afterwards(case)
        return outcome

    def _among(self, case: Case) -> Case:
        """The case with those of its contenders that take part."""
        taken = {n: call for n, call in case.contenders.items() if n == case.limit or re.search(self._contenders, n)}
        return dataclasses.replace(case, contenders=taken)

    def _note(self, work: Work, outcome: Result | str) -> None:
        if isinstance(outcome, str):
            self.file.left_out[work.name] = outcome
            line = outcome
        else:
            self.file.results.append(outcome)
            without = f" (without {', '.join(outcome.left_out)})" if outcome.left_out else ""
            line = f"{outcome.ratio:.2f}x {outcome.best}{without}"
        self.file.write(self.path)
        done = len(self.works) - self._budget.waiting
        minutes, seconds = divmod(int(self._budget.left), 60)
        self._say(f"[{done}/{len(self.works)}, {minutes}:{seconds:02} left] {work.name}: {line}")

    def finish(self) -> str:
        """The report, also drawn into a picture beside the file, where there is Matplotlib."""
        text = report.table(self.file)
        if self.file.results:
            text += f"\n\nwritten: {self.path}"
            if importlib.util.find_spec("matplotlib") is None:
                return f"{text}; without a picture: Matplotlib is not installed"
            report.picture(self.file, self.path.with_suffix(".png"))
            text += f" and {self.path.with_suffix('.png').name}"
        return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser.add_argument)
    try:
        run = Run(parser.parse_args(), say=lambda line: print(line, flush=True))
    except ValueError as error:
        parser.error(str(error))
    failed = 0
    for work in run.works:
        try:
            run.measure(work)
        except Exception:
            failed += 1
            traceback.print_exc()
        gc.collect()  # the inputs of a finished case
    print(run.finish())
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
