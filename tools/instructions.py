"""Instructions that a call of each operator takes, counted by valgrind: a measure that no other load changes.

    python -m tools.instructions            # compares with tools/instructions.json; exits with 1 where something grew
    python -m tools.instructions --write    # rewrites it, when a change is meant

One thread, float32, the sizes of `benchmarks.run --quick`, and AVX2, which is the most that valgrind knows. `kernels`
are the instructions in our own library, `call` all of the call, with PyTorch's and Python's. Fewer instructions are not
always faster: this sees what grew by mistake, not what is best.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")
TOLERANCE = 0.01  # what differs from run to run is far below
INSTRUCTION_SET = "x86_64_v3"
# Valgrind's requests are macros of its header.
_CLIENT = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; }
void stop(void) { CALLGRIND_STOP_INSTRUMENTATION; }
void dump(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }
"""

Counts = dict[str, dict[str, int]]


def parse(text: str) -> tuple[str, dict[str, int]]:
    """The name given to a dump of callgrind's, and its instructions: in our library, and all."""
    name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
    objects: dict[str, str] = {}
    current, calling = "", False
    counts = {"kernels": 0, "call": 0}
    for line in text.splitlines():
        found = re.match(r"c?ob=(\(\d+\))(?: (.*))?$", line)
        if found:
            objects.setdefault(found[1], found[2] or "")  # named where it comes first
            current = current if line.startswith("c") else objects[found[1]]
        elif line.startswith("calls="):
            calling = True
        elif re.match(r"[0-9+*-]", line):
            if not calling:  # the line after `calls=` has what was called, which has its own lines
                cost = int(line.split()[1])
                counts["call"] += cost
                counts["kernels"] += cost if Path(current).name.startswith("_cpu.") else 0
            calling = False
    return name[1] if name else "", counts


def count(only: str = "") -> Counts:
    """By case of the benchmarks whose name matches `only`.

    Raises:
        RuntimeError: valgrind or a C compiler is missing, or the run failed.
    """
    for tool in ("valgrind", "cc"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"instructions are counted with {tool}, which is not installed")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "client.c", Path(folder) / "client.so"
        source.write_text(_CLIENT)
        built = subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], capture_output=True, text=True)
        if built.returncode:
            raise RuntimeError(f"valgrind's header is missing (its -dev or -devel package):\n{built.stderr}")
        out = Path(folder) / "callgrind.out"
        command = [
            "valgrind",
            "--tool=callgrind",
            "--instr-atstart=no",
            "--dump-line=no",
            f"--callgrind-out-file={out}",
        ]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        done = subprocess.run(
            [*command, sys.executable, "-m", "tools.instructions", "--within", str(library), "--only", only],
            env={**os.environ, **threads, "HSTA_CPU_ISA": INSTRUCTION_SET, "HSTA_BACKEND": "cpu"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"valgrind exited with {done.returncode}:\n{done.stderr[-2000:]}")
        dumps = [parse(path.read_text()) for path in Path(folder).glob("callgrind.out.*")]
    return {name: counts for name, counts in sorted(dumps) if name}


def run_within(library: str, only: str) -> None:
    """What valgrind runs: every case once for what a first call does besides, and once counted."""
    import torch

    from benchmarks.operators import works

    client = ctypes.CDLL(library)
    torch.compile = lambda function, **options: function  # contenders are not called, and the compiler's import is long
    for work in works(torch.device("cpu"), quick=True):
        if re.search(only, work.name):
            call = work.make().ours
            call()
            client.start()
            call()
            client.stop()
            client.dump(work.name.encode())


def versions() -> dict[str, str]:
    """With others than these the counts are others, too."""
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "instruction_set": INSTRUCTION_SET}


def compare(before: Counts, after: Counts) -> tuple[list[str], bool]:
    """A line for each case, and whether one takes more instructions than the tolerance lets it."""
    lines, grew = [], False
    for name, counts in after.items():
        said = []
        for what, now in counts.items():
            then = before.get(name, {}).get(what)
            change = "new" if then is None else f"{100 * (now / max(then, 1) - 1):+.2f} %"
            grew |= then is not None and now > then * (1 + TOLERANCE)
            said.append(f"{what} {now:,} ({change})")
        lines.append(f"{name}: {', '.join(said)}")
    return lines, grew


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="rewrite the file")
    parser.add_argument("--only", default="", help="only cases whose name matches this regular expression")
    parser.add_argument("--within", help=argparse.SUPPRESS)  # this process is the one under valgrind
    options = parser.parse_args()
    if options.within:
        run_within(options.within, options.only)
        return 0
    if not FILE.exists() and not options.write:
        parser.error(f"there is no {FILE.name} to compare with: --write makes one")
    kept: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"versions": {}, "cases": {}}
    try:
        found = count(options.only)
    except RuntimeError as error:
        parser.error(str(error))
    lines, grew = compare(kept["cases"], found)
    print("\n".join(lines))
    if options.write:
        FILE.write_text(json.dumps({"versions": versions(), "cases": {**kept["cases"], **found}}, indent=1) + "\n")
        return 0
    if kept["versions"] != versions():
        print(f"The file is of {kept['versions']}, these counts are of {versions()}: what differs may be theirs")
    return 1 if grew else 0


if __name__ == "__main__":
    raise SystemExit(main())
