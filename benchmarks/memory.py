"""Peak memory of a training step, each model in a process of its own so that nobody else's memory is in the figure.

On a GPU it is the allocator's peak. On the CPU it is the process's largest resident set (VmHWM; ru_maxrss would include
the parent's) above what was resident before the model was made: weights, gradients, activations, working memory.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def measurable(device: torch.device) -> bool:
    return device.type == "cuda" or _STATUS.exists()


def of_step(module: str, *arguments: object) -> int:
    """Bytes at the peak of the step that ``step_of`` of a module of this package makes.

    Args:
        module: its name.
        arguments: of ``step_of``, which gets them as strings; the last one is the device.
    """
    command = [sys.executable, "-m", "benchmarks.memory", module, *map(str, arguments)]
    # Freed tensors go back to the system: gaps between those that are left would count else, a fifth more or less.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the memory of {module} {arguments} could not be measured:\n{done.stderr}")
    return int(done.stdout)


def resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main(name: str, *arguments: str) -> None:
    module, where = importlib.import_module(name), torch.device(arguments[-1])
    before = resident("VmRSS") if where.type == "cpu" else 0
    step = module.step_of(*arguments)
    for _ in range(2):
        step()
    print(torch.cuda.max_memory_allocated(where) if where.type == "cuda" else resident("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
