"""``hsta report``: an evaluation as one page to read, print and pass on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import UserError
from ..files import write_text
from ..results.repeats import Repeats
from .options import OptionalPath

FILES = ("report.html", "report.json")


@dataclass
class Report:
    """Write an evaluation as one self-contained HTML page, and every number in it as JSON beside it.

    Scores with confidence intervals by bootstrap over subjects, confusion matrix, results by class and by subject,
    learning curves, the protocol in words, versions, and what was wrong in the data. Of several seeds it gives the mean
    and the deviation, and the scores of each.
    """

    evaluation: Annotated[Path, tyro.conf.Positional]
    """Folder that `hsta evaluate` wrote, of one seed or of several (--repeats); of these, that of a seed, such as
    evaluation/seeds/0, gives the report of that seed."""
    output: OptionalPath = None
    """Page to write, which ends in .html; report.html in the folder if left out. The JSON file has its name."""

    def run(self) -> None:
        output = self.output or self.evaluation / FILES[0]
        data = output.with_suffix(".json")
        if output.suffix != ".html":
            raise UserError(f"output must end in .html, got {output}")
        if data.name in ("metrics.json", "config.json"):
            raise UserError(f"output must have another name: {data} is a file of a run")
        for path in (output, data):
            if path.is_dir():
                raise UserError(f"{path} is a folder; the report needs a file")
        repeats = Repeats.read(self.evaluation)

        from ..results.described import describe
        from ..results.page import page

        subjects, curves = repeats.subjects(), repeats.curves()
        values = describe(repeats, subjects, curves)
        text = page(values, subjects, curves)
        write_text(data, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        write_text(output, text)
        print(f"written to {output} and {data}")
