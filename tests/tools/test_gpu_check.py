"""`make gpu-check` without a GPU: every program is a stub on the path; the real command lines are only parsed."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tools import gpu_check

PROGRAMS = ("python", "nvcc", "ptxas", "ncu", "compute-sanitizer", "nvidia-smi")
# Says what it was called with. What matches $HANG never ends, and is deaf to interrupts; what matches $FAIL fails.
STUB = """#!/bin/sh
case "$*" in
  "-c import xdist") [ -z "$NO_XDIST" ]; exit ;;
esac
echo "called: ${0##*/} $*"
case "$*" in
  $HANG) trap '' INT; echo hanging $$; TAIL -f /dev/null ;;
  $FAIL) exit 3 ;;
esac
"""
BEGIN = ["machine", "build", "info"]
RIGHT = [
    *BEGIN, "parity-bf16", "parity-bf16-toolkit-ptxas", "spills", "cuda", "triton", "beyond-2-31",
    "sanitizer-triton", "sanitizer-cuda",
]  # fmt: skip
FAST = [
    *BEGIN, "compile", "operators-bf16", "ncu", "cuda-bf16", "model-bf16", "operators-fp32", "compiled-bf16"
]  # fmt: skip


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """In which nothing but the stubs is to be found."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for program in PROGRAMS:
        (stubs / program).write_text(STUB.replace("TAIL", f"exec {shutil.which('tail')}"))
        (stubs / program).chmod(0o755)
    nothing = {"HANG": "-", "FAIL": "-", "NO_XDIST": "", "CUDA_HOME": str(tmp_path)}
    return nothing | {"PATH": str(stubs), "PYTHON": "python", "OUT": str(tmp_path / "out")}


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, gpu_check.__file__, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def outcomes(environment: dict[str, str], part: str) -> dict[str, dict]:
    return {line["step"]: line for line in json.loads((Path(environment["OUT"]) / f"{part}.json").read_text())}


def finish(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=120)[0]


@pytest.mark.parametrize(("part", "steps"), [("right", RIGHT), ("tune", [*BEGIN, "tune"]), ("fast", FAST)])
def test_steps_in_their_order(part, steps, environment):
    process = start(environment, part)
    said = finish(process)
    found = outcomes(environment, part)
    assert (process.returncode, list(found)) == (0, steps), said
    assert {line["state"] for line in found.values()} == {"passed"}
    assert len(re.findall("^called: ", said, re.MULTILINE)) == len(steps)
    assert (Path(environment["OUT"]) / f"{part}.log").read_text() == said
    if part == "right":
        tests = [line for line in said.splitlines() if " -m pytest " in line]
        assert all(
            ("-n 12 --dist worksteal" in line) == ("slow" not in line or "not slow" in line) for line in tests[:5]
        )
        assert "-k sanitizer tests/cuda" in tests[-1]


def test_what_is_not_installed_is_named_and_the_rest_is_run(environment):
    for program in ("nvcc", "ptxas", "ncu", "compute-sanitizer"):
        (Path(environment["PATH"]) / program).unlink()
    process = start(environment | {"NO_XDIST": "1"}, "right", "fast")
    said = finish(process)
    assert process.returncode == 0, said
    missing = {
        step: line["state"] for step, line in outcomes(environment, "right").items() if line["state"] != "passed"
    }
    assert missing == {
        "pytest-xdist": "is not installed: tests run one after the other",
        "parity-bf16-toolkit-ptxas": "not run: ptxas is not installed",
        "cuda": "not run: nvcc is not installed",
        "sanitizer-triton": "not run: compute-sanitizer is not installed",
        "sanitizer-cuda": "not run: nvcc is not installed",
    }
    assert "worksteal" not in said
    assert outcomes(environment, "fast")["ncu"]["state"] == "not run: ncu is not installed"
    assert outcomes(environment, "fast")["cuda-bf16"]["state"] == "not run: nvcc is not installed"


def test_a_failed_step_fails_its_part_after_the_others_have_run(environment):
    process = start(environment | {"FAIL": "*tools.ahead_of_time*"}, "right")
    finish(process)
    found = outcomes(environment, "right")
    assert process.returncode == 1
    assert found["spills"]["state"] == "failed, exit 3" and found["sanitizer-cuda"]["state"] == "passed"


def test_without_counters_the_part_is_none_the_worse(environment):
    process = start(environment | {"FAIL": "*--clock-control none*"}, "fast")
    finish(process)
    assert outcomes(environment, "fast")["ncu"]["state"] == "failed, exit 3"
    assert process.returncode == 0


def test_what_never_ends_is_killed_and_named(environment):
    process = start(environment | {"HANG": "*tools.ahead_of_time*"}, "right", "--minutes", "0.2")
    said = finish(process)
    found = outcomes(environment, "right")
    assert process.returncode == 1
    assert found["spills"]["state"] == "killed at its limit", said
    assert found["spills"]["exit"] is None and found["spills"]["limit"] == pytest.approx(70 / 45)
    assert "hanging" in said and found["sanitizer-cuda"]["state"] == "passed"


def test_a_part_ends_in_its_time(environment):
    process = start(environment | {"HANG": "*"}, "right", "--minutes", "0.05")
    said = finish(process)
    found = list(outcomes(environment, "right").values())
    assert [line["step"] for line in found] == RIGHT
    killed = [line for line in found if line["state"] == "killed at its limit"]
    assert killed[0] is found[0] and sum(line["limit"] for line in killed) <= 3, said
    assert found[-1]["state"] == "not run: no time was left"
    assert process.returncode == 1


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGKILL))
def test_killed_from_outside_it_leaves_what_it_had(number, environment):
    process = start(environment | {"HANG": "*tools.ahead_of_time*"}, "right")
    said = ""
    while "hanging" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    process.send_signal(number)
    process.wait(timeout=60)
    if number == signal.SIGKILL:  # it had no time to end what it had started
        with suppress(ProcessLookupError):
            os.kill(int(said.split()[-1]), signal.SIGKILL)
    found = outcomes(environment, "right")
    assert list(found) == RIGHT[:6]
    assert {found[step]["state"] for step in RIGHT[:5]} == {"passed"}
    log = (Path(environment["OUT"]) / "right.log").read_text()
    assert "== parity-bf16: passed" in log and "hanging" in log
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number and found["spills"]["state"] == "stopped from outside"
        assert "spills: stopped from outside" in log.splitlines()[-1]
    else:
        assert found["spills"]["state"] == "running"


@pytest.fixture
def steps(environment, monkeypatch) -> dict[str, tuple[str, ...]]:
    """The command of every step on a machine that has everything, to be run by this Python."""
    monkeypatch.setenv("PATH", environment["PATH"])
    machine = gpu_check.Machine()
    monkeypatch.undo()
    out = Path(environment["OUT"])
    of_parts = [step for part in gpu_check.PARTS.values() for step in part(machine, out)]
    assert not any(step.missing for step in of_parts)
    return {step.name: step.command for step in of_parts}


def test_pytest_takes_the_command_lines_and_finds_tests(steps):
    commands = {name: command[3:] for name, command in steps.items() if command[1:3] == ("-m", "pytest")}
    assert len(commands) == 7
    assert commands.pop("parity-bf16-toolkit-ptxas") == commands["parity-bf16"]
    # In one process, which need not import everything six times.
    code = (
        "import json, sys, pytest\n"
        "for name, arguments in json.loads(sys.argv[1]).items():\n"
        "    print('==', name, 'exits', int(pytest.main([*arguments, '--collect-only', '-qq'])), flush=True)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(command, cwd=gpu_check.ROOT, capture_output=True, text=True, check=False)
    for name in commands:
        assert f"== {name} exits 0" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


def test_our_programs_take_the_command_lines(steps):
    ahead_of_time, tune = (pytest.importorskip(f"tools.{n}", reason="needs Triton") for n in ("ahead_of_time", "tune"))
    from benchmarks import run

    of_benchmarks = argparse.ArgumentParser()
    run.add_options(of_benchmarks.add_argument)
    parsers = {
        "tools.ahead_of_time": ahead_of_time.parser(),
        "tools.tune": tune.parser(),
        "benchmarks.run": of_benchmarks,
    }
    cases = [work.name for work in run.works(torch.device("cuda"), False)]
    taken = []
    for name, command in steps.items():
        if command[1] == "-m" and command[2] in parsers:
            arguments = [argument.replace("{minutes}", "1.5") for argument in command[3:]]
            options = parsers[command[2]].parse_args(arguments)
            taken.append(name)
            if command[2] == "benchmarks.run":
                assert options.minutes == 1.5
                found = [case for case in cases if re.search(options.only, case)]
                assert found and not any(case.startswith("model") != ("model" in name) for case in found)
                assert all(case.endswith(name.split("-")[-1]) for case in found)
    assert taken == ["spills", "tune", *(name for name in FAST[3:] if name != "ncu")]


def test_a_machine_without_a_gpu_fails(steps):
    """All tests would be skipped there, and so be well."""
    pytest.importorskip("triton", reason="needs Triton")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *steps["machine"][1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"PyTorch {torch.__version__}" in done.stdout and "no GPU" in done.stderr


def test_the_kernels_to_be_counted_are_launched(steps):
    ahead_of_time = pytest.importorskip("tools.ahead_of_time", reason="needs Triton")
    code = steps["ncu"][-1]
    launched = ahead_of_time.launches(lambda: exec(code.replace("'cuda'", "'meta'"), {}), 90)
    names = {launch.name for launch in launched}
    assert len(gpu_check.COUNTED) == 8 and names >= set(gpu_check.COUNTED)
