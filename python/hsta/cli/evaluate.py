"""``hsta evaluate``: train and test on subjects apart, and score all predictions together."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import UserError
from ..files import write_text
from ..generated.mark import NO_EVIDENCE
from ..training.recipe import Recipe
from .options import DataOptions, MachineOptions, ModelOptions, OptionalInt
from .run_folder import open_run, remove
from .train import check_seed, tell

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    import hsta_kernels

    from ..data.clips import Clip, DatasetIndex
    from ..data.folds import Fold
    from ..results.metrics import Scores
    from ..results.tested_clips import Prediction
    from ..training.checkpoints import Task

FOLDS = "folds"
RESULTS = ("metrics.json", "predictions.csv", "megc2019.log", "confusion_matrix.png")


@dataclass
class Evaluate:
    """Train and test with no subject in both, and score all predictions in one confusion matrix.

    Each fold trains new weights on the other subjects and tests those of the last epoch, so that nothing is
    chosen on the subjects tested.
    """

    data: DataOptions
    output: Path
    """Folder for metrics.json, predictions.csv, megc2019.log, confusion_matrix.png."""
    protocol: Literal["loso", "leave-subjects-out"] = "loso"
    """Leave one subject out, or groups of subjects (see --folds; other figures than with loso)."""
    folds: OptionalInt = None
    """Number of groups for leave-subjects-out."""
    shuffle_labels: bool = False
    """Control: train on labels dealt out anew; the score must be at chance."""
    model: ModelOptions = field(default_factory=ModelOptions)
    recipe: Recipe = field(default_factory=Recipe)
    machine: MachineOptions = field(default_factory=MachineOptions)
    seed: int = 0
    """Of weights, order, augmentation and dropout."""
    resume: bool = False
    """Go on with an evaluation that was stopped; folds that are done are not done again."""
    overwrite: bool = False
    """Begin an evaluation again that the folder holds."""

    def run(self) -> Scores:
        # These load torch, which --help has no use for.
        from ..data.folds import subject_folds
        from ..results.metrics import score
        from ..training.checkpoints import Task

        check_seed(self.seed)
        if (self.folds is not None) != (self.protocol == "leave-subjects-out"):
            raise UserError("--folds and --protocol leave-subjects-out go together")
        index = self.data.read()
        try:
            folds = subject_folds(index.clips, self.folds)
        except ValueError as error:
            raise UserError(str(error)) from error
        config = self.model.config(len(index.class_names), self.recipe)
        task = Task(index.name, index.class_names, self.data.special, index.generated)
        fabric = self.machine.fabric()
        if fabric.is_global_zero:
            tell(index.notes)
            open_run(
                self,
                output=self.output,
                resume=self.resume,
                overwrite=self.overwrite,
                owned=(*RESULTS, FOLDS),
            )
        fabric.barrier()
        predictions = [
            prediction
            for number in range(len(folds))
            for prediction in self._fold(folds, number, index.clips, config, task, fabric)
        ]
        scores = score([p.truth for p in predictions], [p.label for p in predictions], index.class_names)
        if fabric.is_global_zero:
            self._write(scores, predictions, index, len(folds), fabric)
            print(summary(scores, index))
            print(f"written to {self.output}")
        return scores

    def _fold(
        self,
        folds: Sequence[Fold],
        number: int,
        clips: Sequence[Clip],
        config: hsta_kernels.HSTAConfig,
        task: Task,
        fabric: Fabric,
    ) -> list[Prediction]:
        """Predictions of one fold: those that are there from before, or of a model trained now."""
        from ..data.folds import shuffled_labels
        from ..results.tested_clips import Prediction, read_csv, write_csv
        from ..training.loop import fit, probabilities

        fold = folds[number]
        path = self.output / FOLDS / f"{fold.name}.csv"
        tested = [clips[i] for i in fold.test]
        if path.is_file():
            predictions = read_csv(path, task.class_names)
            if [(p.subject, p.clip, p.truth) for p in predictions] != [
                (clip.subject, clip.name, clip.label) for clip in tested
            ]:
                raise UserError(f"{path} holds other clips than the data set now does; use --overwrite")
            return predictions
        learned = [clips[i] for i in fold.train]
        if self.shuffle_labels:
            labels = shuffled_labels([clip.label for clip in learned], (self.seed, number))
            learned = [replace(clip, label=label) for clip, label in zip(learned, labels, strict=True)]
        training = self.output / FOLDS / fold.name
        model = fit(
            config,
            task,
            learned,
            self.recipe,
            fabric=fabric,
            directory=training,
            seed=self.seed,
            workers=self.data.workers,
            title=f"fold {number + 1}/{len(folds)} {fold.name}",
        )
        batch_size = self.recipe.batch_size
        rows = probabilities(model, tested, task, batch_size=batch_size, fabric=fabric)
        predictions = [Prediction.of(clip, row) for clip, row in zip(tested, rows, strict=True)]
        fabric.barrier()
        if fabric.is_global_zero:
            write_csv(path, predictions, task.class_names)
            remove(training)  # as many models as subjects would fill a disk
        fabric.barrier()
        return predictions

    def _write(
        self,
        scores: Scores,
        predictions: Sequence[Prediction],
        index: DatasetIndex,
        folds: int,
        fabric: Fabric,
    ) -> None:
        from ..results.plots import plot_confusion_matrix
        from ..results.tested_clips import write_csv, write_megc_log

        metrics, table, log, picture = (self.output / name for name in RESULTS)
        write_csv(table, predictions, index.class_names)
        write_megc_log(log, predictions)
        plot_confusion_matrix(picture, scores, self._title(scores, index))
        write_text(metrics, json.dumps(self._metrics(scores, index, folds, fabric), indent=2) + "\n")

    def _title(self, scores: Scores, index: DatasetIndex) -> str:
        subjects = len({clip.subject for clip in index.clips})
        lines = [f"{index.name}: {len(index.clips)} clips of {subjects} subjects, {self.protocol}", figures(scores)]
        if self.shuffle_labels:
            lines.append("control: labels shuffled in training")
        if index.generated:
            lines.append(NO_EVIDENCE)
        return "\n".join(lines)

    def _metrics(self, scores: Scores, index: DatasetIndex, folds: int, fabric: Fabric) -> dict:
        import numpy
        import torch

        import hsta_kernels

        return {
            **scores.to_dict(),
            "protocol": self.protocol,
            "folds": folds,
            "subjects": len({clip.subject for clip in index.clips}),
            "clips": len(index.clips),
            "shuffled_labels": self.shuffle_labels,
            "dataset": index.name,
            "generated_data": index.generated,
            "model": self.model.model,
            "seed": self.seed,
            "device": str(fabric.device),
            "versions": {
                "hsta-kernels": hsta_kernels.__version__,
                "torch": torch.__version__,
                "numpy": numpy.__version__,
                "python": platform.python_version(),
            },
        }


def summary(scores: Scores, index: DatasetIndex) -> str:
    """One line for people."""
    line = f"{index.name}, {len(scores.class_names)} classes: {figures(scores)}"
    return line + (f"; {NO_EVIDENCE}" if index.generated else "")


def figures(scores: Scores) -> str:
    """The scores beside what guessing gives."""
    chance = 1 / len(scores.class_names)
    return f"UF1 {scores.uf1:.3f}, UAR {scores.uar:.3f}, accuracy {scores.accuracy:.3f} (chance {chance:.3f})"
