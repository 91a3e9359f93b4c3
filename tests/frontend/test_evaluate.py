"""`hsta evaluate`: what is tested was not learned from, and what was computed is not lost."""

import csv
import json
from collections import defaultdict
from types import SimpleNamespace

import cv2
import hsta.results.evaluation
import numpy as np
import pytest
from hsta.cli import main
from hsta.data.registry import read_dataset
from hsta.results.learning_curves import read_curves
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

FILES = {"metrics.json", "predictions.csv", "megc2019.log", "confusion_matrix.png"}


@pytest.fixture
def folds(monkeypatch):
    """What each fold learned from and was tested on; ``stop`` is the fold whose test is interrupted."""
    fit, probabilities = hsta.results.evaluation.fit, hsta.results.evaluation.probabilities
    seen = SimpleNamespace(learned=[], tested=[], stop=None)

    def spying_fit(config, task, clips, *rest, **options):
        seen.learned.append(clips)
        return fit(config, task, clips, *rest, **options)

    def spying_probabilities(model, clips, *rest, **options):
        if seen.stop == len(seen.tested):
            raise KeyboardInterrupt
        seen.tested.append(clips)
        return probabilities(model, clips, *rest, **options)

    monkeypatch.setattr(hsta.results.evaluation, "fit", spying_fit)
    monkeypatch.setattr(hsta.results.evaluation, "probabilities", spying_probabilities)
    return seen


def rows(output):
    with (output / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_files(evaluated):
    assert {path.name for path in evaluated.iterdir()} == FILES | {"attention", "config.json", "curves", "folds"}
    assert sorted(path.name for path in (evaluated / "folds").iterdir()) == [
        f"casme3-spNO.{number}.{ending}" for number in (1, 2, 3) for ending in ("csv", "json")
    ]
    assert (evaluated / "curves" / "casme3-spNO.2.csv").read_text().startswith("epoch,loss,learning_rate\n1,0.")
    assert {name: len(curve.losses) for name, curve in read_curves(evaluated).items()} == {
        f"casme3-spNO.{number}": 2 for number in (1, 2, 3)
    }
    picture = cv2.imread(str(evaluated / "confusion_matrix.png"))
    assert min(picture.shape[:2]) > 300
    assert picture.std() > 10


def test_the_table_has_every_clip_once(evaluated, people):
    index = read_dataset("casme3", people)
    table = rows(evaluated)
    columns = ["dataset", "subject", "clip", "truth", "prediction", "prob_surprise", "prob_happy"]
    assert list(table[0]) == columns
    assert sorted((row["subject"], row["clip"], row["truth"]) for row in table) == sorted(
        (clip.subject, clip.name, clip.emotion) for clip in index.clips
    )
    for row in table:
        chances = {name: float(row[f"prob_{name}"]) for name in ("surprise", "happy")}
        assert sum(chances.values()) == pytest.approx(1)
        assert row["prediction"] == max(chances, key=chances.get)


def test_the_metrics_are_those_of_the_pooled_table(evaluated, people):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    truth, prediction = zip(*((row["truth"], row["prediction"]) for row in rows(evaluated)), strict=True)
    names = ["surprise", "happy"]
    assert metrics["class_names"] == names
    assert metrics["confusion_matrix"] == confusion_matrix(truth, prediction, labels=names).tolist()
    assert metrics["uf1"] == pytest.approx(f1_score(truth, prediction, average="macro", labels=names))
    assert metrics["uar"] == pytest.approx(balanced_accuracy_score(truth, prediction))
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, prediction))
    assert set(metrics["per_class"]) == set(names)
    assert (metrics["protocol"], metrics["folds"], metrics["clips"], metrics["subjects"]) == ("loso", 3, 12, 3)
    assert metrics["generated_data"] is True
    index = read_dataset("casme3", people)
    assert (metrics["faults"], metrics["lost_clips"]) == ([str(fault) for fault in index.faults], index.lost)
    assert any("left out of the classes" in note for note in metrics["notes"])


def test_the_log_is_the_table_by_subject(evaluated):
    expected = defaultdict(list)
    label = {"surprise": 0, "happy": 1}
    for row in rows(evaluated):
        expected[f"casme3 {row['subject']}"].append(f"{row['clip']} {label[row['truth']]} {label[row['prediction']]}")
    lines = [line for header, clips in expected.items() for line in (header, *clips)]
    assert (evaluated / "megc2019.log").read_text().splitlines() == lines


@pytest.mark.parametrize("protocol", [["loso"], ["leave-subjects-out", "--folds", "2"]])
def test_no_subject_is_learned_from_and_tested(short, folds, tmp_path, protocol):
    assert main([*short, "--protocol", *protocol, "--output", str(tmp_path / "run")]) == 0
    assert len(folds.learned) == len(folds.tested) == (3 if protocol == ["loso"] else 2)
    for learned, tested in zip(folds.learned, folds.tested, strict=True):
        assert not {clip.subject for clip in learned} & {clip.subject for clip in tested}
        assert len(learned) + len(tested) == 12


def test_interrupted_and_resumed_it_ends_the_same_and_repeats_no_fold(short, evaluated, folds, tmp_path, capsys):
    arguments = [*short, "--protocol", "loso", "--output", str(tmp_path / "run")]
    folds.stop = 1
    assert main(arguments) == 130
    assert "--resume" in capsys.readouterr().err
    assert not FILES & {path.name for path in (tmp_path / "run").iterdir()}
    folds.stop = None
    folds.learned.clear(), folds.tested.clear()
    assert main([*arguments, "--resume"]) == 0
    assert [{clip.subject for clip in clips} for clips in folds.tested] == [{"spNO.2"}, {"spNO.3"}]
    for name in (*FILES, "attention/casme3-spNO.2.safetensors", "curves/casme3-spNO.2.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (evaluated / name).read_bytes(), name


def test_the_control_shuffles_what_is_learned_and_nothing_else(short, folds, tmp_path, people):
    assert main([*short, "--shuffle-labels", "--output", str(tmp_path / "run")]) == 0
    changed = 0
    for learned, tested in zip(folds.learned, folds.tested, strict=True):
        assert all(clip.label == ["surprise", "happy"].index(clip.emotion) for clip in tested)
        truth = [["surprise", "happy"].index(clip.emotion) for clip in learned]
        assert sorted(clip.label for clip in learned) == sorted(truth)
        changed += np.sum([clip.label for clip in learned] != np.array(truth))
    assert changed > 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["shuffled_labels"] is True


def test_what_was_evaluated_is_reported(evaluated, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", str(evaluated), "--output", str(page)]) == 0
    values = json.loads((tmp_path / "page.json").read_text())
    assert values["left_out"] == []
    assert values["scores"]["uf1"]["value"] == json.loads((evaluated / "metrics.json").read_text())["uf1"]
    assert set(values["learning_curves"]) == {f"casme3-spNO.{number}" for number in (1, 2, 3)}
    assert main(["compare", str(evaluated), str(evaluated)]) == 0
    assert "| +0.000 [+0.000, +0.000] | 1.000 |" in capsys.readouterr().out


def test_predictions_of_other_clips_are_refused(short, folds, tmp_path, capsys):
    arguments = [*short, "--output", str(tmp_path / "run")]
    folds.stop = 1
    assert main(arguments) == 130
    table = tmp_path / "run" / "folds" / "casme3-spNO.1.csv"
    lines = table.read_text().splitlines(keepends=True)
    for damaged, message in ((lines[:-1], "holds other clips"), ([*lines[:-1], "casme3,spNO.1\n"], "is damaged")):
        table.write_text("".join(damaged))
        assert main([*arguments, "--resume"]) == 2
        assert message in capsys.readouterr().err
