"""A search: each trial draws a recipe, trains by it on some of the subjects that it is given, and tests on the others.

Importing this loads Optuna, of the extra `tune`.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import optuna
from lightning_fabric import Fabric
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, create_trial

import hsta_kernels

from ..data.clips import Clip
from ..data.folds import Fold, subject_folds
from ..files import remove, write_text
from ..results.evaluation import alone_with, evaluate_fold
from ..results.learning_curves import CURVES
from ..results.scoring import scores_of
from ..training.checkpoints import Task
from ..training.loop import Diverged
from ..training.recipe import Recipe
from ..training.start import Start
from .space import BY_FACTOR, Choice, Settings

JOURNAL = "journal.log"  # of Optuna's storage
TRIALS = "trials"
FOLDS = "folds"


@dataclass(frozen=True)
class Trial:
    """``settings`` are those that are searched; the score of one that ``diverged`` is 0."""

    settings: Settings
    score: float
    diverged: bool


class Held(JournalFileOpenLock):
    """A search is alone in its folder by a lock that dies with the process; Optuna's own would outlive it."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def search(
    learned: Sequence[Clip],
    space: Mapping[str, Choice],
    recipe: Recipe,
    config: hsta_kernels.HSTAConfig,
    task: Task,
    *,
    trials: int,
    inner_folds: int,
    fabric: Fabric,
    directory: Path,
    seed: int,
    workers: int,
    title: str,
    run: Mapping[str, object],
    start: Start | None = None,
) -> list[Trial]:
    """Do the ``trials`` that are not done yet, and return all: none sees other clips than those ``learned``.

    The subjects are dealt into ``inner_folds`` groups. A trial trains as many models, each tested on the group that it
    has not seen, and its score is UF1 of all predictions together, or mean F1 of action units. The first trial is the
    ``recipe`` as it is where ``space`` holds it. What is drawn depends on ``seed`` and the trials before alone, so
    that a search that was killed at any moment goes on as if it had not been. ``run`` is all that the trials depend on
    but their settings. Raises `UserError` where another process is at the search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: _distribution(name, choice) for name, choice in space.items()}
    given = {name: getattr(recipe, name) for name in space}
    inner = subject_folds(learned, inner_folds)
    with alone_with(directory, fabric, patience=0):
        study = _study(directory / JOURNAL)
        for number in range(len(study.trials), trials):
            as_given = number == 0 and all(value in space[name] for name, value in given.items())
            settings = given if as_given else _draw(study.trials, distributions, seed)
            tried = replace(recipe, **settings)
            at = directory / TRIALS / str(number + 1)
            try:
                score = _score(
                    learned,
                    inner,
                    tried,
                    replace(config, **tried.drop_rates),
                    task,
                    fabric=fabric,
                    directory=at,
                    seed=seed,
                    workers=workers,
                    title=f"{title} trial {number + 1}/{trials}",
                    run={**run, **asdict(tried)},
                    start=start,
                )
            except Diverged:
                remove(at)
                score = None
            study.add_trial(
                create_trial(
                    params=dict(settings),
                    distributions=distributions,
                    value=score or 0.0,
                    user_attrs={"diverged": score is None},
                )
            )
        return [Trial(trial.params, _value(trial), trial.user_attrs["diverged"]) for trial in study.trials]


def write_trials(path: Path, trials: Sequence[Trial], figure: str) -> None:
    """``trial,<figure>,<settings>…,diverged``, a trial a row, counted from 1."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["trial", figure, *trials[0].settings, "diverged"])
    for number, trial in enumerate(trials, 1):
        writer.writerow([number, repr(trial.score), *trial.settings.values(), int(trial.diverged)])
    write_text(path, table.getvalue())


def _study(journal: Path) -> optuna.Study:
    """The trials that are done; one that is not leaves nothing in it."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    if journal.is_file():  # a process that died while it wrote left part of a line
        text = journal.read_bytes()
        os.truncate(journal, text.rfind(b"\n") + 1)
    storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=Held(str(journal))))
    return optuna.create_study(storage=storage, study_name="hsta tune", direction="maximize", load_if_exists=True)


def _draw(done: Sequence[FrozenTrial], distributions: Mapping[str, BaseDistribution], seed: int) -> Settings:
    """The settings of the trial after those ``done``, by an in-memory study, in which an unfinished trial may stay."""
    numbers = np.random.SeedSequence([seed, len(done)]).generate_state(1)
    sampler = optuna.samplers.TPESampler(seed=int(numbers[0]))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(done)
    return study.ask(dict(distributions)).params


def _score(
    learned: Sequence[Clip],
    inner: Sequence[Fold],
    recipe: Recipe,
    config: hsta_kernels.HSTAConfig,
    task: Task,
    *,
    fabric: Fabric,
    directory: Path,
    seed: int,
    workers: int,
    title: str,
    run: Mapping[str, object],
    start: Start | None,
) -> float:
    predictions = []
    for number, fold in enumerate(inner, 1):
        result = evaluate_fold(
            [learned[i] for i in fold.train],
            [learned[i] for i in fold.test],
            config,
            task,
            recipe,
            fabric=fabric,
            directory=directory / FOLDS / fold.name,
            curve=directory / CURVES / f"{fold.name}.csv",
            seed=seed,
            workers=workers,
            title=f"{title}, {number}/{len(inner)}",
            run=run,
            start=start,
        )
        predictions += result.predictions
    scores = scores_of(predictions, task.class_names)
    score = getattr(scores, next(iter(scores.FIGURES)))
    return 0.0 if math.isnan(score) else score  # no action unit is shown and none told


def _distribution(name: str, choice: Choice) -> BaseDistribution:
    if not choice.between:
        return CategoricalDistribution(choice.values)
    low, high = choice.values
    kind = IntDistribution if isinstance(low, int) else FloatDistribution
    return kind(low, high, log=name in BY_FACTOR)  # type: ignore[arg-type]


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None  # only trials that are done are added
    return trial.value
