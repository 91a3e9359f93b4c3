"""``hsta report``: an evaluation as one page to read, print and pass on."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ..errors import UserError
from ..files import write_text
from ..results.repeats import Repeats
from .options import OptionalPath
from .run_folder import CONTENTS, data_of

if TYPE_CHECKING:
    from ..results.attention import Example
    from ..results.evaluated import Evaluated

FILES = ("report.html", "report.json")


@dataclass
class Report:
    """Write an evaluation as one self-contained HTML page, and every number in it as JSON beside it.

    Scores with confidence intervals by bootstrap over subjects, confusion matrix, results by class and by subject,
    learning curves, where the model looked in a few clips, the protocol in words, versions, and what was wrong in the
    data. Of several seeds it gives the mean and the deviation, and the scores of each.
    """

    evaluation: Annotated[Path, tyro.conf.Positional]
    """Folder that `hsta evaluate` wrote, of one seed or of several (--repeats); of these, that of a seed, such as
    evaluation/seeds/0, gives the report of that seed."""
    output: OptionalPath = None
    """Page to write, which ends in .html; report.html in the folder if left out. The JSON file has its name."""
    faces: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[SUBJECT ...]")] = None
    """Show the faces under the attention, which the page else is without: anybody's, or those of the subjects named,
    whose clips then are the examples. Many data sets allow to show some subjects only, or none: see their licences. The
    data are looked up where they were."""

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
        examples, missing = self._examples(repeats.first)
        values = describe(repeats, subjects, curves, examples, missing, self.faces or ())
        text = page(values, subjects, curves, examples)
        write_text(data, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        write_text(output, text)
        people = [(one.prediction.dataset, one.prediction.subject) for one in examples if one.faces is not None]
        if people:
            named = ", ".join(dict.fromkeys(map(" ".join, people)))
            print(f"note: the page shows the face of {named}: pass it on as the data's licence allows", file=sys.stderr)
        print(f"written to {output} and {data}")

    def _examples(self, evaluated: Evaluated) -> tuple[list[Example], int]:
        """Clips in which attention is shown, and how many more there would be, had the folds kept theirs."""
        from ..results.attention import Example, read_attention
        from ..results.examples import examples, of_subjects

        predictions, kept = evaluated.predictions(), read_attention(evaluated.folder)
        chosen = examples(of_subjects(predictions, self.faces) if self.faces else predictions)
        found = [Example(one, label, kept[one]) for one, label in chosen.items() if one in kept]
        if self.faces is not None:
            found = self._with_faces(evaluated, found)
        return found, len(chosen) - len(found)

    def _with_faces(self, evaluated: Evaluated, examples: list[Example]) -> list[Example]:
        """Raises `UserError` where the data are gone, or no longer those that were tested."""
        data = data_of(evaluated.arguments, evaluated.folder)
        index = data.read()

        from ..data.fingerprint import change, fingerprints
        from ..data.inputs import frames_of
        from ..data.transforms import Augmentation, cut
        from ..results.attention_drawing import SIDE

        clips = {(clip.dataset, clip.subject, clip.name): clip for clip in index.clips}
        names = [(one.prediction.dataset, one.prediction.subject, one.prediction.clip) for one in examples]
        now = fingerprints([clips[name] for name in names if name in clips])
        before = (evaluated.arguments or {}).get(CONTENTS, {})
        if said := change({name: before.get(name, "") for name in map(" ".join, names)}, now):
            raise UserError(f"the faces in {data.data} are not those that were tested: {said}")
        result = []
        for name, example in zip(names, examples, strict=True):
            frames = frames_of(clips[name])
            first = [frames[moment[0]] for moment in example.attention.moments]
            result.append(replace(example, faces=cut(first, SIDE, Augmentation())))
        return result
