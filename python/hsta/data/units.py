"""The action units (FACS) that annotators wrote into a cell: ``4+L7``, ``R12A``, ``A1B+A2C``, ``AU 4 or AU 7``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

CHOICE = "action-units"  # of classes
COLUMN = "units"
# What FACS gives a number: the units, heads and eyes, what can be seen, what whole faces do.
_CODES = {1, 2, *range(4, 47), *range(50, 67), 68, 69, *range(70, 75), *range(80, 86), 91, 92, 97, 98}
# Before the number: left, right, top, bottom, asymmetric, unilateral, movements of head and eyes; behind it: how strong
# it is (A to E), or the side once more.
_UNIT = re.compile(r"(?:AU)?[LRTBAUM]*(\d+)[A-EXLRTB]*")
_BETWEEN = re.compile(r"\s*[+,;/&、]\s*|\s+")


class Coded(NamedTuple):
    """The ``units`` of a cell, in order; not ``certain`` where the annotators wrote that it is the one or another."""

    units: tuple[int, ...]
    certain: bool


def read_units(cell: str) -> Coded:
    """What a clean cell (`annotation.clean`) codes: numbers alone, neither sides nor strengths.

    A cell that says so (``0``, ``none``, ``neutral``) codes a face without units. Raises ValueError for an empty one,
    which says nothing, and for what is no unit of FACS.
    """
    text = re.sub(r"\bAU\s+(?=\S)", "AU", cell.strip().upper())
    if text.strip("/-?") in ("", "N.A.", "N/A", "NA"):
        raise ValueError(f"no action unit is coded ({cell!r})" if cell else "no action unit is coded")
    if text in ("0", "AU0", "NONE", "NEUTRAL"):
        return Coded((), True)
    parts = re.split(r"\s+OR\s+", text)
    codes = [_code(code, cell) for part in parts for code in _BETWEEN.split(part)]
    return Coded(tuple(sorted(set(codes))), len(parts) == 1 or len(set(codes)) == 1)


def unit_name(unit: int) -> str:
    """The class of an action unit: ``AU4``."""
    return f"AU{unit}"


def occurring(rows: Iterable[Mapping[str, str]]) -> tuple[int, ...]:
    """The units of all cells that can be read, in order."""
    units: set[int] = set()
    for cells in rows:
        try:
            units.update(read_units(cells.get(COLUMN, "")).units)
        except ValueError:
            continue  # told where the row becomes a clip
    return tuple(sorted(units))


def _code(written: str, cell: str) -> int:
    found = _UNIT.fullmatch(written)
    if not found or int(found[1]) not in _CODES:
        raise ValueError(f"action units {cell!r}: {written!r} is none of FACS")
    return int(found[1])
