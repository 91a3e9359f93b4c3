"""What the Triton kernels would take on GPUs that are not here.

Writes docs/roofline.md, its picture, and predictions.json beside this file:

    python -m tools.roofline --jobs 2

Kernels whose code has not changed since the last run are not compiled again. Prints what fell by more than 3 %.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import triton

from tools.roofline.machine_code import Code
from tools.roofline.page import write_page
from tools.roofline.record import FILE, Place, compiled, fallen, fingerprints, places, read, rows, write


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="how many kernels to compile at a time")
    options = parser.parse_args()
    version, kept, known, before = read() if FILE.exists() else ("", {}, {}, {})
    unchanged = {
        name for name, now in fingerprints().items() if kept.get(name) == now and version == triton.__version__
    }
    codes: dict[str, Code] = {}
    missing: dict[str, Place] = {}
    for name, (place, launch) in places().items():
        if launch.operator in unchanged and name in known:
            codes[name] = known[name]
        else:
            missing[name] = place
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for name, code in zip(missing, pool.map(compiled, missing.values()), strict=True):
            codes[name] = code
            print(f"{name}: {code.registers} registers{f', {code.spills} SPILLS' if code.spills else ''}", flush=True)
    codes = dict(sorted(codes.items()))
    after = rows(codes)
    for line in fallen(before, after):
        print(f"fell: {line}")
    write(codes, after)
    write_page(codes, after)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
