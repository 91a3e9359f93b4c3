"""One fold of an evaluation: train on some subjects, test on the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

import hsta_kernels

from ..data.clips import Clip
from ..data.inputs import model_inputs
from ..errors import UserError
from ..files import remove
from ..training.checkpoints import Task
from ..training.loop import LOG, clip_dataset, fit
from ..training.recipe import Recipe
from ..training.start import Start
from .answer import probabilities_of
from .fold_attention import keep_attention
from .fold_result import FoldResult
from .learning_curves import keep_curve
from .tested_clips import Prediction


def evaluate_fold(
    learned: Sequence[Clip],
    tested: Sequence[Clip],
    config: hsta_kernels.HSTAConfig,
    task: Task,
    recipe: Recipe,
    *,
    fabric: Fabric,
    directory: Path,
    curve: Path,
    seed: int,
    workers: int,
    title: str,
    run: Mapping[str, object],
    start: Start | None = None,
    attention: Path | None = None,
    patience: float = 0,
) -> FoldResult:
    """Predictions of ``tested`` by a model that is trained on ``learned`` now, or those that are there from before.

    They are kept in a table beside ``directory``, which holds the training while it lasts; its loss over the epochs is
    left at ``curve``, and at ``attention``, if given, where the model looked in the most certain of them. ``run`` is
    all that they depend on. Raises `UserError` when the table is of other clips or of another run, and where another
    process is at work on the fold and still is ``patience`` seconds later.
    """
    table = fold_table(directory)
    with alone_with(directory, fabric, patience):
        if table.is_file():
            result = FoldResult.read(table, tested, task, run)
            fabric.barrier()
            if fabric.is_global_zero:
                remove(directory)  # killed before it was
            return result
        model = fit(
            config,
            task,
            learned,
            recipe,
            fabric=fabric,
            directory=directory,
            seed=seed,
            workers=workers,
            title=title,
            start=start,
        )
        rows = probabilities(model, tested, task, batch_size=recipe.batch_size, fabric=fabric)
        predictions = [Prediction.of(clip, row) for clip, row in zip(tested, rows, strict=True)]
        result = FoldResult(predictions, str(fabric.device))
        fabric.barrier()
        if fabric.is_global_zero:
            keep_curve(curve, directory / LOG)
            if attention is not None:
                with fabric.autocast():
                    keep_attention(attention, model, tested, predictions, task)
            result.write(table, task.class_names, run)
            remove(directory)  # as many models as subjects would fill a disk
        fabric.barrier()
        return result


def fold_table(directory: Path) -> Path:
    """Where the predictions of the fold that is trained in ``directory`` are kept."""
    return directory.with_name(f"{directory.name}.csv")


@contextmanager
def alone_with(directory: Path, fabric: Fabric, patience: float) -> Iterator[None]:
    """While this lasts no other run of the command works on the fold. The lock dies with the process.

    Raises `UserError` where another one still does ``patience`` seconds later.
    """
    if not fabric.is_global_zero:
        yield
        return
    lock = directory.with_name(f".{directory.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=patience):
            yield
            with suppress(PermissionError):  # Windows keeps a file that is open
                lock.unlink()  # the fold is done: whoever holds another file of this name finds that
    except Timeout:
        raise UserError(f"another process is at work on the fold {directory}: let it end") from None


@torch.no_grad()
def probabilities(
    model: hsta_kernels.HSTA, clips: Sequence[Clip], task: Task, *, batch_size: int, fabric: Fabric
) -> list[tuple[float, ...]]:
    """Probabilities of the classes, or of each action unit, of each clip; frames are chosen without chance.

    Of several processes, which all have to call this, each computes its share of the clips, and all get all rows.
    """
    model.eval()
    rows: list[tuple[float, ...]] = []
    share = clips[fabric.global_rank :: fabric.world_size]
    for batch in DataLoader(clip_dataset(share, model.config, task, training=False), batch_size):
        with fabric.autocast():
            logits = model(*model_inputs({name: tensor.to(fabric.device) for name, tensor in batch.items()}))
        rows += [tuple(row) for row in probabilities_of(logits, task.action_units).tolist()]
    if fabric.world_size == 1:
        return rows
    shares: list[list[tuple[float, ...]]] = [[] for _ in range(fabric.world_size)]
    torch.distributed.all_gather_object(shares, rows)
    gathered: list[tuple[float, ...]] = [()] * len(clips)
    for rank, of_rank in enumerate(shares):
        gathered[rank :: fabric.world_size] = of_rank
    return gathered
