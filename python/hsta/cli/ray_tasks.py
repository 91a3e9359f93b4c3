"""Work dealt out over the machines of a Ray cluster, which share the folders that it reads and writes.

Importing this loads Ray, of the extra `ray`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Read when Ray is imported and inherited by the cluster that is started here: nothing is sent to Ray's makers.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A task without a GPU leaves the variable alone, which `_task` sets itself; else Ray warns that it will.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError, RayTaskError
from tqdm import tqdm

from ..errors import UserError
from .options import RayOptions

# Seconds after which to look whether there still is a machine for what is left.
LOOK = 30
# How often a task is begun anew whose worker or machine died.
RETRIES = 3
# Bytes, little more than Ray's least: tasks leave files and hand each other nothing.
OBJECT_STORE = 80 * 2**20


@contextlib.contextmanager
def cluster(options: RayOptions) -> Iterator[None]:
    """Connected to the cluster at ``options.address`` or RAY_ADDRESS; without both, to one of this machine that ends
    with the block. Raises `UserError` where nothing answers, and where no machine has what a task takes."""
    # A thread of Ray's prints the log of each machine that dies.
    with contextlib.redirect_stdout(io.StringIO()):
        address = options.address or os.environ.get("RAY_ADDRESS")
        _connect(None if address == "local" else address)
        try:
            _gpus(options)
            yield
        finally:
            ray.shutdown()


def _connect(address: str | None) -> None:
    started: dict[str, Any] = {} if address else {"object_store_memory": OBJECT_STORE, "include_dashboard": False}
    try:
        if address and address != "auto":
            host, _, port = address.rpartition(":")
            if "/" in host or not port.isdecimal():
                raise ValueError("its address must be HOST:PORT or auto")
            # Ray itself would try for a quarter of an hour.
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **started)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot use Ray at {address or 'this machine'}: {error}") from error


def run_tasks(work: Callable[..., object], tasks: Mapping[str, tuple], options: RayOptions, *, unit: str) -> None:
    """Call ``work`` with the arguments of each of the named ``tasks``, wherever there is room; a bar counts those done.

    A task whose worker or machine dies is begun anew, up to `RETRIES` times. The first error ends all: one that is
    meant for the user is raised as it is. Also when interrupted, no task is left running.
    """
    resources = {"num_cpus": options.cpus_per_task, "num_gpus": _gpus(options)}
    task = ray.remote(_task).options(max_retries=RETRIES, **resources)
    pending = {task.remote(os.getcwd(), work, arguments): name for name, arguments in tasks.items()}
    try:
        with tqdm(desc=f"{unit}s", total=len(tasks), unit=unit) as bar:
            while pending:
                ended, _ = ray.wait(list(pending), num_returns=1, timeout=LOOK)
                if not ended:
                    _gpus(options)
                for done in ended:
                    name = pending.pop(done)
                    try:
                        ray.get(done)
                    except RayTaskError as error:
                        raise error.cause if isinstance(error.cause, UserError | OSError) else error from None
                    except RayError as error:
                        lost = f"{unit} {name} was lost with its worker {RETRIES + 1} times"
                        raise UserError(f"{lost}: {error}") from error
                    bar.update()
    finally:
        for left in pending:
            ray.cancel(left, force=True)


def _gpus(options: RayOptions) -> float:
    """GPUs of a task. Raises `UserError` where no machine has what a task takes: Ray would wait for one."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = options.cpus_per_task, options.gpus_per_task
    if gpus is None:
        gpus = 1.0 if any(machine.get("GPU") for machine in machines) else 0.0
    if not any(machine.get("CPU", 0) >= cpus and machine.get("GPU", 0) >= gpus for machine in machines):
        raise UserError(
            "no machine of the Ray cluster has what a task takes: "
            f"{cpus} of its CPUs (--cpus-per-task) and {gpus:g} of its GPUs (--gpus-per-task)"
        )
    return gpus


def _task(directory: str, work: Callable[..., object], arguments: tuple) -> None:
    """In a worker: ``work`` in the directory of who asks for it, with the GPU that Ray gives the task or none."""
    try:
        os.chdir(directory)
    except OSError as error:
        raise UserError(f"{directory} is not on {socket.gethostname()}: machines must share a file system") from error
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA is first asked for
    work(*arguments)
