"""The loss over the epochs of each fold's training, which outlives the training's folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ..errors import UserError
from ..files import read_rows, write_text

CURVES = "curves"  # folder of a run, a table for each fold
COLUMNS = ["epoch", "loss", "learning_rate"]


@dataclass(frozen=True)
class Curve:
    """Mean loss of each epoch, and the learning rate of its last step."""

    losses: tuple[float, ...]
    learning_rates: tuple[float, ...]


def mean_curve(curves: Collection[Curve]) -> Curve:
    """Over the epochs that all of them have."""
    losses, rates = (
        tuple(map(fmean, zip(*several, strict=False)))
        for several in ([curve.losses for curve in curves], [curve.learning_rates for curve in curves])
    )
    return Curve(losses, rates)


def keep_curve(path: Path, log: Path) -> None:
    """Write what TensorBoard's ``log`` of a training has as a csv table; epochs count from 1."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log), size_guidance={"scalars": 0})  # all of them
    events.Reload()
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    # By their step: of a training that was stopped, an epoch may be there twice, and files in another order.
    losses, rates = ({e.step: e.value for e in events.Scalars(name)} for name in ("loss", "learning rate"))
    for epoch, step in enumerate(sorted(losses), 1):
        writer.writerow([epoch, losses[step], rates[step]])
    write_text(path, table.getvalue())


def read_curves(folder: Path) -> dict[str, Curve]:
    """The curves of a run by fold; none where the run has kept none. Raises `UserError` for a damaged table."""
    curves = {}
    for path in sorted((folder / CURVES).glob("*.csv")):
        header, *rows = read_rows(path) or [[]]
        try:
            if header != COLUMNS or not rows:
                raise ValueError(f"its columns must be {','.join(COLUMNS)}, with an epoch a row")
            losses, rates = zip(*((float(loss), float(rate)) for _, loss, rate in rows), strict=True)
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        curves[path.stem] = Curve(losses, rates)
    return curves
