"""``hsta compare``: evaluations side by side, with paired tests over subjects."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..errors import UserError
from ..files import write_text
from ..results.evaluated import Evaluated
from .options import OptionalPath


@dataclass
class Compare:
    """Compare evaluations of the same clips: scores with confidence intervals, differences to the first, p values.

    Intervals are by bootstrap over subjects, p values by a permutation test that exchanges the predictions of whole
    subjects. Of action units, it is their mean F1 that is compared.
    """

    evaluations: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Two folders or more that `hsta evaluate` wrote; the others are compared with the first."""
    format: Literal["markdown", "latex", "csv"] = "markdown"
    """How the table is written; csv has every digit."""
    output: OptionalPath = None
    """File to write; it is printed if left out."""

    def run(self) -> None:
        if len(self.evaluations) < 2:
            raise UserError(f"evaluations must be two or more, got {len(self.evaluations)}")
        if self.output is not None and self.output.is_dir():
            raise UserError(f"{self.output} is a folder; the table needs a file")
        several = [Evaluated.read(folder) for folder in self.evaluations]

        from ..results.comparison import compare
        from ..results.comparison_tables import comma_separated, latex, markdown

        write = {"markdown": markdown, "latex": latex, "csv": comma_separated}[self.format]
        text = write(compare(several))
        if self.output is None:
            sys.stdout.write(text)
        else:
            write_text(self.output, text)
