"""``python -m benchmarks.run``: the same cases and report without pytest-benchmark, for machines that lack it."""

from __future__ import annotations

import argparse
import gc
import re
import time
import traceback
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.case import compare
from benchmarks.cases import cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.4, help="measuring time for each contender of a case")
    parser.add_argument("--budget", type=float, default=float("inf"), help="start no further case after these seconds")
    parser.add_argument("--only", default="", help="only cases whose identifier matches this regular expression")
    parser.add_argument("--json", type=Path, default=report.HERE / "results" / "latest.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    results, failed, start = [], [], time.monotonic()
    for name, make in cases(device, options.quick):
        if not re.search(options.only, name):
            continue
        if time.monotonic() - start > options.budget:
            print(f"{name}: not run, the time budget is spent")
            continue
        try:
            torch._dynamo.reset()  # as in test_speed.py
            results.append(compare(make(), options.seconds))
            print(f"{name}: {results[-1].ratio:.2f}x {results[-1].best}", flush=True)
        except Exception:
            failed.append(name)
            traceback.print_exc()
        gc.collect()
    if results:
        report.write_json(options.json, results, device)
        report.plot(options.json.with_suffix(".png"), results, report.title(device))
        print(report.table(results))
        print(report.machine(device))
    print(f"{len(results)} measured, {len(failed)} failed {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
