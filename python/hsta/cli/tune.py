"""``hsta tune``: a recipe searched for on the subjects that learn, those that are tested apart."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ..errors import UserError
from ..training.recipe import Recipe
from .evaluate import Evaluate
from .options import DataOptions, MachineOptions, ModelOptions, OptionalInt, Preset, check_seed
from .run_folder import begin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsta_kernels import HSTAConfig

    from ..data.clips import Clip, DatasetIndex
    from ..data.folds import Fold
    from ..training.start import Start
    from ..tuning.search import Trial
    from ..tuning.space import Choice


@dataclass(frozen=True)
class Tune:
    """Search for a recipe, for each fold of an evaluation anew and never on those whom the fold tests.

    Each fold's other subjects are split into groups (--inner-folds); a trial trains on all groups but one, in turn, and
    is scored on that one. `hsta evaluate --tuned` then takes the best recipe of each fold.
    """

    data: DataOptions
    output: Path
    """Folder of the run, which gets searches/FOLD with recipe.json, trials.csv, search.png and Optuna's journal."""
    protocol: Literal["loso", "leave-subjects-out", "cross-dataset", "none"] = "loso"
    """Who is held out at a time, as with `hsta evaluate`; with none nobody is, for a recipe of `hsta train`."""
    folds: OptionalInt = None
    """Number of groups of subjects, for leave-subjects-out only."""
    test_on: tuple[str, ...] = ()
    """Data sets to hold out, for cross-dataset only; each in turn if left out."""
    search: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=LOW:HIGH ...")] = (
        "learning-rate=1e-4:1e-2",
        "weight-decay=0.01:0.3",
        "drop-rate=0:0.4",
        "drop-path-rate=0:0.4",
    )
    """What is searched: settings of the recipe, each with a range (epochs=50:150) or the values to try
    (balance=sampling,weights). All others are as they are given."""
    trials: int = 20
    """Number of recipes to try for each fold; the first is the recipe as it is given, where the ranges hold it."""
    inner_folds: int = 3
    """Number of groups into which the subjects are split that a search sees: as many models are trained for a trial."""
    model: ModelOptions = field(default_factory=ModelOptions)
    recipe: Recipe = field(default_factory=Recipe)
    preset: Preset = None
    """On the command line, options of a kind, which those that are given override: the recipe of HSTA's authors for
    CAS(ME)^3, or a quick one to see that all works."""
    machine: MachineOptions = field(default_factory=MachineOptions)
    seed: int = 0
    """Seed of the random numbers that draw recipes and train models: the same seed tries the same recipes."""
    fold: OptionalInt = None
    """Search for this one of the folds alone, counted from 1, in a folder where others may be searched for at the same
    time, such as by the jobs of an array. It joins the run that was begun there."""
    resume: bool = False
    """Go on with a run that was stopped; trials that are done are not done again."""
    overwrite: bool = False
    """Delete the run that the folder holds and begin it again."""

    def run(self) -> None:
        index, folds, config, start, space = self.plan()

        from ..tuning.search import search  # of the extra: its lack is told before anything is written
        from ..tuning.tuned import SEARCHES

        fabric = self.machine.fabric()
        begun = self if self.fold is None else replace(self, fold=None, resume=True)
        run = begin(begun, index, fabric, owned=(SEARCHES,), folds=folds)
        for number, fold in enumerate(folds, 1):
            if self.fold not in (None, number):
                continue
            directory, title = self.output / SEARCHES / fold.name, f"fold {number}/{len(folds)} {fold.name}"
            learned = [index.clips[i] for i in fold.train]
            trials = search(
                learned,
                space,
                self.recipe,
                config,
                Evaluate(self.data, self.output).task(index),
                trials=self.trials,
                inner_folds=self.inner_folds,
                fabric=fabric,
                directory=directory,
                seed=self.seed,
                workers=self.data.workers,
                title=title,
                run=run,
                start=start,
            )
            print(self._write(directory, index, learned, fold, trials))
        taken = f"hsta {'train' if self.protocol == 'none' else 'evaluate'} --tuned {self.output}"
        if self.fold is None:
            print(f"written to {self.output}; it is taken by {taken}")
        else:
            print(f"the search for fold {self.fold} of {len(folds)} is done; when all are: {taken}")

    def plan(self) -> tuple[DatasetIndex, list[Fold], HSTAConfig, Start | None, dict[str, Choice]]:
        """What is learned from, who is held out, the model, the weights that it begins with, and what is searched."""
        from ..tuning.space import corners, parse_space

        space = parse_space(self.search, self.recipe)
        if self.trials < 1:
            raise UserError(f"trials must be at least 1, got {self.trials}")
        if self.machine.devices != "1":
            raise UserError(f"devices must be 1, those of a search, got {self.machine.devices}")
        if self.protocol == "none":
            index, folds, config, start = self._plan_everybody()
        else:
            index, folds, config, start = Evaluate(
                self.data,
                self.output,
                self.protocol,
                self.folds,
                self.test_on,
                model=self.model,
                recipe=self.recipe,
                seed=self.seed,
                fold=self.fold,
                overwrite=self.overwrite,
            ).plan()
        if start is not None:  # who is not held out is tested within a search
            start.refuse(index.people)
        for corner in corners(space, self.recipe):
            corner.balance_of(index.action_units)
            try:
                replace(config, **corner.drop_rates)
            except ValueError as error:
                raise UserError(f"search: {error}") from error
        for fold in folds:
            people = len({index.clips[i].person for i in fold.train})
            if not 2 <= self.inner_folds <= people:
                raise UserError(
                    f"inner_folds must be from 2 to the {people} subjects that the search for {fold.name} sees, "
                    f"got {self.inner_folds}"
                )
        return index, folds, config, start, space

    def _plan_everybody(self) -> tuple[DatasetIndex, list[Fold], HSTAConfig, Start | None]:
        check_seed(self.seed)
        if self.folds is not None or self.test_on or self.fold is not None:
            raise UserError("--folds, --test-on and --fold do not go with --protocol none: nobody is held out")
        from ..data.folds import Fold
        from ..tuning.tuned import EVERYBODY

        index = self.data.read()
        config, start = self.model.begin(index, self.recipe)
        return index, [Fold(EVERYBODY, (), tuple(range(len(index.clips))), ())], config, start

    def _write(
        self, directory: Path, index: DatasetIndex, learned: Sequence[Clip], fold: Fold, trials: Sequence[Trial]
    ) -> str:
        """Write what a search gave; returns it as a line."""
        from ..generated.mark import NO_EVIDENCE
        from ..results.metrics import Scores
        from ..results.unit_metrics import UnitScores
        from ..tuning.picture import plot_search
        from ..tuning.search import write_trials
        from ..tuning.tuned import Tuned

        figure, written = next(iter((UnitScores if index.action_units else Scores).FIGURES.items()))
        best = max(range(len(trials)), key=lambda number: trials[number].score)  # the first of equals
        found, score = dict(trials[best].settings), trials[best].score
        people = tuple(sorted({" ".join(clip.person) for clip in learned}))
        told = ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                         for name, value in found.items())  # fmt: skip
        line = f"{fold.name}: {written} {score:.3f} in trial {best + 1} of {len(trials)}: {told}"
        title = [f"{index.name}, searched on {len(learned)} clips of {len(people)} subjects; {line}"]
        if index.generated:
            title.append(NO_EVIDENCE)
        write_trials(directory / "trials.csv", trials, figure)
        plot_search(directory / "search.png", trials, best, written, "\n".join(title))
        tuned = Tuned(found, replace(self.recipe, **found), people)
        tuned.write(directory, trial=best + 1, **{figure: score}, held_out=fold.subjects)
        return line
