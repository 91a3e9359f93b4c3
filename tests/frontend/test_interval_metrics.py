"""Precision, recall and F1 of spotted intervals."""

import pytest
from hsta.errors import UserError
from hsta.results.interval_metrics import SpottingScores, iou, read_truth, score_intervals


def test_iou():
    assert iou((0, 2), (1, 3)) == pytest.approx(1 / 3)
    assert iou((0, 1), (0.5, 1)) == 0.5
    assert iou((0, 1), (2, 3)) == iou((0, 1), (1, 2)) == iou((1, 1), (1, 1)) == 0


def test_counts_are_of_all_films_together():
    scores = score_intervals(
        [
            ([(0, 1), (5, 6)], [(0.5, 1), (5.6, 6), (8, 9)]),  # at IoU 0.5, and below it
            ([], [(1, 2)]),
            ([(1, 2)], []),
            ([], []),
        ]
    )
    assert scores == SpottingScores(true_positives=1, spotted=4, truth=3)
    assert (scores.precision, scores.recall, scores.f1) == (1 / 4, 1 / 3, 2 / 7)


def test_an_interval_is_matched_once():
    assert score_intervals([([(0, 1)], [(0, 1), (0, 0.9)])]) == SpottingScores(1, 2, 1)
    assert score_intervals([([(0, 1), (0, 0.9)], [(0, 1)])]) == SpottingScores(1, 1, 2)


def test_what_cannot_be_divided_is_undefined():
    assert score_intervals([([], [])]).to_dict() == {
        "precision": None,
        "recall": None,
        "f1": None,
        "true_positives": 0,
        "false_positives": 0,
        "false_negatives": 0,
    }
    assert score_intervals([([(0, 1)], [])]).f1 == 0


def test_truth_is_read(tmp_path):
    table = tmp_path / "truth.csv"
    table.write_text("file,onset,offset,remark\na/clip.mp4,1,1.5,x\nb/clip.mp4,,,none\na/clip.mp4,3,3.25,\n")
    here = tmp_path.resolve()
    assert read_truth(table) == {here / "a/clip.mp4": [(1, 1.5), (3, 3.25)], here / "b/clip.mp4": []}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file,onset\n", r"truth\.csv lacks the columns offset"),
        ("", r"lacks the columns file, offset, onset"),
        ("file,onset,offset\na,1,\n", r"line 2: onset and offset must be seconds, got 1 and "),
        ("file,onset,offset\na,2,1\n", r"line 2: onset and offset must be in order, got 2 and 1"),
        ("file,onset,offset\n,2,1\n", r"line 2: file is missing"),
        (b"file,onset,offset\n\xff,2,1\n", r"cannot read .*truth\.csv as a csv table"),
    ],
)
def test_what_is_wrong_in_the_truth_is_named(tmp_path, text, told):
    table = tmp_path / "truth.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=told):
        read_truth(table)
