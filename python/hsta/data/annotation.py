"""Annotation tables as people send them round: csv or xlsx, stray spaces, full-width punctuation."""

from __future__ import annotations

import csv
import math
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def clean(value: object) -> str:
    """A cell as text: full-width signs made plain, spaces stripped, empty for a missing value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return unicodedata.normalize("NFKC", str(value)).replace("\ufeff", "").strip()


def frame_number(value: object) -> int | None:
    """A frame number from a cell; None for blanks, ``/`` and anything else that is no number."""
    try:
        number = float(clean(value))
    except ValueError:
        return None
    return int(number) if math.isfinite(number) else None


def read_table(path: Path, required: tuple[str, ...]) -> pd.DataFrame:
    """The table in ``path``: every cell cleaned text, columns in lower case.

    In a workbook the first sheet that has the ``required`` columns is taken. Raises `UserError` when the file
    cannot be read or lacks one of them.
    """
    import pandas as pd

    try:
        if path.suffix.lower() == ".csv":
            sheets = [_read_csv(path)]
        else:
            sheets = list(pd.read_excel(path, sheet_name=None, dtype=str, engine="openpyxl").values())
    except Exception as error:  # openpyxl lets the errors of zipfile and of its XML parser through
        raise UserError(f"cannot read the annotation {path}: {error}") from error
    missing = list(required)
    for table in sheets:
        table.columns = [" ".join(clean(column).lower().split()) for column in table.columns]
        lacking = [column for column in required if column not in table.columns]
        if not lacking:
            return table.loc[:, ~table.columns.duplicated()].map(clean)
        missing = min(missing, lacking, key=len)
    raise UserError(f"{path} lacks the column(s) {', '.join(missing)}")


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("gb18030")  # what spreadsheets in Chinese write
    rows = [row for row in csv.reader(text.splitlines()) if any(map(clean, row))]
    if not rows:
        raise ValueError("it is empty")
    header = _cells(rows[0], len(rows[0]) + 1)
    units = next((i for i, name in enumerate(header) if clean(name).lower() == "au"), len(header) - 1)
    table = []
    for row in rows[1:]:
        cells = _cells(row, len(header))
        surplus = len(cells) - len(header)
        if surplus > 0:  # units written "4,7" without quotes
            cells[units : units + surplus + 1] = [",".join(cells[units : units + surplus + 1])]
        table.append(cells + [""] * -surplus)
    return pd.DataFrame(table, columns=header)


def _cells(row: list[str], expected: int) -> list[str]:
    """A row; full-width commas part its cells if plain ones give too few, else they belong to a cell."""
    if len(row) < expected:
        row = next(csv.reader([",".join(row).replace("\uff0c", ",")]))
    while len(row) > expected and not clean(row[-1]):
        row = row[:-1]
    return row
