"""The scores against scikit-learn."""

import warnings

import numpy as np
import pytest
from hsta.results.metrics import Scores, score
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, recall_score

NAMES = tuple("abcde")


@st.composite
def labels(draw):
    """Truth and predictions of some clips; with few clips or classes drawn, some classes are absent."""
    count = draw(st.integers(1, 30))
    used = draw(st.integers(1, len(NAMES)))
    one = st.lists(st.integers(0, used - 1), min_size=count, max_size=count)
    return draw(one), draw(one)


@given(labels())
def test_every_score_is_scikit_learns(case):
    truth, prediction = case
    scores = score(truth, prediction, NAMES)
    among = {"labels": range(len(NAMES)), "zero_division": np.nan}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are predicted and not there
        balanced = balanced_accuracy_score(truth, prediction)
    np.testing.assert_array_equal(scores.matrix, confusion_matrix(truth, prediction, labels=range(len(NAMES))))
    np.testing.assert_allclose(scores.f1, f1_score(truth, prediction, average=None, **among))
    np.testing.assert_allclose(scores.recall, recall_score(truth, prediction, average=None, **among))
    assert scores.uf1 == pytest.approx(f1_score(truth, prediction, average="macro", **among))
    assert scores.uar == pytest.approx(balanced)
    assert scores.accuracy == pytest.approx(accuracy_score(truth, prediction))


def test_an_absent_class_is_named_and_never_counts_as_right():
    scores = score([0, 0, 1], [0, 0, 1], "abc")
    assert scores.absent == ("c",)
    assert np.isnan(scores.f1[2]) and np.isnan(scores.recall[2])
    assert scores.to_dict()["per_class"]["c"] == {"f1": None, "recall": None, "support": 0, "predicted": 0}


def test_an_absent_class_that_is_predicted_counts_zero():
    scores = score([0, 0, 1], [0, 2, 1], "abc")
    assert scores.absent == ("c",)
    assert scores.f1[2] == 0
    assert scores.uf1 == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores.uar == pytest.approx((1 / 2 + 1) / 2)


def test_folds_are_pooled_not_averaged():
    """Two folds of one class each: the mean of their F1 would be 1/2, that of the pooled matrix is not."""
    pooled = score([0, 0, 1, 1], [0, 0, 0, 0], "ab")
    assert pooled.uf1 == pytest.approx((4 / 6 + 0) / 2)


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([], [], "as many labels"),
        ([0, 1], [0], "as many labels"),
        ([0, 2], [0, 1], "truth must be labels from 0 to 1"),
        ([0, 1], [0, -1], "prediction must be labels from 0 to 1"),
        ([0, 1], [0.0, 1.0], "prediction must be labels"),
    ],
)
def test_what_is_no_label_is_refused(truth, prediction, message):
    with pytest.raises(ValueError, match=message):
        score(truth, prediction, "ab")


def test_rows_are_the_truth():
    matrix = score([0, 0, 1], [1, 1, 1], "ab").matrix
    assert matrix.tolist() == [[0, 2], [0, 1]]
    assert Scores(matrix, ("a", "b")).support.tolist() == [2, 1]
