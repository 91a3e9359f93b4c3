"""One fold of an evaluation: train on some subjects, test on the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

import hsta_kernels

from ..data.clips import Clip
from ..errors import UserError
from ..files import remove
from ..training.checkpoints import Task
from ..training.loop import LOG, clip_dataset, fit
from ..training.recipe import Recipe
from ..training.start import Start
from .answer import probabilities_of
from .learning_curves import keep_curve
from .tested_clips import Prediction, read_csv, write_csv


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
    start: Start | None = None,
) -> list[Prediction]:
    """Predictions of ``tested`` by a model that is trained on ``learned`` now, or those that are there from before.

    They are kept in a table beside ``directory``, which holds the training while it lasts; its loss over the epochs is
    left at ``curve``. Raises `UserError` when
    the table is of other clips.
    """
    table = directory.with_name(f"{directory.name}.csv")
    if table.is_file():
        predictions = read_csv(table, task.class_names, task.action_units)
        if [(p.subject, p.clip, p.truth) for p in predictions] != [
            (clip.subject, clip.name, clip.label) for clip in tested
        ]:
            raise UserError(f"{table} holds other clips than the data set now does; use --overwrite")
        fabric.barrier()
        if fabric.is_global_zero:
            remove(directory)  # killed before it was
        return predictions
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
    fabric.barrier()
    if fabric.is_global_zero:
        keep_curve(curve, directory / LOG)
        write_csv(table, predictions, task.class_names)
        remove(directory)  # as many models as subjects would fill a disk
    fabric.barrier()
    return predictions


@torch.no_grad()
def probabilities(
    model: hsta_kernels.HSTA, clips: Sequence[Clip], task: Task, *, batch_size: int, fabric: Fabric
) -> list[tuple[float, ...]]:
    """Probabilities of the classes, or of each action unit, of each clip; frames are chosen without chance."""
    model.eval()
    rows = []
    for batch in DataLoader(clip_dataset(clips, model.config, task, training=False), batch_size):
        with fabric.autocast():
            logits = model(*(batch[name].to(fabric.device) for name in ("video", "special")))
        rows += [tuple(row) for row in probabilities_of(logits, task.action_units).tolist()]
    return rows
