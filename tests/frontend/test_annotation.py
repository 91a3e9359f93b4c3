"""Tables as people have them, and what is said of those that cannot be read."""

from datetime import datetime

import openpyxl
import pytest
from hsta.data.annotation import clean, frame_number, read_table
from hsta.errors import UserError
from openpyxl.utils.datetime import CALENDAR_MAC_1904

REQUIRED = ("subject", "clip", "onset", "offset")
HEADER = ["Subject", "Filename", "Onset Frame", "Apex Frame", "Offset Frame", "Action Units", "Estimated Emotion"]
ROW = ["006", "006_1_2", 10, 12, 16, "4+7", "Anger"]
READ = {
    "subject": "006",
    "clip": "006_1_2",
    "onset": "10",
    "apex": "12",
    "offset": "16",
    "units": "4+7",
    "emotion": "Anger",
}


def workbook(path, *sheets, merged=(), epoch=None):
    book = openpyxl.Workbook()
    book.remove(book.active)
    if epoch is not None:
        book.epoch = epoch
    for number, rows in enumerate(sheets):
        sheet = book.create_sheet(f"S{number}")
        for row in rows:
            sheet.append(row)
        for block in merged:
            sheet.merge_cells(block)
    book.save(path)
    return path


def text(path, rows, encoding="utf-8", sign=","):
    path.write_bytes("\r\n".join(sign.join(map(str, row)) for row in rows).encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030"])
@pytest.mark.parametrize("sign", [",", ";", "\t", "，"])
def test_every_csv(tmp_path, encoding, sign):
    row = [*ROW[:-1], "愤怒"]
    if encoding.startswith("utf-16-"):
        row[-1] = "Anger"
    table = read_table(text(tmp_path / "a.csv", [HEADER, row], encoding, sign), REQUIRED)
    assert [row.cells for row in table.rows] == [READ | {"emotion": row[-1]}]
    assert table.columns == set(READ)


def test_bytes_of_no_encoding_are_named(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"Subject,Filename\n\xff\xff\xff")
    with pytest.raises(UserError, match=r"a\.csv: byte \d+ is neither utf-8-sig nor gb18030"):
        read_table(tmp_path / "a.csv", REQUIRED)


def test_titles_above_the_header_blank_columns_and_rows(tmp_path):
    rows = [["SAMM"], [], *[["a note", None, "Subject"]] * 10, [None, *HEADER], [], [None, *ROW], [None] * 8]
    (row,) = read_table(workbook(tmp_path / "a.xlsx", rows), REQUIRED).rows
    assert row.cells == READ
    assert (row.file, row.number) == ("a.xlsx", 15)
    (row,) = read_table(text(tmp_path / "a.csv", [["SAMM"], [], HEADER, [], ROW]), REQUIRED).rows
    assert (row.cells, row.number) == (READ, 5)


def test_merged_cells_are_filled(tmp_path):
    rows = [HEADER, ROW, [None, "006_1_3", 20, 22, 26, "4", None], ROW]
    path = workbook(tmp_path / "a.xlsx", rows, merged=["A2:A3", "G2:G3"])
    first, second, _ = read_table(path, REQUIRED).rows
    assert (second.cells["subject"], second.cells["emotion"]) == ("006", "Anger")
    assert first.cells == READ


def test_sheets_are_joined_and_those_of_something_else_named(tmp_path):
    second = ["007", *ROW[1:]]
    path = workbook(
        tmp_path / "a.xlsx", [HEADER, ROW], [], [["remarks"], ["none"]], [HEADER[:2], ROW[:2]], [HEADER, second]
    )
    table = read_table(path, REQUIRED)
    assert [(row.file, row.cells["subject"]) for row in table.rows] == [("a.xlsx [S0]", "006"), ("a.xlsx [S4]", "007")]
    assert table.notes == [
        "a.xlsx [S2] has no columns subject, clip, onset, offset: not a table of clips, passed over",
        "a.xlsx [S3] has no columns onset, offset: not a table of clips, passed over",
    ]


@pytest.mark.parametrize("epoch", [None, CALENDAR_MAC_1904])
def test_numbers_that_a_workbook_shows_as_text_and_dates(tmp_path, epoch):
    book = openpyxl.Workbook()
    if epoch is not None:
        book.epoch = epoch
    book.active.append(HEADER)
    book.active.append(["006", "006_1_2", "10 ", 12.0, "'16", None, None])
    for number in (46, 59, 61, 4000):
        book.active.append(["006", "006_1_3", number, number, number, None, None])
        for cell in book.active[book.active.max_row][2:5]:
            cell.number_format = "yyyy-mm-dd"
    book.save(tmp_path / "a.xlsx")
    first, *dates = read_table(tmp_path / "a.xlsx", REQUIRED).rows
    assert [frame_number(first.cells[name]) for name in ("onset", "apex", "offset")] == [10, 12, 16]
    assert [frame_number(row.cells["onset"]) for row in dates] == [46, 59, 61, 4000]


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        (46, 46),
        (46.0, 46),
        ("046", 46),
        ("４６", 46),
        ("46.00", 46),
        ("-1", -1),
        ("1900-02-15", 46),
        ("1900/2/15", 46),
        (datetime(1900, 2, 15), 46),
        ("/", None),
        ("", None),
        (None, None),
        (float("nan"), None),
        ("nan", None),
        ("46.5", None),
        (46.5, None),
        ("1e3", None),
        ("2021-02-31", None),
        ("#REF!", None),
        ("inf", None),
    ],
)
def test_frame_numbers(cell, number):
    assert frame_number(clean(cell)) == number


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "old.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(UserError, match=r"old\.xls is in a format that is not read here: save it as xlsx"):
        read_table(tmp_path / "old.xls", REQUIRED)
    with pytest.raises(UserError, match=r"a\.xlsx lacks the column\(s\) offset"):
        read_table(workbook(tmp_path / "a.xlsx", [HEADER[:3]], [["x"]]), REQUIRED)
    (tmp_path / "b.xlsx").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match=r"cannot read the annotation .*b\.xlsx"):
        read_table(tmp_path / "b.xlsx", REQUIRED)
    with pytest.raises(UserError, match="it is empty"):
        read_table(workbook(tmp_path / "c.xlsx", [], []), REQUIRED)
