"""Several data sets in one evaluation, several seeds, and data that changed in between."""

import json
import shutil
import statistics
from collections import Counter
from dataclasses import replace

import cv2
import hsta.results.evaluation
import pytest
from hsta.cli import main
from hsta.data.clips import Clip, DatasetIndex
from hsta.data.fingerprint import change, fingerprints
from hsta.data.joined import join
from hsta.data.registry import read_dataset
from hsta.errors import UserError
from hsta.generated.writer import generate_dataset
from hsta.results.fold_result import FoldResult
from hsta.results.scoring import slices
from hsta.results.tested_clips import Prediction
from sklearn.metrics import f1_score, recall_score

NAMES = ("negative", "positive", "surprise")


def index(dataset, class_names, *labels):
    clips = [Clip(dataset, f"s{i}", f"c{i}", (), None, class_names[label], label) for i, label in enumerate(labels)]
    return DatasetIndex(dataset, clips, class_names)


def test_joined_sets_have_the_classes_of_both_whatever_they_call_them():
    joined = join(
        [index("casme3", ("others", "happy"), 1, 0), index("samm", ("contempt", "happiness", "other"), 0, 1, 2)]
    )
    assert joined.name == "casme3+samm"
    assert joined.class_names == ("others", "happy", "contempt")
    assert [(clip.dataset, clip.label, clip.emotion) for clip in joined.clips] == [
        ("casme3", 1, "happy"),
        ("casme3", 0, "others"),
        ("samm", 2, "contempt"),
        ("samm", 1, "happy"),
        ("samm", 0, "others"),
    ]
    assert joined.notes == ["casme3 knows no contempt"]


def test_a_set_that_is_given_twice_is_refused():
    with pytest.raises(UserError, match="samm is given twice"):
        join([index("samm", NAMES, 0), index("casme2", NAMES, 1), index("samm", NAMES, 2)])


def test_slices_are_parts_of_the_same_predictions():
    told = [("casme2", 0, 0), ("casme2", 1, 2), ("samm", 2, 2), ("samm", 0, 1), ("samm", 0, 0)]
    predictions = [
        Prediction(dataset, "1", str(i), truth, tuple(float(label == said) for label in range(3)))
        for i, (dataset, truth, said) in enumerate(told)
    ]
    parts = slices(predictions, NAMES)
    assert list(parts) == ["casme2", "samm"]
    for dataset, part in parts.items():
        truth, said = zip(*(pair for name, *pair in told if name == dataset), strict=True)
        among = {"labels": range(3), "average": "macro", "zero_division": float("nan")}
        assert part.uf1 == pytest.approx(f1_score(truth, said, **among))
        assert part.uar == pytest.approx(recall_score(truth, said, **among))
    assert parts["casme2"].absent == ("surprise",)
    assert slices(predictions[:2], NAMES) == {}


@pytest.fixture(scope="module")
def composite(tmp_path_factory):
    """CASME II, SAMM, SMIC and CAS(ME)³ with the faults of the real tables; and a person spelled in two ways."""
    root = tmp_path_factory.mktemp("composite")
    for name in ("casme2", "samm", "smic", "casme3"):
        generate_dataset(root / name, 2, 4, format=name, image_size=32, faults=True, progress=False)
    return root


@pytest.fixture
def learned(monkeypatch):
    """What each fold learned from and was tested on; its model is not trained: it says the first class of all."""
    seen = []

    def told(learned, tested, config, task, recipe, **options):
        seen.append((learned, tested))
        certain = [float(label == 0) for label in range(len(task.class_names))]
        return FoldResult([Prediction.of(clip, certain) for clip in tested], "cpu")

    monkeypatch.setattr(hsta.results.evaluation, "evaluate_fold", told)
    return seen


def options(root, *names):
    first, *others = names
    also = [f"{name}={root / name}" for name in others]
    tiny = "--classes 3 --image-size 32 --num-frames 2 --depth 1 1 --epochs 2 --warmup-epochs 0 --accelerator cpu"
    return ["--dataset", first, "--data", str(root / first), *(["--also", *also] if also else []), *tiny.split()]


def test_four_sets_with_the_faults_of_real_tables_through_check_and_loso(composite, tmp_path, capsys):
    """Real trainings, one step a fold: what is scored are all clips, each told by a model of other people."""
    kept = {}
    for name in ("casme2", "samm", "smic", "casme3"):
        assert main(["check", "--dataset", name, "--data", str(composite / name), "--classes", "3", "--json"]) == 1
        kept[name] = json.loads(capsys.readouterr().out)
        assert kept[name]["lost"] >= 1
        assert "given twice" in str(kept[name]["faults"])
    output = tmp_path / "run"
    arguments = [*options(composite, *kept), "--epochs", "1", "--batch-size", "32"]
    assert main(["evaluate", *arguments, "--output", str(output)]) == 0
    metrics = json.loads((output / "metrics.json").read_text())
    assert (metrics["protocol"], metrics["folds"], metrics["subjects"]) == ("loso", 8, 8)
    assert metrics["clips"] == sum(part["clips"] for part in kept.values())
    assert {
        name: sum(part["support"] for part in s["per_class"].values()) for name, s in metrics["slices"].items()
    } == {name: part["clips"] for name, part in kept.items()}
    headers = [line for line in (output / "megc2019.log").read_text().splitlines() if line.count(" ") == 1]
    assert Counter(header.split()[0] for header in headers) == dict.fromkeys(kept, 2)
    assert headers[0] == "casme2 sub01"


def test_one_data_set_is_tested_on_the_others(composite, learned, tmp_path):
    arguments = ["evaluate", *options(composite, "casme2", "samm", "smic"), "--protocol", "cross-dataset"]
    assert main([*arguments, "--output", str(tmp_path / "all")]) == 0
    sets = [({c.dataset for c in trained}, {c.dataset for c in tested}) for trained, tested in learned]
    assert sets == [({"samm", "smic"}, {"casme2"}), ({"casme2", "smic"}, {"samm"}), ({"casme2", "samm"}, {"smic"})]
    learned.clear()
    assert main([*arguments, "--test-on", "smic", "--output", str(tmp_path / "one")]) == 0
    assert [{clip.dataset for clip in tested} for _, tested in learned] == [{"smic"}]
    metrics = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert (metrics["folds"], metrics["slices"]) == (1, {})


def test_several_seeds_have_a_mean_and_a_deviation(composite, monkeypatch, tmp_path, capsys):
    def told(learned, tested, config, task, recipe, *, seed, **options):
        said = [float(label == seed % 3) for label in range(3)]
        return FoldResult([Prediction.of(clip, said) for clip in tested], "cpu")

    monkeypatch.setattr(hsta.results.evaluation, "evaluate_fold", told)
    arguments = [*options(composite, "smic"), "--seed", "3", "--repeats", "3", "--output", str(tmp_path / "run")]
    assert main(["evaluate", *arguments]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    each = [json.loads((tmp_path / "run" / "seeds" / str(s) / "metrics.json").read_text()) for s in (3, 4, 5)]
    assert metrics["seeds"] == [one["seed"] for one in each] == [3, 4, 5]
    for name in ("uf1", "uar", "accuracy"):
        figures = [one[name] for one in each]
        assert metrics[name]["each"] == figures
        assert metrics[name]["mean"] == pytest.approx(statistics.mean(figures))
        assert metrics[name]["deviation"] == pytest.approx(statistics.stdev(figures))
    assert metrics["accuracy"]["deviation"] > 0
    assert f"accuracy {metrics['accuracy']['mean']:.3f} ± " in capsys.readouterr().out


def test_a_person_smuggled_in_by_another_spelling_is_not_learned_from(composite, learned, tmp_path):
    """The same person has folders named in two ways, and the table spells the name in a third."""
    root = tmp_path / "data"
    shutil.copytree(composite / "samm", root / "samm")
    (root / "samm" / "１").mkdir()
    clip = sorted((root / "samm" / "001").iterdir())[0]
    clip.rename(root / "samm" / "１" / clip.name)
    assert main(["evaluate", *options(root, "samm"), "--output", str(tmp_path / "run")]) == 0
    assert len(learned) == 2
    assert any(
        str(path).startswith(str(root / "samm" / "１")) for _, tested in learned for c in tested for path in c.frames
    )
    for trained, tested in learned:
        number = {int(c.name.split("_")[0]) for c in tested}  # SAMM's clips begin with the person's number
        assert len(number) == 1
        assert not number & {int(c.name.split("_")[0]) for c in trained}


def test_fingerprints_see_every_change_and_no_move(tmp_path):
    def clips(root):
        root.mkdir()
        for name in ("1.png", "2.png"):
            (root / name).write_bytes(name.encode())
        return [Clip("samm", "1", name, (root / "1.png", root / "2.png"), 1, "anger", 0) for name in ("a", "b")]

    before, moved = clips(tmp_path / "here"), clips(tmp_path / "there")
    assert change(fingerprints(before), fingerprints(moved)) == ""
    for changed in ({"apex": 0}, {"label": 1}, {"emotion": "fear"}, {"frames": moved[1].frames[:1]}):
        now = fingerprints([moved[0], replace(moved[1], **changed)])
        assert change(fingerprints(before), now) == "changed: samm 1 b"
    assert change(fingerprints(before), fingerprints(moved[:1])) == "gone: samm 1 b"
    assert change(fingerprints(before[1:]), fingerprints(moved)) == "new: samm 1 a"
    assert change(fingerprints(before), fingerprints(moved[::-1])) == "the clips are in another order"
    moved[0].frames[1].write_bytes(b"2.pnG")  # of the same size
    assert change(fingerprints(before), fingerprints(moved)) == "changed: samm 1 a, samm 1 b"


def test_moved_data_go_on_and_changed_data_do_not(learning, people, trained, tmp_path, monkeypatch, capsys):
    root = tmp_path / "moved"
    shutil.copytree(people, root)
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    monkeypatch.chdir(tmp_path)
    arguments = ["train", *learning, "--data", "moved/../moved", "--output", str(run), "--resume"]
    assert main(arguments) == 0
    clip = read_dataset("casme3", root).clips[5]
    cv2.imwrite(str(clip.frames[1]), cv2.imread(str(clip.frames[1]))[::-1])
    before = (run / "training_state.safetensors").read_bytes()
    capsys.readouterr()
    assert main(arguments) == 2
    assert f"begun with: changed: {clip.dataset} {clip.subject} {clip.name}. Put" in capsys.readouterr().err
    assert (run / "training_state.safetensors").read_bytes() == before
