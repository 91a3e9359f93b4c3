"""Folds as tasks on a Ray cluster: whatever dies meanwhile, the files are those of one process."""

import os
import shutil
import sys
import time

import pytest
from filelock import FileLock
from hsta.cli import main
from hsta.cli.evaluate import Evaluate
from hsta.cli.options import DataOptions
from hsta.cli.run_folder import restored
from hsta.errors import UserError
from hsta.training.checkpoints import STATE_FILE

from tests.frontend.test_collect import contents, refused

MISSING = "hsta-kernels[ray] is not installed"
# Read by each Python that the second machine starts: in the second epoch it ends with all its processes.
ENDS = """
import os, signal, sys

saved = 0

def hook(event, values):
    global saved
    if event == "os.rename" and os.fspath(values[1]).endswith({state!r}):
        saved += 1
        if saved == 2:
            machine = os.getppid()
            with open(f"/proc/{{machine}}/comm") as comm, open({killed!r}, "w") as file:
                file.write(comm.read().strip())
            os.kill(machine, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process's parent is called is asked of Linux")
def test_a_machine_that_dies_in_the_middle_of_a_fold(short, evaluated_by_one_thread, tmp_path, capfd):
    """The fold goes on elsewhere after its last epoch; nothing of the kill is on the terminal."""
    pytest.importorskip("ray", reason=MISSING)
    from ray.cluster_utils import Cluster

    killed, output = tmp_path / "killed", tmp_path / "run"
    (tmp_path / "sitecustomize.py").write_text(ENDS.format(state=STATE_FILE, killed=str(killed)))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    machine = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    # Ray's own 15 s until a machine counts as dead are for networks.
    cluster = Cluster(True, head_node_args=machine | {"_system_config": {"health_check_period_ms": 200}})
    try:
        cluster.add_node(**machine, env_vars={"PYTHONPATH": path})
        capfd.readouterr()
        line = [*short, "--output", str(output), "--launcher", "ray", "--address", cluster.address]
        assert main(line) == 0
    finally:
        cluster.shutdown()
    assert killed.read_text() == "raylet"
    assert contents(output)[0] == contents(evaluated_by_one_thread)[0]
    printed, shown = capfd.readouterr()
    assert printed.startswith("casme3, 2 classes: UF1 0.")
    assert "3/3" in shown
    assert all(text.startswith(("note: ", "folds: ", "\rfolds: ")) for text in shown.splitlines() if text), shown


def test_a_refusal_within_a_fold_is_told_as_it_is(short, tmp_path, monkeypatch, capfd):
    """On a cluster of this machine, started for it."""
    ray = pytest.importorskip("ray", reason=MISSING)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    line = [*short, "--learning-rate", "1e30", "--output", tmp_path / "run", "--launcher", "ray"]
    capfd.readouterr()
    assert main([str(word) for word in line]) == 2
    *_, said = capfd.readouterr().err.splitlines()
    assert said.startswith("hsta: the loss is nan in epoch 1: try a lower learning rate than 1e+30; ")
    assert not ray.is_initialized()


def test_without_ray(short, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "hsta.cli.ray_tasks", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)  # cannot be imported
    output = tmp_path / "run"
    said = refused([*short, "--output", output, "--launcher", "ray"], capsys)
    assert said == "hsta: ray is not installed: pip install hsta-kernels[ray]"
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--address auto", "--address, --cpus-per-task and --gpus-per-task go with --launcher ray"),
        ("--launcher ray --fold 1", "--fold and --launcher ray exclude each other"),
        ("--launcher ray --devices 2", "with --launcher ray devices must be 1, those of a fold, got 2"),
        ("--launcher ray --gpus-per-task 0.5", "--gpus-per-task and --accelerator cpu exclude each other"),
        ("--launcher ray --gpus-per-task 2", "gpus_per_task must be from 0 to 1, got 2"),
        ("--launcher ray --cpus-per-task 0", "cpus_per_task must be at least 1, got 0"),
        ("--launcher ray --address ray://head:10001", "its address must be HOST:PORT or auto"),
        ("--launcher ray --address 127.0.0.1:1", "cannot use Ray at 127.0.0.1:1: [Errno"),
    ],
)
def test_what_cannot_be_is_refused_before_the_run_is_begun(options, message, short, tmp_path, capsys):
    if "--launcher" in options:
        pytest.importorskip("ray", reason=MISSING)
    output = tmp_path / "run"
    assert message in refused([*short, "--output", output, *options.split()], capsys)
    assert not output.exists()


def test_a_machine_that_does_not_share_the_folder_is_refused(people, tmp_path):
    """What a task does there."""
    command = Evaluate(DataOptions(people), tmp_path / "run")
    with pytest.raises(UserError, match=r"run is not the run's folder on .*: machines must share a file system$"):
        command.do_fold(0, 0)
    assert not command.output.exists()


def test_a_fold_waits_for_the_process_before_it(evaluated, tmp_path, monkeypatch):
    """Of a machine that counts as dead a process may live on for a while: here until who waits looks again."""
    output = shutil.copytree(evaluated, tmp_path / "run")
    before = FileLock(output / "folds" / ".casme3-spNO.1.lock")
    before.acquire()
    monkeypatch.setattr(time, "sleep", lambda seconds: before.release())
    restored(Evaluate, output).do_fold(0, 0)
    assert not before.is_locked
