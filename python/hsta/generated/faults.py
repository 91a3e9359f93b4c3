"""The faults of the real tables, planted in a generated one."""

from __future__ import annotations

from .layouts import Layout


def plant(rows: list[list[object]], layout: Layout) -> list[list[object]]:
    """The rows with a fault each, as far as there are rows and columns for it, and two rows more at the end.

    In turn: no apex; an apex before the onset; one past the offset; an apex that is the onset; an offset of 0; an
    offset before the onset; numbers as text; the subject, then the clip, spelled another way; the emotion in other
    letters; units with a full-width comma; an onset shown as a date. At the end a clip given a second time, in
    another spelling, and a clip whose folder is missing: the only one that is lost.
    """
    place = {pattern.strip("{}"): column for column, (_, pattern) in enumerate(layout.columns) if pattern}
    rows = [list(row) for row in rows]
    onset, offset = place["onset"], place["offset"]
    apex, emotion, units = (place.get(name) for name in ("apex", "emotion", "units"))
    again = [*rows[0]]

    def change(number: int, column: int | None, value: object) -> None:
        if number < len(rows) and column is not None:
            rows[number][column] = value

    def cell(number: int, column: int | None) -> object:
        return rows[number][column] if number < len(rows) and column is not None else ""

    change(0, apex, "/")
    change(1, apex, _number(cell(1, onset)) - 1)
    change(2, apex, _number(cell(2, offset)) + 1)
    change(3, apex, cell(3, onset))
    change(4, offset, 0)
    change(5, offset, _number(cell(5, onset)) - 2)
    change(6, onset, f" {cell(6, onset)}.0")
    change(7, 0, _respelled(cell(7, 0)))
    change(8, 1, _respelled(cell(8, 1)))
    change(9, emotion, str(cell(9, emotion)).swapcase() + " ")
    change(10, units, "L4，12R")
    change(11, onset, _as_date(_number(cell(11, onset))))
    again[0], again[1] = _respelled(again[0]), _respelled(again[1])
    missing = [*rows[-1]]
    missing[1] = f"{missing[1]}x"
    return [*rows, again, missing]


def _number(cell: object) -> int:
    return int(cell) if isinstance(cell, int) else 0


def _respelled(cell: object) -> str:
    """Other case, full-width digits, spaces around."""
    full_width = {ord(str(digit)): chr(0xFF10 + digit) for digit in range(10)}
    return f" {str(cell).swapcase().translate(full_width)} "


def _as_date(number: int) -> str:
    from datetime import date, timedelta

    return str(date(1899, 12, 30) + timedelta(days=number + (number < 60)))
