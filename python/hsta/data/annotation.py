"""Annotation tables as people send them round: csv or xlsx, stray spaces, full-width punctuation."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path

import pandas as pd

from ..errors import UserError


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
    """The table in ``path``, every cell cleaned text, columns in lower case. Raises `UserError` if it cannot be read.

    In a workbook the first sheet that has the required columns is taken.
    """
    try:
        if path.suffix.lower() == ".csv":
            sheets = [_read_csv(path)]
        else:
            sheets = list(pd.read_excel(path, sheet_name=None, dtype=str, engine="openpyxl").values())
    except (OSError, ValueError, KeyError, pd.errors.ParserError) as error:
        raise UserError(f"cannot read the annotation {path}: {error}") from error
    except Exception as error:  # openpyxl lets zipfile's and its XML parser's own errors through
        raise UserError(f"cannot read the annotation {path}: {type(error).__name__}: {error}") from error
    missing: list[str] = list(required)
    for table in sheets:
        table.columns = [" ".join(clean(column).lower().split()) for column in table.columns]
        lacking = [column for column in required if column not in table.columns]
        if not lacking:
            return table.loc[:, ~table.columns.duplicated()].map(clean)
        missing = min(missing, lacking, key=len)
    raise UserError(f"{path} lacks the column(s) {', '.join(missing)}")


def _read_csv(path: Path) -> pd.DataFrame:
    data = path.read_bytes()
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        raise ValueError("it is neither UTF-8 nor GB 18030")
    if not text.strip():
        raise ValueError("it is empty")
    # A full-width comma is a comma; where it stood inside a quoted cell it stays there.
    from io import StringIO

    return pd.read_csv(
        StringIO(text.replace("，", ",")), dtype=str, keep_default_na=False, skip_blank_lines=True
    )
