"""Killed at any moment, in training, evaluating or writing: who goes on ends with the bits of who was never stopped.

Moments are counted, not timed: the steps of the model, and every file of the run that is opened, renamed, made or
removed. Each process is forked from one that has loaded the libraries and computed nothing.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.frontend.test_training import scalars

FORKED = """
import json, os, random, signal, sys
import hsta_kernels
import hsta.data.registry, hsta.results.report, hsta.training.loop
from hsta.cli import main

if "tune" in sys.argv:
    import hsta.tuning.search

WATCHED = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}

def run(arguments, output, moment):
    # The number of moments; the process is killed at one of them, what was being written then cut in half.
    count = 0

    def tick(written=None):
        nonlocal count
        count += 1
        if count == moment:
            if written is not None:
                os.truncate(written, os.stat(written).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, values):
        if event not in WATCHED or not isinstance(values[0], (str, os.PathLike)):
            return
        path = os.fspath(values[0])
        within = event in ("os.remove", "os.rmdir") and values[1] != -1  # of a folder that is being removed
        # The log's own thread writes it, at no fixed moment.
        if within or (path.startswith(output) and "/log" not in path):
            tick(path if event == "os.rename" else None)

    forward = hsta_kernels.HSTA.forward
    hsta_kernels.HSTA.forward = lambda *inputs: (tick(), forward(*inputs))[1]
    sys.addaudithook(hook)
    return main([*arguments, "--output", output, "--resume"]), count

def fork(arguments, output, moment=None):
    # Whether it was killed, and how many moments there were.
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code, count = run(arguments, output, moment)
        os.write(writer, str(count).encode())
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as said:
        count = said.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0, int(count or 0)

folder, chains, *arguments = sys.argv[1:]
_, moments = fork(arguments, f"{folder}/whole")
draw = random.Random(0)
kills = 0
for chain in range(int(chains)):
    for kill in (1, 2, 3):  # the later ones sooner: there is less left to do
        killed, _ = fork(arguments, f"{folder}/{chain}", draw.randint(1, moments // kill))
        kills += killed
        if not killed:
            break
    else:
        fork(arguments, f"{folder}/{chain}")
print(json.dumps({"moments": moments, "kills": kills}))
"""
CHAINS = 3
TRIALS = 2


@pytest.mark.parametrize("command", ["train", "evaluate", "tune"])
def test_the_end_has_the_same_bits(command, learning, tmp_path):
    arguments = [command, *learning, "--epochs", "2"]
    if command == "evaluate":
        arguments += ["--protocol", "leave-subjects-out", "--folds", "2"]
    if command == "tune":
        pytest.importorskip("optuna", reason="hsta-kernels[tune] is not installed")
        short = "--epochs 1 --warmup-epochs 0 --fold 1 --inner-folds 2 --trials"
        arguments += [*short.split(), str(TRIALS), "--search", "learning-rate=1e-4:1e-2", "drop-rate=0:0.5"]
    child = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path), str(CHAINS), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads are lost in a fork
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    told = json.loads(child.stdout.splitlines()[-1])
    assert told["moments"] > 20
    assert told["kills"] >= CHAINS
    whole = files(tmp_path / "whole")
    assert whole
    for chain in range(CHAINS):
        assert files(tmp_path / str(chain)) == whole, chain
        if command == "train":
            assert scalars(tmp_path / str(chain), "loss") == scalars(tmp_path / "whole", "loss")
        if command == "tune":
            (table,) = (tmp_path / str(chain)).rglob("trials.csv")
            assert len(table.read_text().splitlines()) == 1 + TRIALS


def files(run):
    """The content of every file, but for the arguments, which name the folder, and logs, which hold times."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file()
        and path.name not in ("config.json", "journal.log")
        and "log" not in path.relative_to(run).parts
    }
