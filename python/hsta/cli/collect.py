"""``hsta collect``: folds that were done one at a time, put together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .evaluate import Evaluate
from .run_folder import identity, restored


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
        command.gather(index, folds, run)
