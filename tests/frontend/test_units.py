"""Action units: what a cell codes, which clips and classes it gives, and what is said of them."""

import csv
import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hsta.cli import main
from hsta.cli.options import DataOptions
from hsta.data.annotation import clean
from hsta.data.clips import Clip
from hsta.data.joined import join
from hsta.data.registry import read_dataset
from hsta.data.units import read_units
from hsta.errors import UserError
from hsta.generated import writer
from hsta.generated.clips import GeneratedClip
from hsta.generated.writer import generate_dataset
from hsta.results.answer import answer
from hsta.results.evaluation import probabilities
from hsta.results.unit_metrics import score_units
from hsta.training.checkpoints import Task
from hsta.training.loop import fit, multi_hot, unit_loss, unit_weights
from hsta.training.recipe import Recipe
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric
from sklearn.metrics import f1_score

import hsta_kernels

NAMES = ("AU1", "AU2", "AU4", "AU12", "AU25")
WITH_UNITS = ("casme2", "samm", "casme3", "mmew", "dfme")
TINY = "--image-size 32 --num-frames 2 --depth 1 1 --epochs 2 --warmup-epochs 1 --batch-size 4 --accelerator cpu"


@pytest.mark.parametrize(
    ("cell", "units"),
    [
        (4, (4,)),
        ("4+7", (4, 7)),
        ("4+L7", (4, 7)),
        ("R12A", (12,)),
        ("12L", (12,)),
        ("4R+7", (4, 7)),
        ("T28+14", (14, 28)),
        ("1+2+25", (1, 2, 25)),
        ("A1B+A2C", (1, 2)),
        ("au4 + AU 7", (4, 7)),
        ("L4，12R", (4, 12)),
        ("4、7", (4, 7)),
        ("4, 7;9 / 10", (4, 7, 9, 10)),
        ("12+12L", (12,)),
        ("4 7", (4, 7)),
        ("M55+61", (55, 61)),
        ("14A or A14C", (14,)),
        ("0", ()),
        ("None", ()),
    ],
)
def test_what_a_cell_codes(cell, units):
    assert read_units(clean(cell)) == (units, True)


def test_one_or_another_is_not_certain():
    assert read_units("12 or AU 14+17") == ((12, 14, 17), False)


@pytest.mark.parametrize("cell", ["", "/", "?", "-", "n/a"])
def test_nothing_coded_is_not_no_unit(cell):
    with pytest.raises(ValueError, match="no action unit is coded"):
        read_units(clean(cell))


@pytest.mark.parametrize(
    ("cell", "part"), [("4+47", "47"), ("x4", "X4"), ("4+?", "?"), ("smile", "SMILE"), ("4++7", ""), ("4.7", "4.7")]
)
def test_what_is_no_unit_is_named(cell, part):
    with pytest.raises(ValueError) as error:
        read_units(cell)
    assert str(error.value) == f"action units {cell!r}: {part!r} is none of FACS"


@pytest.fixture
def quick(monkeypatch):
    """Clips of ten grey pixels whose units are those of the list, in turn."""
    coded = []

    def clip(portrait, emotion, rng, *, image_size, fps, amplitude):
        frames = [np.full((image_size, image_size, 3), 20 * t, np.uint8) for t in range(11)]
        written = coded[0]
        coded.append(coded.pop(0))
        return GeneratedClip(frames, 2, 5, 8, emotion, written, 1.0)

    monkeypatch.setattr(writer, "generate_clip", clip)
    monkeypatch.setattr(writer, "subject_portrait", lambda seed, subject: None)
    return coded


def generate(root, name, *coded, quick):
    """Two subjects of as many clips as there are cells."""
    quick[:] = coded
    generate_dataset(root, 2, len(coded), format=name, image_size=32, progress=False)
    return root


@pytest.mark.parametrize("name", WITH_UNITS)
def test_every_set_that_has_units_is_read_by_them(tmp_path, quick, name):
    generate(tmp_path, name, "4+L7", "R12A", "0", "7 or 4", quick=quick)
    index = read_dataset(name, tmp_path, "action-units")
    assert (index.class_names, index.action_units, index.lost) == (("AU4", "AU7", "AU12"), True, 0)
    assert [(clip.label, clip.emotion) for clip in index.clips[:4]] == [
        ((0, 1), "4+7"),
        ((2,), "12"),
        ((), ""),
        ((0, 1), "4+7"),
    ]
    assert index.counts() == [4, 4, 2]
    assert [fault.message for fault in index.faults if "one or another" in fault.message] == [
        f"{said}: action units '7 or 4': one or another, all are taken"
        for said in (fault.message.partition(": ")[0] for fault in index.faults)
    ]
    assert len(index.faults) == 2


def test_rows_whose_units_nobody_knows_are_lost_and_named(tmp_path, quick, capsys):
    generate(tmp_path, "casme3", "4", "", "12+x", quick=quick)
    assert main(["check", "--data", str(tmp_path), "--classes", "action-units", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["clips"], found["lost"], found["classes"]) == (2, 4, {"AU4": 2})
    said = [(fault["file"], fault["row"], fault["message"].partition(": ")[2]) for fault in found["faults"]]
    table = "cas(me)3_part_A_ME_label_JpgIndex_v2.csv"
    assert said[:2] == [
        (table, 3, "no action unit is coded, left out"),
        (table, 4, "action units '12+x': 'X' is none of FACS, left out"),
    ]


def test_emotions_do_not_care_for_units(tmp_path, quick):
    generate(tmp_path, "casme3", "", "rubbish", quick=quick)
    assert len(read_dataset("casme3", tmp_path).clips) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smic", "SMIC-HS-E_annotation.xlsx has no column of action units: smic cannot be read by them"),
        ("megc2019", "megc2019 has no action units, as SMIC has none"),
        ("folder", "lacks the column"),
    ],
)
def test_sets_without_units_say_so(tmp_path, quick, name, message):
    generate(tmp_path, name, "4", "12", quick=quick)
    with pytest.raises(UserError, match=message):
        read_dataset(name, tmp_path, "action-units")


def test_ones_own_table_needs_no_emotions_then(tmp_path, quick):
    generate(tmp_path, "folder", "4", "12", quick=quick)
    table = tmp_path / "annotation.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(["subject,clip,AU", *(",".join([*line.split(",")[:2], "1+2"]) for line in lines[1:])]))
    index = read_dataset("folder", tmp_path, "action-units")
    assert (index.class_names, len(index.clips)) == (("AU1", "AU2"), 4)


def test_several_sets_have_the_units_of_all(tmp_path, quick):
    first = read_dataset("casme2", generate(tmp_path / "a", "casme2", "12", "4+7", quick=quick), "action-units")
    second = read_dataset("samm", generate(tmp_path / "b", "samm", "1+12", "0", quick=quick), "action-units")
    joined = join([first, second])
    assert joined.class_names == ("AU1", "AU4", "AU7", "AU12")
    named = [tuple(joined.class_names[label] for label in clip.label) for clip in joined.clips]
    assert named == 2 * [("AU12",), ("AU4", "AU7")] + 2 * [("AU1", "AU12"), ()]
    assert not [note for note in joined.notes if "knows no" in note]
    with pytest.raises(UserError, match="the same classes"):
        join([first, read_dataset("samm", tmp_path / "b", "3")])


def test_units_of_few_clips_are_not_learned(tmp_path, quick):
    generate(tmp_path, "casme3", "4+7", "4+12", "9", quick=quick)
    read = DataOptions(tmp_path, classes="action-units", unit_clips=4).read()
    assert read.class_names == ("AU4",)
    assert [clip.label for clip in read.clips] == 2 * [(0,), (0,), ()]
    assert "action units that are not learned: AU7 (of 2 clips), AU9 (of 2 clips), AU12 (of 2 clips)" in read.notes
    read = DataOptions(tmp_path, classes="action-units", units=(12, 4)).read()
    assert (read.class_names, read.clips[1].label) == (("AU4", "AU12"), (0, 1))
    for options, message in (
        ({"classes": "action-units"}, "no action unit occurs in 10 clips"),
        ({"classes": "action-units", "units": (4, 5)}, "no clip shows AU5; there are AU4 .of 4 clips."),
        ({"classes": "action-units", "units": (4,), "unit_clips": 1}, "give one of the two"),
        ({"classes": "action-units", "unit_clips": 0}, "unit_clips must be at least 1"),
        ({"units": (4,)}, "go with --classes action-units"),
    ):
        with pytest.raises(UserError, match=message):
            DataOptions(tmp_path, **options).read()


@st.composite
def told(draw):
    """Units that clips show and that were told; of few clips some units are never there, or never told."""
    count, used = draw(st.integers(1, 12)), draw(st.integers(0, len(NAMES)))
    one = st.lists(st.sets(st.integers(0, used - 1) if used else st.nothing()), min_size=count, max_size=count)
    return [tuple(sorted(units)) for units in draw(one)], [tuple(sorted(units)) for units in draw(one)]


@given(told())
def test_f1_is_scikit_learns(case):
    truth, prediction = case
    scores = score_units(truth, prediction, NAMES)
    tables = [multi_hot(labels, len(NAMES)).numpy() for labels in case]
    np.testing.assert_allclose(scores.f1, f1_score(*tables, average=None, zero_division=np.nan))
    np.testing.assert_allclose(scores.mean_f1, f1_score(*tables, average="macro", zero_division=np.nan))
    assert scores.counts.sum(axis=1).tolist() == len(NAMES) * [len(truth)]
    everything = np.ones_like(tables[0])
    np.testing.assert_allclose(scores.chance, f1_score(tables[0], everything, average="macro", zero_division=0))


def test_an_absent_unit_never_counts_as_right():
    scores = score_units([(0,), (0,)], [(0,), (0, 1)], ("AU1", "AU2", "AU4"))
    assert scores.absent == ("AU2", "AU4")
    assert scores.f1[:2].tolist() == [1, 0] and np.isnan(scores.f1[2])
    assert scores.mean_f1 == 0.5
    assert scores.to_dict()["per_unit"]["AU4"] == {"f1": None, "support": 0, "predicted": 0, "true_positives": 0}
    for truth, prediction in (([], []), ([(0,)], []), ([(3,)], [()])):
        with pytest.raises(ValueError, match="must be"):
            score_units(truth, prediction, ("AU1", "AU2", "AU4"))


def test_weights_even_out_there_and_not_there():
    targets = multi_hot([(0,), (0, 1), (), (0,)], 4)
    targets[:, 3] = 1
    weights = unit_weights(targets)
    torch.testing.assert_close(weights, torch.tensor([1 / 3, 3, 1, 1]))
    for unit in (0, 1):
        there = targets[:, unit] * weights[unit]
        assert float(there.sum()) == pytest.approx(float((1 - targets[:, unit]).sum()))


def test_the_loss_is_that_of_each_unit_alone():
    logits, targets = torch.randn(5, 3), multi_hot([(0,), (1, 2), (), (0,), (2,)], 3)
    weights, share = torch.tensor([1.0, 2.0, 3.0]), 0.2
    expected = 0.0
    for row, wanted in zip(logits, targets, strict=True):
        for unit in range(3):
            y = wanted[unit] * (1 - share) + share / 2
            expected -= weights[unit] * y * F.logsigmoid(row[unit]) + (1 - y) * F.logsigmoid(-row[unit])
    torch.testing.assert_close(unit_loss(logits, targets, weights, share), expected / 15)


def test_what_cannot_be_balanced_is_refused():
    assert (Recipe().balance_of(False), Recipe().balance_of(True)) == ("sampling", "none")
    assert Recipe(balance="weights").balance_of(True) == "weights"
    with pytest.raises(UserError, match="balance must be weights or none with action units, got sampling"):
        Recipe(balance="sampling").balance_of(True)


@pytest.fixture(scope="module")
def line(people):
    return ["--data", str(people), "--classes", "action-units", "--unit-clips", "2", *TINY.split()]


@pytest.fixture(scope="module")
def evaluated(line, tmp_path_factory):
    output = tmp_path_factory.mktemp("units") / "run"
    assert main(["evaluate", *line, "--output", str(output)]) == 0
    return output


def test_an_evaluation_pools_all_folds(evaluated, people):
    assert {path.name for path in evaluated.iterdir()} == {
        "attention", "config.json", "curves", "folds", "metrics.json", "predictions.csv", "f1_by_unit.png",
    }  # fmt: skip
    index = read_dataset("casme3", people, "action-units")
    with (evaluated / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    metrics = json.loads((evaluated / "metrics.json").read_text())
    names = metrics["class_names"]
    assert {(row["clip"], row["truth"]) for row in rows} == {
        (clip.name, "+".join(name for name in (index.class_names[label] for label in clip.label) if name in names))
        for clip in index.clips
    }
    truth, prediction = ([[name in row[column].split("+") for name in names] for row in rows]
                         for column in ("truth", "prediction"))  # fmt: skip
    assert prediction == [[float(row[f"prob_{name}"]) > 0.5 for name in names] for row in rows]
    assert metrics["mean_f1"] == pytest.approx(f1_score(truth, prediction, average="macro", zero_division=0))
    assert (metrics["protocol"], metrics["folds"], metrics["clips"]) == ("loso", 3, 12)


def test_folds_that_are_done_are_read_again(line, evaluated, capsys):
    before = {name: (evaluated / name).read_bytes() for name in ("metrics.json", "predictions.csv")}
    assert main(["evaluate", *line, "--output", str(evaluated), "--resume"]) == 0
    assert "action units: F1" in capsys.readouterr().out
    assert before == {name: (evaluated / name).read_bytes() for name in before}


def test_the_control_and_several_seeds(line, tmp_path, capsys):
    output = tmp_path / "run"
    options = "--protocol leave-subjects-out --folds 2 --repeats 2 --shuffle-labels --balance weights --mixup 0.4"
    assert main(["evaluate", *line, *options.split(), "--label-smoothing", "0.1", "--output", str(output)]) == 0
    assert "over 2 seeds (every unit always told" in capsys.readouterr().out
    assert len(json.loads((output / "metrics.json").read_text())["mean_f1"]["each"]) == 2


def test_sampling_is_refused_before_anything_is_written(line, tmp_path, capsys):
    assert main(["train", *line, "--balance", "sampling", "--output", str(tmp_path / "run")]) == 2
    assert "balance must be weights or none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_prediction_tells_each_unit_for_itself(line, people, tmp_path, capsys):
    run, film = tmp_path / "run", next(path.parent for path in people.rglob("*.jpg"))
    assert main(["train", *line, "--output", str(run)]) == 0
    capsys.readouterr()
    assert main(["predict", str(film), "--checkpoint", str(run), "--output", str(tmp_path / "p"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    names = json.loads((run / "checkpoint" / "task.json").read_text())["class_names"]
    assert list(result["probabilities"]) == names
    told = [name for name, probability in result["probabilities"].items() if probability > 0.5]
    assert result["label"] == ("+".join(told) or "no action unit")
    assert sum(result["probabilities"].values()) != pytest.approx(1)
    assert main(["predict", str(film), "--checkpoint", str(run), "--output", str(tmp_path / "p")]) == 0
    # What learned units begins to learn emotions with a classifier of its own.
    emotions = ["train", "--data", str(people), *TINY.split(), "--start-from", str(run), "--output"]
    assert main([*emotions, str(tmp_path / "emotions")]) == 0
    assert "is of other classes: the classifier is drawn anew" in capsys.readouterr().err


def test_what_has_units_and_no_emotions_is_prepared(tmp_path):
    generate_dataset(tmp_path / "a", 2, 1, 0, format="folder", image_size=96, progress=False)
    table = tmp_path / "a" / "annotation.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(["subject,clip,AU", *(",".join([*line.split(",")[:2], "1+2"]) for line in lines[1:])]))
    line = ["prepare", "--dataset", "folder", "--data", str(tmp_path / "a"), "--output", str(tmp_path / "b")]
    assert main([*line, "--detector", "cascade", "--image-size", "32", "--workers", "0"]) == 0
    assert read_dataset("folder", tmp_path / "b", "action-units").counts() == [2, 2]
    with pytest.raises(UserError, match="lacks the column"):
        read_dataset("folder", tmp_path / "b")


def test_a_prepared_set_is_read_by_units_too(people, tmp_path):
    options = ["--detector", "cascade", "--image-size", "32", "--workers", "0"]
    generate_dataset(tmp_path / "a", 2, 1, 0, image_size=96, emotions=("happy", "surprise"), progress=False)
    assert main(["prepare", "--data", str(tmp_path / "a"), "--output", str(tmp_path / "b"), *options]) == 0
    plain, prepared = (read_dataset("casme3", tmp_path / name, "action-units") for name in "ab")
    assert (prepared.class_names, prepared.action_units) == (plain.class_names, True)
    assert [clip.label for clip in prepared.clips] == [clip.label for clip in plain.clips]


def test_a_model_learns_what_it_is_shown(tmp_path):
    """Pictures in which red, green and blue are the units: each is told for itself, and none where all is black."""
    clips = []
    for number in range(8):
        units = tuple(unit for unit in range(3) if number >> unit & 1)
        frame = np.zeros((32, 32, 3), np.uint8)
        frame[..., list(units)] = 255  # a unit, a colour
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), frame[..., ::-1])
        clips.append(Clip("folder", "a", str(number), (path, path), 1, "+".join(map(str, units)), units))
    config = hsta_kernels.create_model(
        "hsta_tiny_224", num_classes=3, image_size=32, num_frames=2, depth=((1, 1),)
    ).config
    task = Task("folder", ("AU1", "AU2", "AU4"), "frames", False, action_units=True)
    fabric = Fabric(accelerator="cpu")
    recipe = Recipe(epochs=40, warmup_epochs=2, batch_size=8, learning_rate=0.03)
    model = fit(config, task, clips, recipe, fabric=fabric, directory=tmp_path / "run")
    rows = probabilities(model, clips, task, batch_size=8, fabric=fabric)
    assert [answer(row, action_units=True) for row in rows] == [clip.label for clip in clips]
