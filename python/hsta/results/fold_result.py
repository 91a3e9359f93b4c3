"""What is kept of a fold that is done: a table of its predictions, and beside it how they were made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.clips import Clip
from ..errors import UserError
from ..files import write_text
from ..training.checkpoints import Task
from .tested_clips import Prediction, read_csv, write_csv


@dataclass(frozen=True)
class FoldResult:
    """Predictions in the order of the fold's tested clips, and the device that made them."""

    predictions: list[Prediction]
    device: str

    def write(self, table: Path, class_names: Sequence[str], run: Mapping[str, object]) -> None:
        """``run`` is all that the predictions depend on. The table comes last: where it is, the fold is done."""
        write_text(table.with_suffix(".json"), json.dumps({"device": self.device, "run": run}, indent=2) + "\n")
        write_csv(table, self.predictions, class_names)

    @classmethod
    def read(cls, table: Path, tested: Sequence[Clip], task: Task, run: Mapping[str, object]) -> FoldResult:
        """What `write` left. Raises `UserError` where that is damaged, of another run or of other clips."""
        record = table.with_suffix(".json")
        try:
            values = json.loads(record.read_text(encoding="utf-8"))
            device, before = str(values["device"]), dict(values["run"])
        except FileNotFoundError:
            raise UserError(f"nothing tells how {table} was made: {record} is missing; run the fold anew") from None
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{record} is damaged: {error}; run the fold anew") from error
        for name in sorted(before.keys() | run.keys()):
            if before.get(name) != run.get(name):
                raise UserError(
                    f"{table} is of another run, of {name} {before.get(name)}, not {run.get(name)}: "
                    "remove it and run the fold anew"
                )
        predictions = read_csv(table, task.class_names, task.action_units)
        if [(p.subject, p.clip, p.truth) for p in predictions] != [
            (clip.subject, clip.name, clip.label) for clip in tested
        ]:
            raise UserError(f"{table} holds other clips than the data set now does: remove it and run the fold anew")
        return cls(predictions, device)
