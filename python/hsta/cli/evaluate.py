"""``hsta evaluate``: train and test on subjects apart, and score all predictions together."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import UserError
from ..training.recipe import Recipe
from .options import (
    DataOptions,
    MachineOptions,
    ModelOptions,
    OptionalInt,
    OptionalPath,
    Preset,
    RayOptions,
    check_seed,
)
from .report import FILES as REPORT
from .run_folder import RUN_FILE, alone_in, begin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_fabric import Fabric

    from hsta_kernels import HSTAConfig

    from ..data.clips import DatasetIndex
    from ..data.folds import Fold
    from ..results.fold_result import FoldResult
    from ..results.metrics import Scores
    from ..results.unit_metrics import UnitScores
    from ..training.checkpoints import Task
    from ..training.start import Start

FOLDS = "folds"
SEEDS = "seeds"
# Seconds that a fold on another machine waits for the process before it, of a machine that was lost, to be gone.
PATIENCE = 600


@dataclass(frozen=True)
class Evaluate:
    """Train and test with no subject in both, and score all predictions together, in one confusion matrix.

    Each fold trains new weights on the other subjects and tests those of the last epoch, so that nothing is
    chosen on the subjects tested. Only authors-folds may share subjects, and says so.
    """

    data: DataOptions
    output: Path
    """Folder of the run, which gets metrics.json, predictions.csv, megc2019.log and confusion_matrix.png; of action
    units, f1_by_unit.png in place of the last two. `hsta report` makes a page of it."""
    protocol: Literal["loso", "leave-subjects-out", "cross-dataset", "authors-folds"] = "loso"
    """Who is tested at a time: with loso one subject, with leave-subjects-out a group of them (see --folds), with
    cross-dataset one of several data sets (see --also, --test-on), with authors-folds the clips that tables in the
    data's folder `folds` name, whoever learns from the same people."""
    folds: OptionalInt = None
    """Number of groups of subjects, for leave-subjects-out only."""
    test_on: tuple[str, ...] = ()
    """Data sets to test, for cross-dataset only; each in turn if left out."""
    repeats: int = 1
    """Number of evaluations, with the seeds that follow on --seed; of several, mean and deviation are given."""
    shuffle_labels: bool = False
    """Train on labels that are dealt out anew, as a control: the score must be at chance."""
    model: ModelOptions = field(default_factory=ModelOptions)
    recipe: Recipe = field(default_factory=Recipe)
    tuned: OptionalPath = None
    """Folder that `hsta tune` wrote: each fold learns by the recipe that was found for it, of which one that was chosen
    on people whom the fold tests is refused; the other options are those given there."""
    preset: Preset = None
    """On the command line, options of a kind, which those that are given override: the recipe of HSTA's authors for
    CAS(ME)^3, or a quick one to see that all works."""
    machine: MachineOptions = field(default_factory=MachineOptions)
    seed: int = 0
    """Seed of the random numbers that set first weights, the order of the clips, augmentation and dropout."""
    fold: OptionalInt = None
    """Do this one of the folds alone, counted from 1, in a folder where others may be done at the same time, such as by
    the jobs of an array; `hsta collect` puts them together. It joins the evaluation that was begun there."""
    launcher: Literal["local", "ray"] = "local"
    """Who does the folds: local is this process, one after the other, ray the machines of a Ray cluster, as many at a
    time as they have room for, in folders that all of them share."""
    ray: RayOptions = field(default_factory=RayOptions)
    resume: bool = False
    """Go on with an evaluation that was stopped; folds that are done are not done again."""
    overwrite: bool = False
    """Delete the evaluation that the folder holds and begin it again."""

    def run(self) -> list[Scores | UnitScores]:
        """The scores of each seed; none of one fold."""
        if self.launcher == "ray":
            return self._run_on_ray()
        index, folds, config, start = self.plan()
        fabric = self.machine.fabric()
        begun = self if self.fold is None else replace(self, fold=None, resume=True)
        run = begun.begin(index, folds, fabric)
        by_seed = {}
        for seed, directory in self.directories().items():
            results = [
                self._evaluate(index, folds, number, config, start, fabric, directory, seed, run)
                for number in range(len(folds))
                if self.fold in (None, number + 1)
            ]
            if self.fold is None:
                by_seed[seed] = self.score(index, results, seed, directory, write=fabric.is_global_zero)
        if fabric.is_global_zero:
            if self.fold is None:
                self.conclude(index, by_seed)
            else:
                name = folds[self.fold - 1].name
                print(f"fold {self.fold} of {len(folds)}, {name}, is done; when all are: hsta collect {self.output}")
        return list(by_seed.values())

    def _run_on_ray(self) -> list[Scores | UnitScores]:
        from .ray_tasks import cluster, run_tasks

        index, folds, *_ = self.plan()
        takes = replace(self.ray, gpus_per_task=0) if self.machine.accelerator == "cpu" else self.ray
        with cluster(takes):
            run = self.begin(index, folds, MachineOptions(accelerator="cpu").fabric())
            tasks = {
                fold.name if self.repeats == 1 else f"{fold.name} of seed {seed}": (number, seed)
                for seed in self.directories()
                for number, fold in enumerate(folds)
            }
            run_tasks(replace(self, resume=True, overwrite=False).do_fold, tasks, takes, unit="fold")
        return self.gather(index, folds, run)

    def do_fold(self, number: int, seed: int) -> None:
        """In a process elsewhere: a fold, counted from 0, of the run that was begun in the folder that all share."""
        index, folds, config, start, fabric, run = _joined(self)
        directory = self.directories()[seed]
        self._evaluate(index, folds, number, config, start, fabric, directory, seed, run, patience=PATIENCE)

    def begin(self, index: DatasetIndex, folds: Sequence[Fold], fabric: Fabric) -> dict[str, object]:
        """Make ``output`` the folder of this evaluation; what its results depend on, as of `run_folder.begin`."""
        from ..results.attention import ATTENTION
        from ..results.learning_curves import CURVES
        from ..results.report import FILES, UNIT_FILES

        owned = (*FILES, *UNIT_FILES, *REPORT, FOLDS, CURVES, ATTENTION, SEEDS)
        return begin(self, index, fabric, owned, folds, self._recipes(index, folds))

    def gather(
        self, index: DatasetIndex, folds: Sequence[Fold], run: Mapping[str, object]
    ) -> list[Scores | UnitScores]:
        """The scores of folds that were done one at a time; writes what they are together.

        ``run`` is what they must depend on. Raises `UserError` where folds are missing, and for those of another run.
        """
        from ..results.evaluation import fold_table
        from ..results.fold_result import FoldResult

        directories = self.directories()
        tables = {seed: [fold_table(at / FOLDS / fold.name) for fold in folds] for seed, at in directories.items()}
        missing = [
            f"{number} ({fold.name})"
            for number, (fold, *of_seeds) in enumerate(zip(folds, *tables.values(), strict=True), 1)
            if not all(table.is_file() for table in of_seeds)
        ]
        if missing:
            named = ", ".join(missing)
            raise UserError(f"{len(missing)} of {len(folds)} folds are missing in {self.output}: {named}")
        tested, task = [[index.clips[i] for i in fold.test] for fold in folds], self.task(index)
        results = {
            seed: [FoldResult.read(*one, task, run) for one in zip(of_seed, tested, strict=True)]
            for seed, of_seed in tables.items()
        }
        with alone_in(self.output):
            by_seed = {seed: self.score(index, results[seed], seed, at, write=True) for seed, at in directories.items()}
            self.conclude(index, by_seed)
        return list(by_seed.values())

    def plan(self) -> tuple[DatasetIndex, list[Fold], HSTAConfig, Start | None]:
        """What is learned from, who is tested, and the model with the weights that it begins with, if any."""
        check_seed(self.seed)
        self._check_launcher()
        if self.fold is not None and self.overwrite:
            raise UserError("--fold and --overwrite exclude each other: each fold would delete those done before")
        if self.repeats < 1:
            raise UserError(f"repeats must be at least 1, got {self.repeats}")
        if (self.folds is not None) != (self.protocol == "leave-subjects-out"):
            raise UserError("--folds and --protocol leave-subjects-out go together")
        if self.test_on and self.protocol != "cross-dataset":
            raise UserError("--test-on goes with --protocol cross-dataset")
        if self.data.also and self.protocol == "authors-folds":
            raise UserError("--protocol authors-folds reads the folds of one data set: --also does not go with it")
        index = self.data.read()
        folds = self._folds(index)
        if self.fold is not None and not 1 <= self.fold <= len(folds):
            raise UserError(f"fold must be from 1 to {len(folds)}, the number of folds, got {self.fold}")
        self._recipes(index, folds)  # complains where one of them must not be taken
        config, start = self.model.begin(index, self.recipe)
        if start is not None and self.protocol != "authors-folds":
            start.refuse({" ".join(index.clips[i].person) for fold in folds for i in fold.test})
        return index, folds, config, start

    def directories(self) -> dict[int, Path]:
        """Where the evaluation of each seed lies."""
        if self.repeats == 1:
            return {self.seed: self.output}
        return {seed: self.output / SEEDS / str(seed) for seed in range(self.seed, self.seed + self.repeats)}

    def score(
        self, index: DatasetIndex, results: Sequence[FoldResult], seed: int, directory: Path, *, write: bool
    ) -> Scores | UnitScores:
        """The scores of all folds' predictions together; ``write`` leaves the files of the seed's evaluation."""
        from ..results.report import write_report
        from ..results.scoring import scores_of

        predictions = [prediction for result in results for prediction in result.predictions]
        if not write:
            return scores_of(predictions, index.class_names)
        return write_report(
            directory,
            predictions,
            index,
            protocol=self.protocol,
            folds=len(results),
            shuffled_labels=self.shuffle_labels,
            model=self.model.model,
            seed=seed,
            device=", ".join(dict.fromkeys(result.device for result in results)),
        )

    def conclude(self, index: DatasetIndex, by_seed: Mapping[int, Scores | UnitScores]) -> None:
        """Write what is of all seeds, and tell the scores."""
        from ..results.report import summary, write_seeds

        if self.repeats > 1:
            write_seeds(self.output, by_seed, index)
        print(summary(by_seed, index))
        print(f"written to {self.output}")

    def task(self, index: DatasetIndex) -> Task:
        from ..training.checkpoints import Task

        return Task(index.name, index.class_names, self.data.special, index.generated, action_units=index.action_units)

    def _check_launcher(self) -> None:
        self.ray.check()
        if self.launcher == "local":
            if self.ray != RayOptions():
                raise UserError("--address, --cpus-per-task and --gpus-per-task go with --launcher ray")
            return
        if self.fold is not None:
            raise UserError("--fold and --launcher ray exclude each other: Ray does all folds")
        for name, value in (("devices", self.machine.devices), ("num_nodes", str(self.machine.num_nodes))):
            if value != "1":
                raise UserError(f"with --launcher ray {name} must be 1, those of a fold, got {value}")
        if self.machine.accelerator == "cpu" and self.ray.gpus_per_task:
            raise UserError("--gpus-per-task and --accelerator cpu exclude each other")

    def _folds(self, index: DatasetIndex) -> list[Fold]:
        from ..data.fold_tables import read_folds
        from ..data.folds import dataset_folds, subject_folds

        if self.protocol == "authors-folds":
            folds, shared = read_folds(self.data.data, index.clips)
            index.notes = [*shared, *index.notes]
            return folds
        try:
            if self.protocol == "cross-dataset":
                return dataset_folds(index.clips, self.test_on)
            return subject_folds(index.clips, self.folds)
        except ValueError as error:
            raise UserError(str(error)) from error

    def _recipes(self, index: DatasetIndex, folds: Sequence[Fold]) -> dict[str, Recipe]:
        """By fold, where they were tuned; none where all folds learn by the recipe that is given.

        Raises `UserError` where there is none for a fold, and for one that was chosen on people whom it tests.
        """
        if self.tuned is None:
            return {}
        from ..tuning.tuned import tuned_recipe

        return {
            fold.name: tuned_recipe(self.tuned, fold.name, self.recipe, [index.clips[i] for i in fold.test])
            for fold in folds
        }

    def _evaluate(
        self,
        index: DatasetIndex,
        folds: Sequence[Fold],
        number: int,
        config: HSTAConfig,
        start: Start | None,
        fabric: Fabric,
        directory: Path,
        seed: int,
        run: Mapping[str, object],
        patience: float = 0,
    ) -> FoldResult:
        from ..data.folds import shuffled_labels
        from ..results.attention import ATTENTION
        from ..results.evaluation import evaluate_fold
        from ..results.learning_curves import CURVES

        fold = folds[number]
        recipe = self._recipes(index, [fold]).get(fold.name, self.recipe)
        learned, tested = ([index.clips[i] for i in indices] for indices in (fold.train, fold.test))
        if self.shuffle_labels:
            labels = shuffled_labels([clip.label for clip in learned], (seed, number))
            learned = [replace(clip, label=label) for clip, label in zip(learned, labels, strict=True)]
        return evaluate_fold(
            learned,
            tested,
            replace(config, **recipe.drop_rates),
            self.task(index),
            recipe,
            fabric=fabric,
            directory=directory / FOLDS / fold.name,
            curve=directory / CURVES / f"{fold.name}.csv",
            attention=directory / ATTENTION / f"{fold.name}.safetensors",
            seed=seed,
            workers=self.data.workers,
            title=f"fold {number + 1}/{len(folds)} {fold.name}",
            run=run,
            start=start,
            patience=patience,
        )


@cache
def _joined(
    command: Evaluate,
) -> tuple[DatasetIndex, list[Fold], HSTAConfig, Start | None, Fabric, dict[str, object]]:
    """What the folds of a process share that joins a run begun elsewhere; all data are read, to know that they are the
    same. Raises `UserError` where they are not, nor the versions, and where the folder is not that of the run."""
    if not (command.output / RUN_FILE).is_file():
        raise UserError(
            f"{command.output.absolute()} is not the run's folder on {socket.gethostname()}: machines must share a "
            "file system"
        )
    index, folds, config, start = command.plan()
    fabric = command.machine.fabric()
    return index, folds, config, start, fabric, command.begin(index, folds, fabric)
