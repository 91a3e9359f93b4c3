"""What only a machine with an NVIDIA GPU shows, in three parts of at most nine minutes each.

    python tools/gpu_check.py right   # builds, with CUDA if nvcc is there; parity, spills, compute-sanitizer
    python tools/gpu_check.py tune    # chooses the Triton kernels' configurations anew, for the Triton found there
    python tools/gpu_check.py fast    # benchmarks, bfloat16 first; counters of eight kernels

Uses the Python and the packages it finds (PYTHON names another one) and fetches nothing. Every step has a limit of its
own, and no more than what is left of its part; what had no time, and what is not installed, is named. In $OUT
(benchmarks/results/gpu-check) a part leaves PART.log and, from its first step on, PART.json, whoever kills it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 9.0  # of a part; the steps' limits are for these
# The folders whose tests need a GPU: others need packages of the frontend to be imported at all. Hypothesis is a
# package of its own, too.
OPERATORS = ("--ignore=tests/ops/test_hypothesis.py", "tests/ops")
COUNTERS = (
    "gpu__time_duration.sum",
    "dram__bytes.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "launch__registers_per_thread",
)
COUNTED = (
    "time_forward", "time_backward", "flash_forward", "group_backward", "absorbed_forward", "absorbed_backward",
    "add_layer_norm_backward", "bias_gelu_forward",
)  # fmt: skip
LAUNCHED = (
    "import torch; from tools.ahead_of_time import absorbed_attention, attention, gelu, norm\n"
    "for case in (attention('time', 8, 196, 1, 64), attention('space', 8, 196, 1, 64), absorbed_attention(588, 768),\n"
    "             norm(37696, 768), gelu(37696, 3072, 0.0)):\n"
    "    case(torch.bfloat16, 'cuda')\n"
)

# Tests without a GPU are skipped: that there is one is a step of its own.
HERE = (
    "import pathlib, shutil, subprocess, torch, triton\n"
    "print('PyTorch', torch.__version__, 'CUDA', torch.version.cuda, 'Triton', triton.__version__, flush=True)\n"
    "bundled = pathlib.Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'ptxas'\n"
    "for ptxas in (bundled, shutil.which('ptxas')):\n"
    "    if ptxas: subprocess.run([ptxas, '--version'])\n"
    "if not torch.cuda.is_available(): raise SystemExit('PyTorch sees no GPU')\n"
    "print(torch.cuda.get_device_properties(0))\n"
)


@dataclass(frozen=True)
class Step:
    """A command, in which {minutes} becomes what it may take and still end by itself.

    `limit` is in seconds; `missing` says why it cannot run here, `counts` whether its failure is one of the part.
    """

    name: str
    limit: float
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""
    counts: bool = True


@dataclass
class Outcome:
    """A line of the summary. `exit` is negative for a signal, None where the step was not run or did not end."""

    step: str
    state: str
    seconds: float = 0.0
    exit: int | None = None
    limit: float = 0.0


class Stopped(BaseException):
    """From outside, by a signal."""


class Machine:
    """What is there: programs, as paths or None, and modules of the Python that runs the steps."""

    def __init__(self) -> None:
        self.python = os.environ.get("PYTHON") or sys.executable
        self.nvcc, self.ptxas, self.ncu = map(shutil.which, ("nvcc", "ptxas", "ncu"))
        self.sanitizer = shutil.which("compute-sanitizer")
        self.jobs = str(min(16, os.cpu_count() or 1))
        asked = subprocess.run([self.python, "-c", "import xdist"], capture_output=True, check=False)
        self.xdist = asked.returncode == 0

    def pytest(self, marks: str, *arguments: str, spread: bool = True) -> tuple[str, ...]:
        """Spread over processes where pytest-xdist is there. A test's name is printed when it ends."""
        processes = ("-n", "12", "--dist", "worksteal") if spread and self.xdist else ()
        options = ("-v", "-p", "no:cacheprovider", "--durations", "10", *processes)
        return (self.python, "-m", "pytest", "-m", marks, *options, *arguments)


def needed(program: str, path: str | None) -> str:
    return "" if path else f"{program} is not installed"


def begin(machine: Machine) -> list[Step]:
    """Of every part: each may find a bare machine."""
    return [
        Step("machine", 30, (machine.python, "-c", HERE)),
        Step(
            "build",
            150,
            (machine.python, "setup.py", "build_ext", "--inplace"),
            {"HSTA_BUILD_CUDA": "1" if machine.nvcc else "0"},
        ),
        Step("info", 20, (machine.python, "-m", "hsta_kernels.info")),
    ]


def right(machine: Machine, out: Path) -> list[Step]:
    real_shapes = machine.pytest("gpu", "tests/triton/test_real_shapes.py")
    # Compiled kernels are kept by the assembler's version; a folder of its own needs no trust in that.
    names = ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH")
    with_toolkit = dict.fromkeys(names, machine.ptxas or "") | {
        "TRITON_CACHE_DIR": str(ROOT / "build" / "triton-toolkit-ptxas")
    }
    no_nvcc = needed("nvcc", machine.nvcc)
    no_sanitizer = needed("compute-sanitizer", machine.sanitizer)
    cuda = ("-k", "not sanitizer and not triton", "tests/cuda", "tests/cuda_on_host", *OPERATORS)
    others = ("-k", "not sanitizer and not cuda", "tests/triton", *OPERATORS)

    def sanitized(folder: str) -> tuple[str, ...]:
        return machine.pytest("gpu", "-k", "sanitizer", folder, spread=False)

    return [
        *begin(machine),
        Step("parity-bf16", 90, real_shapes),
        Step("parity-bf16-toolkit-ptxas", 90, real_shapes, with_toolkit, needed("ptxas", machine.ptxas)),
        Step("spills", 70, (machine.python, "-m", "tools.ahead_of_time", "--check", "--jobs", machine.jobs)),
        Step("cuda", 90, machine.pytest("gpu and not slow", *cuda), missing=no_nvcc),
        Step("triton", 200, machine.pytest("gpu and not slow", *others)),
        # One after the other: each takes up to 40 GiB.
        Step("beyond-2-31", 60, machine.pytest("gpu and slow", "tests/triton", "tests/cuda", spread=False)),
        Step("sanitizer-triton", 60, sanitized("tests/triton"), missing=no_sanitizer),
        Step("sanitizer-cuda", 60, sanitized("tests/cuda"), missing=no_nvcc or no_sanitizer),
    ]


def tune(machine: Machine, out: Path) -> list[Step]:
    # It ends by itself, a little before its limit, so as to say what had no time.
    command = (machine.python, "-m", "tools.tune", "--jobs", machine.jobs, "--folder", str(out))
    return [*begin(machine), Step("tune", 500, (*command, "--minutes", "{minutes}"))]


def fast(machine: Machine, out: Path) -> list[Step]:
    def benchmarks(name: str, only: str, contenders: str) -> tuple[str, ...]:
        command = (machine.python, "-m", "benchmarks.run", "--device", "cuda", "--json", str(out / f"{name}.json"))
        return (*command, "--only", only, "--contenders", contenders, "--seconds", "0.1", "--minutes", "{minutes}")

    counted = (
        "ncu", "--clock-control", "none", "--metrics", ",".join(COUNTERS), "--csv", "--page", "raw",
        "--log-file", str(out / "ncu.csv"), "--kernel-name", f"regex:^({'|'.join(COUNTED)})$",
        machine.python, "-c", LAUNCHED,
    )  # fmt: skip
    no_nvcc = needed("nvcc", machine.nvcc)
    operators = "^(?!model)"
    compiled = (machine.python, "-m", "tools.ahead_of_time", "--check", "--jobs", machine.jobs)
    return [
        *begin(machine),
        # Kept by Triton, for the benchmarks to find: in their time they compile in one process.
        Step("compile", 60, compiled, counts=False),
        Step("operators-bf16", 110, benchmarks("operators-bf16", f"{operators}.*bf16", "^(?!compiled)")),
        Step("ncu", 60, counted, missing=needed("ncu", machine.ncu), counts=False),
        # The CUDA kernels are taken only where asked for; Triton's are a contender there.
        Step(
            "cuda-bf16",
            60,
            benchmarks("cuda-bf16", "cross_modal.*bf16", "^(?!compiled)"),
            {"HSTA_BACKEND": "cuda"},
            no_nvcc,
        ),
        Step("model-bf16", 120, benchmarks("model-bf16", "^model.*bf16", "^(?!compiled)")),
        Step("operators-fp32", 60, benchmarks("operators-fp32", f"{operators}.*fp32", "^(?!compiled)")),
        Step("compiled-bf16", 150, benchmarks("compiled-bf16", f"{operators}.*bf16", "^compiled")),
    ]


PARTS: dict[str, Callable[[Machine, Path], list[Step]]] = {"right": right, "tune": tune, "fast": fast}


class Record:
    """The files of a part. What is written is there at once, and whole."""

    def __init__(self, part: str, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._json = out / f"{part}.json"
        self.log: TextIO = (out / f"{part}.log").open("w", buffering=1)
        self.outcomes: list[Outcome] = []

    def say(self, line: str) -> None:
        self.log.write(line + "\n")
        print(line, flush=True)

    def write(self) -> None:
        temporary = self._json.with_suffix(".part")
        temporary.write_text(json.dumps([asdict(outcome) for outcome in self.outcomes], indent=1) + "\n")
        os.replace(temporary, self._json)

    def summary(self) -> None:
        self.say("")
        for outcome in self.outcomes:
            self.say(f"{outcome.step}: {outcome.state} ({outcome.seconds:.1f} of {outcome.limit:.0f} s)")


def run(step: Step, limit: float, record: Record) -> None:
    """Runs a step and notes its outcome. Before its limit it is interrupted, to say what it has; then it is killed."""
    outcome = Outcome(step.name, "running", limit=limit)
    record.outcomes.append(outcome)
    record.write()
    grace = min(10.0, limit / 10)
    command = [argument.replace("{minutes}", f"{0.8 * limit / 60:.3f}") for argument in step.command]
    start = time.monotonic()
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | step.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        outcome.state = f"not run: {error}"
        record.write()
        return

    def copy() -> None:
        for line in process.stdout or ():
            record.say(line.rstrip("\n"))

    copying = threading.Thread(target=copy, daemon=True)
    ended = "killed at its limit"
    try:
        copying.start()  # here, since a signal may come as soon as something has been copied
        try:
            outcome.exit = process.wait(limit - grace)
            ended = "passed" if outcome.exit == 0 else f"failed, exit {outcome.exit}"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
    except Stopped:
        ended = "stopped from outside"
        raise
    finally:
        with suppress(ProcessLookupError):  # whatever it has started and left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        copying.join(5)
        outcome.state, outcome.seconds = ended, round(time.monotonic() - start, 1)
        record.write()


def check(part: str, out: Path, minutes: float) -> bool:
    """Runs a part; whether all that counts went well."""
    end, share = time.monotonic() + 60 * minutes, minutes / MINUTES
    record = Record(part, out)
    failed: set[str] = set()
    try:
        machine = Machine()
        if not machine.xdist:
            record.outcomes.append(Outcome("pytest-xdist", "is not installed: tests run one after the other"))
        for step in PARTS[part](machine, out):
            limit = min(step.limit * share, end - time.monotonic())
            record.say(f"== {step.name}")
            if step.missing:
                record.outcomes.append(Outcome(step.name, f"not run: {step.missing}"))
            elif limit < min(step.limit, 10) * share:
                record.outcomes.append(Outcome(step.name, "not run: no time was left"))
                failed.add(step.name)
            else:
                run(step, limit, record)
                if step.counts and record.outcomes[-1].state != "passed":
                    failed.add(step.name)
            record.say(f"== {step.name}: {record.outcomes[-1].state}")
            record.write()
    finally:
        record.summary()
        record.log.close()
    return not failed


def stop(number: int, _: object) -> None:
    raise Stopped(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS, help="one after the other")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of a part: its steps' limits change alike")
    arguments = parser.parse_args()
    out = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results" / "gpu-check").resolve()
    paths = [str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    os.environ |= {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    os.environ["PATH"] += os.pathsep + os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # tests run in more processes than leave cores to spin on
    os.environ.pop("TRITON_PTXAS_PATH", None)  # the assembler that Triton brings comes first
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        good = [check(part, out, arguments.minutes) for part in arguments.parts]
    except Stopped as stopped:
        return int(stopped.args[0])
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())
