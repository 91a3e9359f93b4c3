"""What `test_two_processes.py` starts twice by torchrun: trainings and predictions, and what was seen of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import hsta.data.inputs
import hsta.training.loop
import torch
from hsta.cli import main
from hsta.cli.options import MachineOptions
from hsta.data.registry import read_dataset
from hsta.errors import UserError
from hsta.results.evaluation import probabilities
from hsta.training.checkpoints import load_checkpoint
from hsta.training.loop import fit
from hsta.training.recipe import Recipe
from torch.distributed.tensor import DTensor

from hsta_kernels import HSTA

STRATEGIES = ("ddp", "fsdp")
STOP = 5  # in the second of the three steps of the second epoch
TESTED = 5  # clips: the first process gets three of them, the second two


class Spy:
    """While this lasts, of each training step inputs, targets, loss, weights, gradients and learning rates, and all
    clips that are loaded."""

    def __init__(self) -> None:
        self.steps: list[dict] = []
        self.indices: list[int] = []
        self._step: dict = {}
        self._undo: list[tuple] = []

    def __enter__(self) -> Spy:
        forward, loss, step = HSTA.forward, hsta.training.loop.class_loss, torch.optim.AdamW.step
        item = hsta.data.inputs.ClipDataset.__getitem__

        def spying_item(dataset, index):
            self.indices.append(index)
            return item(dataset, index)

        def spying_forward(model, video, special):
            self._model = model
            self._step = {"video": video, "special": special, "seed": torch.initial_seed()}
            return forward(model, video, special)

        def spying_loss(logits, targets, weights, smoothing):
            found = loss(logits, targets, weights, smoothing)
            self._step |= {"targets": targets, "class weights": weights, "loss": found.detach().clone()}
            return found

        def spying_step(optimizer, *rest):
            parameters = dict(self._model.named_parameters())
            self._step["weights"] = {name: here(p.detach()).clone() for name, p in parameters.items()}
            self._step["gradients"] = {name: here(p.grad).clone() for name, p in parameters.items()}
            self._step["rates"] = [group["lr"] for group in optimizer.param_groups]
            self.steps.append(self._step)
            return step(optimizer, *rest)

        self._replace(hsta.data.inputs.ClipDataset, "__getitem__", spying_item)
        self._replace(HSTA, "forward", spying_forward)
        self._replace(hsta.training.loop, "class_loss", spying_loss)
        self._replace(torch.optim.AdamW, "step", spying_step)
        return self

    def __exit__(self, *reason: object) -> None:
        for undo in self._undo:
            setattr(*undo)

    def _replace(self, owner: object, name: str, spying: object) -> None:
        self._undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, spying)


def here(tensor: torch.Tensor) -> torch.Tensor:
    """What this process has of a tensor: of a sharded one some of its rows."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def code(*arguments: str) -> object:
    try:
        return main([*arguments])
    except SystemExit as stop:  # of a process that leaves it to the first one to tell why
        return stop.code


def stopped(*arguments: str) -> object:
    forward, steps = HSTA.forward, iter(range(1, STOP + 1))

    def interrupted(*inputs):
        if next(steps) == STOP:
            raise KeyboardInterrupt
        return forward(*inputs)

    HSTA.forward = interrupted
    try:
        return code(*arguments)
    finally:
        HSTA.forward = forward


def run(folder: Path, learning: list[str], data: str, trained: str, same: list[str], everything: list[str]) -> dict:
    rank = os.environ["RANK"]
    told = {"one device": code("train", *learning, "--output", f"{folder}/one")}
    learning = [*learning, "--devices", "2", "--batch-size", "2"]
    for strategy in STRATEGIES:
        arguments = ["train", *learning, "--strategy", strategy]
        for name, options in ((f"{strategy}-same", same), (strategy, everything)):
            with Spy() as spy:
                told[name] = code(*arguments, *options, "--output", f"{folder}/{name}")
            torch.save({"steps": spy.steps, "indices": spy.indices}, f"{folder}/{name}-{rank}.pt")
        again = [*arguments, *everything, "--output", f"{folder}/{strategy}-resumed"]
        told[f"{strategy} stopped"] = stopped(*again)
        told[f"{strategy} resumed"] = code(*again, "--resume")
    told["not asked to resume"] = code(*again)
    told["evaluate"] = code("evaluate", *learning, "--epochs", "2", "--output", f"{folder}/evaluated")

    fabric = MachineOptions(accelerator="cpu", devices="2").fabric()
    model, task = load_checkpoint(Path(trained))
    clips = read_dataset("casme3", Path(data)).clips
    with Spy() as spy:
        told["rows"] = probabilities(model, clips[:TESTED], task, batch_size=2, fabric=fabric)
    told["tested here"] = len(spy.indices)
    try:
        fit(model.config, task, clips[:1], Recipe(), fabric=fabric, directory=folder / "few")
    except (UserError, SystemExit) as error:
        told["one clip"] = str(error)
    return told


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    result = run(Path(given.pop("folder")), **given)
    Path(f"{sys.argv[2]}-{os.environ['RANK']}.json").write_text(json.dumps(result))
