"""What a stopped training needs to go on, and what prediction needs to begin. Nothing in it is pickled.

A run's folder holds ``training_state.safetensors`` (weights, their average, AdamW's moments, the number of
epochs done: one file, so that they always belong together) and ``checkpoint/`` in the library's layout, with the
class names and the preparation of the inputs beside it. Random states are not stored: every stream of random
numbers is a function of the seed and the epoch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel

import hsta_kernels
from hsta_kernels import tensor_files

from ..data.clips import Preparation
from ..errors import UserError
from ..files import replacing, write_text
from .checkpoint_folder import TASK_FILE, checkpoint_folder
from .sharding import dealt_like, whole

STATE_FILE = "training_state.safetensors"
AVERAGE = "average"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Task:
    """What the numbers that go in and out of a model mean."""

    dataset: str
    class_names: tuple[str, ...]
    special: str
    """What the special frames are, of ``data.transforms.SPECIAL``."""
    generated: bool
    """Learned from generated data: what it says is no evidence about real faces."""
    people: tuple[str, ...] | None = None
    """Whom it learned from, data set and subject; None where that is not known."""
    action_units: bool = False
    """The classes are action units, of which each has a probability of its own."""
    prepared: Preparation | None = None
    """How the faces were cut out of the clips that it learned from; None where frames were taken as they were."""


def save_state(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    epochs_done: int,
    *,
    write: bool = True,
) -> None:
    """Write weights, the state of AdamW and the weights' average; the file is replaced in one step.

    What is sharded is gathered for that: all processes have to call this, and one of them to ``write``.
    """
    tensors: dict[str, torch.Tensor] = {}

    def add(name: str, tensor: torch.Tensor) -> None:
        gathered = whole(tensor.detach())
        if write:
            tensors[name] = gathered

    if average is not None:
        for name, parameter in average.module.named_parameters():
            add(f"{AVERAGE}.{name}", parameter)
    for name, parameter in model.named_parameters():
        add(f"weight.{name}", parameter)
        for moment in MOMENTS:
            add(f"{moment}.{name}", optimizer.state[parameter][moment])
    if write:
        with replacing(path) as temporary:
            tensor_files.save(temporary, tensors, {"epochs_done": str(epochs_done)})


def load_state(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None
) -> int:
    """Put what `save_state` wrote into a model, its new AdamW and average; returns the number of epochs done.

    All processes of a sharded model have to call this. Raises `UserError` when the file is damaged or of another model.
    """
    try:
        tensors, metadata = tensor_files.load(path)
        epochs_done = int(metadata["epochs_done"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(dealt_like(tensors[f"weight.{name}"], parameter))
                state = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS}
                optimizer.state[parameter] = {
                    # AdamW keeps its step counts whole, and on the CPU.
                    moment: tensor if moment == "step" else dealt_like(tensor, parameter)
                    for moment, tensor in state.items()
                }
            if average is not None:
                for name, parameter in average.module.named_parameters():
                    parameter.copy_(dealt_like(tensors[f"{AVERAGE}.{name}"], parameter))
                average.n_averaged.fill_(1)  # else the next step would begin it anew
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"cannot go on from {path}: {error}") from error
    return epochs_done


def save_checkpoint(directory: Path, model: hsta_kernels.HSTA, task: Task) -> None:
    """Write a model that `load_checkpoint` and ``hsta_kernels.HSTA.from_pretrained`` read."""
    write_text(directory / TASK_FILE, json.dumps(asdict(task), indent=2) + "\n")
    model.save_pretrained(directory)


def sweep(directory: Path) -> None:
    """Remove half-written weights that a killed process left in the folder of a checkpoint."""
    for path in directory.glob(".*.tmp"):
        path.unlink()


def load_checkpoint(path: Path) -> tuple[hsta_kernels.HSTA, Task]:
    """The model and its task from a run's folder or from the ``checkpoint`` folder in it.

    Raises `UserError` when there is none or it is damaged.
    """
    directory = checkpoint_folder(path)
    try:
        values = dict(json.loads((directory / TASK_FILE).read_text(encoding="utf-8")))
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        if values.get("prepared") is not None:
            values["prepared"] = Preparation(*values["prepared"])
        task = Task(**values)
        model = hsta_kernels.HSTA.from_pretrained(directory)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"cannot read the checkpoint {directory}: {error}") from error
    if model.config.num_classes != len(task.class_names):
        raise UserError(
            f"{directory / TASK_FILE} names {len(task.class_names)} classes, the model has {model.config.num_classes}"
        )
    return model, task
