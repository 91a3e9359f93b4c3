"""``hsta collect``: folds that were done one at a time, put together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import UserError
from .evaluate import FOLDS, Evaluate
from .run_folder import alone_in, identity, restored


@dataclass
class Collect:
    """Put the folds that `hsta evaluate --fold` did together: the files are those of an evaluation in one go.

    Folds that are missing are named, and those of other settings, other data or another version are refused. The data
    set is looked up where it was, so that this runs in the directory in which the folds did.
    """

    evaluation: Annotated[Path, tyro.conf.Positional]
    """Folder that was the --output of the folds."""

    def run(self) -> None:
        command, run = restored(Evaluate, self.evaluation), identity(self.evaluation)
        index, folds, *_ = command.plan()

        from ..results.evaluation import fold_table
        from ..results.fold_result import FoldResult

        directories = command.directories()
        tables = {seed: [fold_table(at / FOLDS / fold.name) for fold in folds] for seed, at in directories.items()}
        missing = [
            f"{number} ({fold.name})"
            for number, (fold, *of_seeds) in enumerate(zip(folds, *tables.values(), strict=True), 1)
            if not all(table.is_file() for table in of_seeds)
        ]
        if missing:
            named = ", ".join(missing)
            raise UserError(f"{len(missing)} of {len(folds)} folds are missing in {self.evaluation}: {named}")
        tested, task = [[index.clips[i] for i in fold.test] for fold in folds], command.task(index)
        results = {
            seed: [FoldResult.read(*one, task, run) for one in zip(of_seed, tested, strict=True)]
            for seed, of_seed in tables.items()
        }
        with alone_in(self.evaluation):
            by_seed = {
                seed: command.score(index, results[seed], seed, at, write=True) for seed, at in directories.items()
            }
            command.conclude(index, by_seed)
