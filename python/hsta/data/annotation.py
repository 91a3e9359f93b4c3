"""Annotation tables as people send them round: workbooks and csv files of every make, read into rows of text."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from openpyxl.worksheet.worksheet import Worksheet

ENDINGS = {".csv", ".xlsx", ".xlsm"}
OLD_ENDINGS = {".xls", ".ods"}
HEADER_WITHIN = 60  # rows; SAMM has its header in the 14th, under a title and notes

# What the field's tables call a column, letters and digits only.
COLUMNS = {
    "subject": {"subject", "subjects", "sub", "subjectid", "person"},
    "clip": {"filename", "clip", "folder"},
    "onset": {"onset", "onsetframe", "onsetf"},
    "apex": {"apex", "apexframe", "apexf", "apexf1"},
    "offset": {"offset", "offsetframe", "offsetf"},
    "emotion": {"emotion", "emotions", "estimatedemotion"},
    "objective": {"objectiveclass", "objectiveclasses"},
    "units": {"au", "aus", "actionunit", "actionunits"},
}
_NAMES = {spelling: name for name, spellings in COLUMNS.items() for spelling in spellings}


@dataclass(frozen=True)
class Row:
    """A row of a table: the ``file`` (and sheet) it stands in, its ``number`` there, its cells by column.

    Columns are those of `COLUMNS`; others are left out. Cells are clean text, empty where there is nothing.
    """

    file: str
    number: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Table:
    """The rows of a file, the columns that it has, and a sentence for each sheet that could not be used."""

    rows: list[Row]
    columns: frozenset[str]
    notes: list[str]


def clean(value: object) -> str:
    """A cell as text: full-width signs made plain, spaces and a leading apostrophe stripped, empty for nothing."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, datetime):
        value = value.date() if value == datetime.combine(value.date(), datetime.min.time()) else value
    text = unicodedata.normalize("NFKC", str(value)).replace("\ufeff", "").strip().removeprefix("'")
    text = re.sub(r"^(\d+)\.0+$", r"\1", text)  # numbers that a spreadsheet gave a comma
    return "" if text.lower() == "nan" else text


def frame_number(text: str) -> int | None:
    """A frame number from a clean cell; None for blanks, ``/`` and anything else that is no whole number.

    A number that a spreadsheet shows as a date (``1900-02-15`` is 46) is the number again.
    """
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if shown := re.fullmatch(r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})", text):
        try:
            day = date(*map(int, shown.groups()))
        except ValueError:
            return None
        serial = (day - date(1899, 12, 30)).days
        return serial - (serial <= 60)  # spreadsheets know a 29th of February 1900
    return None


def read_table(path: Path, required: Sequence[str]) -> Table:
    """The rows of ``path`` below the row that names all ``required`` columns (of `COLUMNS`).

    The sheets of a workbook that have such a row are joined; of one that has none a note is made, unless it is
    empty. Cells that were merged all have the value of the first. A csv file may be UTF-8, UTF-16 or GB18030,
    with commas, semicolons or tabs. Raises `UserError` when the file cannot be read or no sheet has the columns.
    """
    rows: list[Row] = []
    columns: set[str] = set()
    notes: list[str] = []
    best: list[str] = list(required)
    sheets = list(read_grids(path))
    several = len({sheet for sheet, grid in sheets if grid}) > 1
    read: set[str] = set()
    for sheet, grid in sheets:
        if sheet in read:  # of a csv file, read with other signs between its cells
            continue
        file = f"{path.name} [{sheet}]" if several else path.name
        header, missing = _find_header(grid, required)
        if header is None:
            best = min(best, missing, key=len)
            if several and grid:
                notes.append(f"{file} has no columns {', '.join(missing)}: not a table of clips, passed over")
            continue
        read.add(sheet)
        place, names = header
        columns |= set(filter(None, names))
        for number, cells in grid[place + 1 :]:
            cells = _fit(cells, names)
            named = {name: cell for name, cell in zip(names, cells, strict=True) if name}
            if any(named.values()):
                rows.append(Row(file, number, {name: "" for name in required} | named))
    if not read:
        if not any(grid for _, grid in sheets):
            raise UserError(f"cannot read the annotation {path}: it is empty")
        raise UserError(f"{path} lacks the column(s) {', '.join(best)}")
    return Table(rows, frozenset(columns), notes)


def read_grids(path: Path) -> Iterator[tuple[str, list[tuple[int, list[str]]]]]:
    """Every sheet's name and its rows that are not blank: their numbers, counted from 1, and their clean cells.

    A csv file is given once for each sign that may stand between its cells. Raises `UserError`.
    """
    if path.suffix.lower() in OLD_ENDINGS:
        raise UserError(f"{path} is in a format that is not read here: save it as xlsx or csv")
    if path.suffix.lower() == ".csv":
        text = _decode(path)
        for delimiter in ",;\t":
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            try:
                rows = [(reader.line_num, row) for row in reader]
            except csv.Error as error:
                raise UserError(f"cannot read the annotation {path}, line {reader.line_num}: {error}") from error
            # Full-width commas stay as they are here: they part cells in some files and stand in cells of others.
            yield "", [(number, row) for number, row in rows if any(map(clean, row))]
        return

    import openpyxl
    from openpyxl.utils.datetime import from_excel, to_excel

    try:
        book = openpyxl.load_workbook(path, data_only=True)
    except Exception as error:  # openpyxl lets the errors of zipfile and of its XML parser through
        raise UserError(f"cannot read the annotation {path}: {error}") from error
    for sheet in book.worksheets:
        merged = _merged(sheet)
        grid = []
        for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
            values = [merged.get((number, column), value) for column, value in enumerate(row, 1)]
            # Dates count from 1904 in some workbooks; `frame_number` takes them to count from 1900.
            values = [from_excel(to_excel(v, book.epoch)) if isinstance(v, datetime) else v for v in values]
            cells = [clean(value) for value in values]
            if any(cells):
                grid.append((number, cells))
        yield sheet.title, grid
    book.close()


def _merged(sheet: Worksheet) -> dict[tuple[int, int], object]:
    """The value of each cell of a merged block, which the file holds in the first only."""
    return {
        (row, column): sheet.cell(block.min_row, block.min_col).value
        for block in sheet.merged_cells.ranges
        for row in range(block.min_row, block.max_row + 1)
        for column in range(block.min_col, block.max_col + 1)
    }


def _decode(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    elif b"\0" in data[:2000]:  # UTF-16 without its mark: the zeros of plain letters come first or second
        encodings = ["utf-16-be" if data[:2000:2].count(0) > data[1:2000:2].count(0) else "utf-16-le"]
    else:
        encodings = ["utf-8-sig", "gb18030"]  # the latter is what spreadsheets in Chinese write
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            reason = error
    raise UserError(
        f"cannot read the annotation {path}: byte {reason.start} is neither {' nor '.join(encodings)}; save it as UTF-8"
    )


def _find_header(
    grid: list[tuple[int, list[str]]], required: Sequence[str]
) -> tuple[tuple[int, list[str]] | None, list[str]]:
    """Place in the grid and column names of the header; else what the row that comes nearest to one lacks."""
    best = list(required)
    for place, (_, row) in enumerate(grid[:HEADER_WITHIN]):
        for cells in (row, _part_full_width(row)):
            names: list[str] = []
            for cell in cells:
                name = _NAMES.get(re.sub(r"[\W_]", "", clean(cell).lower()), "")
                names.append("" if name in names else name)
            missing = [name for name in required if name not in names]
            if not missing:
                return (place, names), []
            best = min(best, missing, key=len)
    return None, best


def _part_full_width(row: list[str]) -> list[str]:
    return next(csv.reader([",".join(row).replace("\uff0c", ",")]), [])


def _fit(row: list[str], names: list[str]) -> list[str]:
    """The row with as many cells as there are columns."""
    count = len(names)
    if len(row) < count and any("\uff0c" in cell for cell in row):
        row = _part_full_width(row)
    while len(row) > count and not clean(row[-1]):
        row = row[:-1]
    surplus = len(row) - count
    if surplus > 0:  # units written "4,7" without quotes
        units = names.index("units") if "units" in names else count - 1
        row = [*row[:units], ",".join(row[units : units + surplus + 1]), *row[units + surplus + 1 :]]
    return [clean(cell) for cell in row] + [""] * -surplus
