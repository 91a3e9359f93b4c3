"""The CAS(ME)³ reader on a tree with every fault of the real files planted in it."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hsta.data.registry import read_dataset
from hsta.data.sets.casme3 import CLASS_NAMES
from hsta.errors import UserError

HEADER = (
    "Subject",
    "Filename",
    "Onset",
    "Apex",
    "Offset",
    "AU",
    "Expression type",
    "Objective class",
    "emotion",
)
GOOD = ("spNO.1", "a", 10, 12, 16, "4", "Micro-expression", "III", "anger")


def film(root: Path, subject: str, video: str, numbers) -> None:
    folder = root / subject / video / "color"
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        cv2.imwrite(str(folder / f"{number}.jpg"), np.full((8, 8, 3), 100, np.uint8))


def annotate(root: Path, *rows, header=HEADER, name="annotation.csv") -> Path:
    path = root / name
    path.write_text("\n".join(",".join(map(str, row)) for row in (header, *rows)) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path):
    film(tmp_path, "spNO.1", "a", range(5, 30))
    return tmp_path


def only(root):
    """The one clip of a data set, and its notes as one text."""
    index = read_dataset("casme3", root)
    (clip,) = index.clips
    return clip, "\n".join(index.told)


def test_a_good_row(root):
    annotate(root, GOOD)
    clip, notes = only(root)
    assert notes == ""
    assert (clip.subject, clip.name, clip.emotion, clip.label, clip.apex) == (
        "spNO.1",
        "a_10",
        "anger",
        4,
        2,
    )
    assert [path.name for path in clip.frames] == [f"{n}.jpg" for n in range(10, 17)]


def test_label_order():
    assert CLASS_NAMES == ("others", "disgust", "surprise", "fear", "anger", "sad", "happy")


@pytest.mark.parametrize(
    ("written", "label"),
    [("Others", 0), (" others ", 0), ("happiness", 6), ("SADNESS", 5), ("Surprise", 2), ("ａnger", 4)],
)
def test_spellings_of_emotions(root, written, label):
    annotate(root, (*GOOD[:-1], written))
    clip, notes = only(root)
    assert (clip.label, clip.emotion, notes) == (label, CLASS_NAMES[label], "")


@pytest.mark.parametrize(
    ("apex", "told"),
    [
        (9, "apex 9 outside 10 to 16"),
        (17, "apex 17 outside 10 to 16"),
        ("/", "no apex ('/')"),
        ("", "no apex ('')"),
        ("nan", "no apex"),
    ],
)
def test_apex_without_use(root, apex, told):
    annotate(root, (*GOOD[:3], apex, *GOOD[4:]))
    clip, notes = only(root)
    assert clip.apex is None
    assert told in notes
    assert "annotation.csv row 2: spNO.1 a 10:" in notes


def test_missing_frames_are_passed_over(root):
    for number in (11, 14):
        (root / "spNO.1/a/color" / f"{number}.jpg").unlink()
    annotate(root, GOOD)
    clip, notes = only(root)
    assert [path.stem for path in clip.frames] == ["10", "12", "13", "15", "16"]
    assert clip.apex == 1  # still frame 12
    assert "2 of the frames 10 to 16 missing" in notes


def test_missing_apex_frame(root):
    (root / "spNO.1/a/color/12.jpg").unlink()
    annotate(root, GOOD)
    clip, notes = only(root)
    assert clip.apex is None
    assert "apex frame 12 missing" in notes


def test_frames_come_in_numerical_order(root):
    film(root, "spNO.1", "b", range(95, 106))
    annotate(root, ("spNO.1", "b", 98, 100, 102, *GOOD[5:]))
    clip, _ = only(root)
    assert [path.stem for path in clip.frames] == ["98", "99", "100", "101", "102"]


def test_overlong_spans_are_cut(root):
    film(root, "spNO.1", "c", range(1, 200))
    annotate(root, ("spNO.1", "c", 20, 25, 3000, *GOOD[5:]), ("spNO.1", "c", 100, 160, 170, *GOOD[5:]))
    index = read_dataset("casme3", root)
    first, second = index.clips
    assert (first.frames[0].stem, first.frames[-1].stem, len(first.frames)) == ("20", "70", 51)
    assert second.apex is None  # it lay in the part cut off
    assert "2980 frames from onset to offset, cut at onset + 50" in index.told[0]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (("spNO.7", *GOOD[1:]), "folder spNO.7/a/color is missing"),
        (("spNO.1", "z", *GOOD[2:]), "folder spNO.1/z/color is missing"),
        (("spNO.1", "", *GOOD[2:]), "folder spNO.1//color is missing"),
        (("spNO.1", "a", 500, 502, 504, *GOOD[5:]), "none of the frames 500 to 504"),
        (("spNO.1", "a", "?", 12, 10, *GOOD[5:]), "is no frame number"),
        ((*GOOD[:-1], "bored"), "emotion 'bored' is none of others, disgust, surprise"),
        ((*GOOD[:-1], ""), "emotion '' is none of others, disgust, surprise"),
        (("spNO.1", "a", 10, 12, 17, *GOOD[5:]), "given twice"),
    ],
)
def test_rows_without_use_are_left_out_and_told(root, row, told):
    annotate(root, GOOD, row)
    clip, notes = only(root)
    assert clip.name == "a_10"
    assert "row 3" in notes
    assert told in notes


@pytest.mark.parametrize(
    ("onset", "apex", "offset", "frames", "apex_at", "told"),
    [
        (10, 12, 0, range(10, 30), 2, "offset 0 before onset 10: the frames to 29 serve"),
        (16, 20, 10, range(16, 30), 4, "offset 10 before onset 16: the frames to 29 serve"),
        (16, 12, 10, range(16, 30), None, "apex 12 outside 16 to 29"),
        (10, 12, "?", range(10, 30), 2, "offset '?' is no frame number"),
        (10, 10, 16, range(10, 17), None, "apex 10 is the onset"),
        (10, 10, 10, [10], 0, ""),
    ],
)
def test_rows_are_repaired_where_the_clip_is_plain(root, onset, apex, offset, frames, apex_at, told):
    annotate(root, (*GOOD[:2], onset, apex, offset, *GOOD[5:]))
    clip, notes = only(root)
    assert [int(path.stem) for path in clip.frames] == list(frames)
    assert clip.apex == apex_at
    assert (told in notes) if told else not notes


def test_an_onset_that_is_wrong_leaves_the_frames_after_the_apex(root):
    annotate(root, ("spNO.1", "a", 500, 12, 18, *GOOD[5:]))
    clip, notes = only(root)
    assert [path.stem for path in clip.frames] == [str(number) for number in range(12, 30)]
    assert clip.apex is None
    assert "those from apex 12 to 29 serve" in notes


def test_a_row_of_nobody_is_no_clip_and_none_lost(root):
    annotate(root, GOOD, ("", "", 860, "", "", "", "", "", ""))
    index = read_dataset("casme3", root)
    assert (len(index.clips), index.lost) == (1, 0)
    assert "annotation.csv row 3: 860: names neither a subject nor a clip" in index.told[0]


def test_a_span_without_an_offset_ends_fifty_frames_on(root):
    film(root, "spNO.1", "b", range(1, 200))
    annotate(root, ("spNO.1", "b", 100, 110, 0, *GOOD[5:]))
    clip, _ = only(root)
    assert [clip.frames[0].stem, clip.frames[-1].stem, clip.apex] == ["100", "150", 10]


def test_the_clips_that_were_cut_out_of_the_videos(tmp_path):
    for kind in ("frame", "depth"):
        folder = tmp_path / "Part_A_ME_clip" / kind / "spNO.10_a_116"
        folder.mkdir(parents=True)
        for number in range(116, 124):
            cv2.imwrite(str(folder / f"{number}.png"), np.zeros((8, 8, 3), np.uint8))
    annotate(tmp_path, ("spNO.10", "a", 116, 118, 123, *GOOD[5:]))
    clip, notes = only(tmp_path)
    assert (clip.subject, clip.name, clip.apex, len(clip.frames), notes) == ("spNO.10", "a_116", 2, 8, "")
    assert clip.frames[0].parent.parent.name == "frame"


def test_full_width_commas(root):
    path = annotate(root, GOOD)
    film(root, "spNO.1", "b", range(5, 30))
    film(root, "spNO.1", "c", range(5, 30))
    with path.open("a", encoding="utf-8") as file:
        file.write("spNO.1,b,10,12,16,4，7，9,Micro-expression,III,anger\n")  # inside a cell
        file.write("spNO.1，c，１０，12，16，4，Micro-expression，III，Happy\n")  # between the cells
    index = read_dataset("casme3", root)
    assert index.told == []
    assert [(clip.name, clip.label) for clip in index.clips] == [("a_10", 4), ("b_10", 4), ("c_10", 6)]


def test_unquoted_commas_between_units(root):
    annotate(root, (*GOOD[:5], "4,7,L10", *GOOD[6:]))
    assert only(root)[0].label == 4


def test_gb18030_byte_order_mark_and_blank_lines(root):
    text = "\n".join([",".join(HEADER), "", ",".join(map(str, (*GOOD[:5], "4，7", *GOOD[6:]))), ",,,,,,,,"])
    (root / "annotation.csv").write_bytes(text.encode("gb18030"))
    assert only(root)[1] == ""
    (root / "annotation.csv").write_text(text, encoding="utf-8-sig")
    assert only(root)[1] == ""


def test_stray_spaces_and_case_in_the_header(root):
    header = (" subject", "FileName ", "ONSET", "apex", "Offset ", "au", "Expression  Type", "x", " Emotion ")
    annotate(root, ("spno.1 ", " a", 10, 12, 16, *GOOD[5:]), header=header)
    clip, notes = only(root)
    assert (clip.apex, clip.label, notes) == (2, 4, "")


def test_folders_of_other_case(root):
    (root / "spNO.1").rename(root / "spNo.1")
    annotate(root, GOOD)
    assert only(root)[0].subject == "spNo.1"  # the folder decides how somebody is spelled


def test_optional_columns_absent(root):
    annotate(
        root,
        ("spNO.1", "a", 10, 16, "anger"),
        header=("Subject", "Filename", "Onset", "Offset", "emotion"),
    )
    clip, notes = only(root)
    assert clip.apex is None
    assert "no column Apex" in notes


def test_objective_classes_where_there_is_no_emotion(root):
    annotate(root, GOOD[:-1], header=HEADER[:-1])
    index = read_dataset("casme3", root)
    assert index.class_names == ("I", "II", "III", "IV", "V", "VI", "VII")
    assert (index.clips[0].label, index.clips[0].emotion) == (2, "III")


def test_workbook_in_the_annotation_folder(root):
    (root / "annotation").mkdir()
    path = root / "annotation" / "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx"
    with pd.ExcelWriter(path) as book:
        pd.DataFrame({"remarks": ["none"]}).to_excel(book, sheet_name="about", index=False)
        row = dict(zip(HEADER, GOOD, strict=True))
        rows = pd.DataFrame([row, row | {"Onset": 20, "Apex": "/", "Offset": 24.0}])
        rows.to_excel(book, sheet_name="label", index=False)
    # The table of macro-expressions beside it is not taken for it.
    (root / "annotation" / "cas(me)3_part_A_MaE_label_JpgIndex_v2_emotion.csv").write_text("x\n")
    index = read_dataset("casme3", root)
    assert [(clip.name, clip.apex, len(clip.frames)) for clip in index.clips] == [
        ("a_10", 2, 7),
        ("a_20", None, 5),
    ]


def test_user_errors_name_the_path(root, tmp_path):
    with pytest.raises(UserError, match=r"no such folder: .*nowhere"):
        read_dataset("casme3", tmp_path / "nowhere")
    with pytest.raises(UserError, match="no annotation table") as raised:
        read_dataset("casme3", root)
    assert str(root) in str(raised.value)
    with pytest.raises(UserError, match="unknown data set 'casme9'"):
        read_dataset("casme9", root)
    path = annotate(root, GOOD[:4], header=HEADER[:4])
    with pytest.raises(UserError, match=r"annotation\.csv lacks the column\(s\) offset"):
        read_dataset("casme3", root)
    annotate(root, GOOD[:5], header=HEADER[:5])
    with pytest.raises(UserError, match="no column emotion and no column objective"):
        read_dataset("casme3", root)
    path.write_text("")
    with pytest.raises(UserError, match=r"annotation\.csv: it is empty"):
        read_dataset("casme3", root)
    path.unlink()
    (root / "annotation.xlsx").write_bytes(b"no workbook")
    with pytest.raises(UserError, match=r"cannot read the annotation .*annotation\.xlsx"):
        read_dataset("casme3", root)


def test_no_usable_clip_is_a_user_error(root):
    annotate(root, ("spNO.9", *GOOD[1:]))
    with pytest.raises(UserError, match=r"no usable clip in .*spNO\.9/a/color is missing"):
        read_dataset("casme3", root)


def test_several_tables_are_not_guessed_between(root):
    annotate(root, GOOD)
    annotate(root, GOOD, name="other.csv")
    with pytest.raises(UserError, match="several annotation tables"):
        read_dataset("casme3", root)
