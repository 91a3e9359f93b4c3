"""Folds share no subject, and what they predict is written as the field wants it."""

import dataclasses
from pathlib import Path

import pytest
from hsta.data.clips import Clip
from hsta.data.fold_tables import read_folds
from hsta.data.folds import Fold, check_disjoint, dataset_folds, shuffled_labels, subject_folds
from hsta.data.natural_order import natural_key
from hsta.errors import UserError
from hsta.results.tested_clips import Prediction, read_csv, write_csv, write_megc_log
from hypothesis import given
from hypothesis import strategies as st


def clip(subject: str, name: str = "a", label: int = 0, dataset: str = "casme3") -> Clip:
    return Clip(dataset, subject, name, (Path("1.jpg"),), None, "happy", label)


subjects = st.lists(st.integers(1, 12).map("sub{}".format), min_size=2, max_size=40).filter(
    lambda names: len(set(names)) > 1
)


@given(subjects, st.data())
def test_every_clip_is_tested_once_by_a_model_that_never_saw_its_subject(names, data):
    clips = [clip(name, str(i)) for i, name in enumerate(names)]
    folds = data.draw(st.none() | st.integers(2, len(set(names))))
    result = subject_folds(clips, folds)
    assert len(result) == (folds or len(set(names)))
    assert sorted(i for fold in result for i in fold.test) == list(range(len(clips)))
    for fold in result:
        assert sorted(fold.train + fold.test) == list(range(len(clips)))
        assert {names[i] for i in fold.test} == set(fold.subjects)
        assert not {names[i] for i in fold.train} & set(fold.subjects)


def test_names_are_ordered_by_their_numbers_and_a_raised_digit_is_a_letter():
    names = ["9", "10", "sub1", "sub1²", "sub2", "sub10", "sub10a"]
    assert sorted(reversed(names), key=natural_key) == names


def test_loso_has_a_fold_a_subject_in_natural_order():
    folds = subject_folds([clip("sub10"), clip("sub2"), clip("sub10", "b")])
    assert [fold.name for fold in folds] == ["casme3-sub2", "casme3-sub10"]
    assert [fold.test for fold in folds] == [(1,), (0, 2)]


def test_the_same_name_in_two_data_sets_is_two_subjects():
    folds = subject_folds([clip("1", dataset="casme2"), clip("1", dataset="samm")])
    assert [fold.name for fold in folds] == ["casme2-1", "samm-1"]


def test_each_data_set_is_tested_by_a_model_of_the_others():
    clips = [clip("1", dataset="casme2"), clip("1", dataset="samm"), clip("2", dataset="casme2"), clip("3")]
    folds = dataset_folds(clips)
    assert [(fold.name, fold.train, fold.test) for fold in folds] == [
        ("casme2", (1, 3), (0, 2)),
        ("samm", (0, 2, 3), (1,)),
        ("casme3", (0, 1, 2), (3,)),
    ]
    assert dataset_folds(clips, ["samm"]) == folds[1:2]
    with pytest.raises(ValueError, match="test_on must be some of casme2, samm, casme3, got smic"):
        dataset_folds(clips, ["smic"])
    with pytest.raises(ValueError, match="at least two data sets"):
        dataset_folds([clip("1"), clip("2")])


def test_groups_are_of_about_the_same_size():
    clips = [clip(f"sub{s}", str(i)) for s, n in enumerate((9, 1, 5, 5, 2, 2)) for i in range(n)]
    assert sorted(len(fold.test) for fold in subject_folds(clips, 2)) == [12, 12]


def test_a_fold_that_shares_a_subject_is_refused():
    clips = [clip("sub1", "a"), clip("sub1", "b"), clip("sub2")]
    with pytest.raises(ValueError, match="sub1"):
        check_disjoint(Fold("bad", ("sub1",), train=(1, 2), test=(0,)), clips)


@pytest.mark.parametrize("smuggled", ["Sub01", "sub 1", " sub1", "ｓｕｂ１", "sub０１", "SUB001"])
def test_nobody_is_smuggled_in_under_another_spelling(smuggled):
    clips = [clip("sub1", "a"), clip(smuggled, "b"), clip("sub2", "c"), clip("sub11", "d")]
    folds = subject_folds(clips)
    assert [fold.test for fold in folds] == [(0, 1), (2,), (3,)]
    assert folds[0].name == "casme3-sub1"
    for fold in subject_folds(clips, 2):
        assert ({0, 1} <= set(fold.test)) or ({0, 1} <= set(fold.train))
    with pytest.raises(ValueError, match="tests subjects that it was trained on"):
        check_disjoint(Fold("bad", ("sub1",), train=(1, 2), test=(0,)), clips)


@pytest.mark.parametrize(("names", "folds"), [(("a",), None), (("a", "b"), 3), (("a", "b"), 1)])
def test_too_few_subjects_are_refused(names, folds):
    with pytest.raises(ValueError, match="subjects"):
        subject_folds([clip(name) for name in names], folds)


def test_shuffled_labels_are_the_same_ones_dealt_out_anew():
    labels = [0] * 20 + [1] * 10 + [2] * 10
    shuffled = shuffled_labels(labels, (0, 1))
    assert sorted(shuffled) == labels and shuffled != labels
    assert shuffled == shuffled_labels(labels, (0, 1)) != shuffled_labels(labels, (0, 2))


def table(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["Subject,Filename,Onset,label_for_7", *rows]))


def test_folds_of_others_are_read_and_what_they_share_is_told(tmp_path):
    clips = [clip("spNO.1", "a_10"), clip("spNO.1", "b_20"), clip("spNO.2", "a_30"), clip("spNO.3", "a_40")]
    table(tmp_path / "folds" / "train_1.csv", "spNO.1,a,10,0", "spNO.2,a,30,0")
    table(tmp_path / "folds" / "test_1.csv", "spno.1 ,b,20,0", "spNO.3,a,40.0,0", "spNO.9,a,1,0")
    (fold,), notes = read_folds(tmp_path, clips)
    assert fold == Fold("1", ("spNO.1", "spNO.3"), (0, 2), (1, 3))
    assert notes[0] == "test_1.csv: 1 of 3 rows are no clips of the data set, passed over"
    assert notes[1].startswith("fold 1 shares 1 of its 2 tested subjects")


def test_folds_of_others_that_cannot_be_used_are_refused(tmp_path):
    clips = [clip("spNO.1", "a_10"), clip("spNO.2", "a_30")]
    with pytest.raises(UserError, match=r"no folds: .*folds must hold pairs"):
        read_folds(tmp_path, clips)
    table(tmp_path / "folds" / "train_1.csv", "spNO.1,a,10,0")
    with pytest.raises(UserError, match=r"train_1\.csv has no partner for test"):
        read_folds(tmp_path, clips)
    table(tmp_path / "folds" / "test_1.csv", "spNO.9,a,10,0")
    with pytest.raises(UserError, match=r"test_1\.csv names no clip"):
        read_folds(tmp_path, clips)
    table(tmp_path / "folds" / "test_1.csv", "spNO.1,a,10,0")
    with pytest.raises(UserError, match="fold 1 tests 1 clips that it is trained on"):
        read_folds(tmp_path, clips)


PREDICTIONS = [
    Prediction("casme2", "sub01", "EP02_01f", 1, (0.1, 0.7, 0.2)),
    Prediction("casme2", "sub01", "EP03_02", 0, (0.1, 0.3, 0.6)),
    Prediction("casme2", "sub02", "EP01_11", 2, (1 / 3, 1 / 3, 1 / 3)),
]
NAMES = ("negative", "positive", "surprise")


def test_the_log_is_megc2019s(tmp_path):
    write_megc_log(tmp_path / "log", PREDICTIONS)
    assert (tmp_path / "log").read_text() == ("casme2 sub01\nEP02_01f 1 1\nEP03_02 0 2\ncasme2 sub02\nEP01_11 2 0\n")


def test_the_table_comes_back_as_it_was_written(tmp_path):
    write_csv(tmp_path / "p.csv", PREDICTIONS, NAMES)
    header, first, *_ = (tmp_path / "p.csv").read_text().splitlines()
    assert header == "dataset,subject,clip,truth,prediction,prob_negative,prob_positive,prob_surprise"
    assert first == "casme2,sub01,EP02_01f,positive,positive,0.1,0.7,0.2"
    assert read_csv(tmp_path / "p.csv", NAMES) == PREDICTIONS


def test_a_table_of_other_classes_is_refused(tmp_path):
    write_csv(tmp_path / "p.csv", PREDICTIONS, NAMES)
    with pytest.raises(UserError, match="prob_happy"):
        read_csv(tmp_path / "p.csv", ("happy", "sad", "fear"))


def test_the_prediction_is_the_likeliest_class():
    assert [p.label for p in PREDICTIONS] == [1, 2, 0]
    assert dataclasses.replace(PREDICTIONS[0], probabilities=(0.5, 0.2, 0.3)).label == 0
