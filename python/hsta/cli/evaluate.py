"""``hsta evaluate``: train and test on subjects apart, and score all predictions together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import UserError
from ..training.recipe import Recipe
from .options import DataOptions, MachineOptions, ModelOptions, OptionalInt, check_seed
from .run_folder import begin

if TYPE_CHECKING:
    from ..results.metrics import Scores

FOLDS = "folds"


@dataclass
class Evaluate:
    """Train and test with no subject in both, and score all predictions in one confusion matrix.

    Each fold trains new weights on the other subjects and tests those of the last epoch, so that nothing is
    chosen on the subjects tested. Only authors-folds may share subjects, and says so.
    """

    data: DataOptions
    output: Path
    """Folder of the run, which gets metrics.json, predictions.csv, megc2019.log and confusion_matrix.png."""
    protocol: Literal["loso", "leave-subjects-out", "authors-folds"] = "loso"
    """Who is tested at a time: with loso one subject, with leave-subjects-out a group of them (see --folds), with
    authors-folds the clips that tables in the data's folder `folds` name, whoever learns from the same people."""
    folds: OptionalInt = None
    """Number of groups of subjects, for leave-subjects-out only."""
    shuffle_labels: bool = False
    """Train on labels that are dealt out anew, as a control: the score must be at chance."""
    model: ModelOptions = field(default_factory=ModelOptions)
    recipe: Recipe = field(default_factory=Recipe)
    machine: MachineOptions = field(default_factory=MachineOptions)
    seed: int = 0
    """Seed of the random numbers that set first weights, the order of the clips, augmentation and dropout."""
    resume: bool = False
    """Go on with an evaluation that was stopped; folds that are done are not done again."""
    overwrite: bool = False
    """Delete the evaluation that the folder holds and begin it again."""

    def run(self) -> Scores:
        check_seed(self.seed)
        if (self.folds is not None) != (self.protocol == "leave-subjects-out"):
            raise UserError("--folds and --protocol leave-subjects-out go together")
        index = self.data.read()

        from ..data.fold_tables import read_folds
        from ..data.folds import shuffled_labels, subject_folds
        from ..results.evaluation import evaluate_fold
        from ..results.metrics import score
        from ..results.report import FILES, summary, write_report
        from ..training.checkpoints import Task

        if self.protocol == "authors-folds":
            folds, shared = read_folds(self.data.data, index.clips)
            index.notes = [*shared, *index.notes]
        else:
            try:
                folds = subject_folds(index.clips, self.folds)
            except ValueError as error:
                raise UserError(str(error)) from error
        config = self.model.config(len(index.class_names), self.recipe)
        task = Task(index.name, index.class_names, self.data.special, index.generated)
        fabric = self.machine.fabric()
        begin(self, index.told, fabric, owned=(*FILES, FOLDS))

        predictions = []
        for number, fold in enumerate(folds):
            learned, tested = ([index.clips[i] for i in indices] for indices in (fold.train, fold.test))
            if self.shuffle_labels:
                labels = shuffled_labels([clip.label for clip in learned], (self.seed, number))
                learned = [replace(clip, label=label) for clip, label in zip(learned, labels, strict=True)]
            predictions += evaluate_fold(
                learned,
                tested,
                config,
                task,
                self.recipe,
                fabric=fabric,
                directory=self.output / FOLDS / fold.name,
                seed=self.seed,
                workers=self.data.workers,
                title=f"fold {number + 1}/{len(folds)} {fold.name}",
            )
        scores = score([p.truth for p in predictions], [p.label for p in predictions], index.class_names)
        if fabric.is_global_zero:
            write_report(
                self.output,
                scores,
                predictions,
                index,
                protocol=self.protocol,
                folds=len(folds),
                shuffled_labels=self.shuffle_labels,
                model=self.model.model,
                seed=self.seed,
                device=fabric.device,
            )
            print(summary(scores, index))
            print(f"written to {self.output}")
        return scores
