"""`hsta tune`: recipes are chosen without those whom a fold tests, and `hsta evaluate` and `train` learn by them."""

import csv
import json
import shutil
import sys
from dataclasses import asdict, replace

import pytest
from hsta.cli import main, run_folder
from hsta.data import folds
from hsta.data.inputs import ClipDataset
from hsta.data.registry import read_dataset
from hsta.errors import UserError
from hsta.training.loop import fit
from hsta.training.recipe import Recipe
from hsta.tuning.space import Choice, parse_space

from tests.frontend.test_collect import refused

MISSING = "hsta-kernels[tune] is not installed"
HELD_OUT = "spNO.1"


@pytest.fixture(scope="module")
def line(learning):
    """Arguments of a search of three trials, each of two trainings of one epoch."""
    pytest.importorskip("optuna", reason=MISSING)
    short = "--epochs 1 --warmup-epochs 0 --inner-folds 2 --trials 3"
    return ["tune", *learning, *short.split(), "--search", "learning-rate=1e-4:1e-1", "drop-rate=0:0.5"]


@pytest.fixture(scope="module")
def tuned(line, tmp_path_factory):
    """The folder of searches for all three folds."""
    output = tmp_path_factory.mktemp("tuned") / "run"
    assert main([*line, "--output", str(output)]) == 0
    return output


def table(search):
    with (search / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def search_of(run, subject=HELD_OUT):
    return run / "searches" / f"casme3-{subject}"


def test_each_fold_has_the_best_of_its_trials(tuned, people):
    persons = {" ".join(clip.person): clip.subject for clip in read_dataset("casme3", people).clips}
    assert len(persons) == 3
    for subject in persons.values():
        search = search_of(tuned, subject)
        trials, values = table(search), json.loads((search / "recipe.json").read_text())
        assert list(trials[0]) == ["trial", "uf1", "learning_rate", "drop_rate", "diverged"]
        assert [int(trial["trial"]) for trial in trials] == [1, 2, 3]
        # The first is the recipe as it was given.
        assert (float(trials[0]["learning_rate"]), float(trials[0]["drop_rate"])) == (5e-4, 0.2)
        assert len({trial["learning_rate"] for trial in trials}) == 3
        assert all(1e-4 <= float(trial["learning_rate"]) <= 1e-1 for trial in trials)
        best = max(trials, key=lambda trial: float(trial["uf1"]))
        assert (values["trial"], values["uf1"]) == (int(best["trial"]), float(best["uf1"]))
        assert values["found"] == {name: float(best[name]) for name in ("learning_rate", "drop_rate")}
        assert values["recipe"] == asdict(replace(Recipe(epochs=1, warmup_epochs=0, batch_size=4), **values["found"]))
        assert values["held_out"] == [subject]
        assert {persons[person] for person in values["people"]} == set(persons.values()) - {subject}
        assert (search / "search.png").read_bytes().startswith(b"\x89PNG")


def test_the_score_is_that_of_all_inner_predictions(tuned):
    """Each subject that is not held out is tested once, by a model that has not seen it."""
    for trial in table(search_of(tuned)):
        folder = search_of(tuned) / "trials" / trial["trial"] / "folds"
        rows = [row for path in sorted(folder.glob("*.csv")) for row in csv.DictReader(path.open())]
        assert sorted(row["subject"] for row in rows) == ["spNO.2"] * 4 + ["spNO.3"] * 4
        f1 = []
        for name in {row["truth"] for row in rows}:
            hits = sum(row["truth"] == row["prediction"] == name for row in rows)
            told = sum(row["truth"] == name for row in rows) + sum(row["prediction"] == name for row in rows)
            f1.append(2 * hits / told)
        assert float(trial["uf1"]) == pytest.approx(sum(f1) / len(f1))


def search_without(line, people, tmp_path, monkeypatch):
    """The exit code of a search for the first fold, whose subject's frames are ruined when it begins; and who was
    asked for as a clip to train on or to test."""
    data = shutil.copytree(people, tmp_path / "data")
    seen = set()
    begin, ask = run_folder._open, ClipDataset.__init__

    def ruin(*arguments):
        begin(*arguments)
        for clip in read_dataset("casme3", data).clips:
            for frame in clip.frames if clip.subject == HELD_OUT else ():
                frame.write_bytes(b"")

    def asked(self, clips, *arguments, **options):
        seen.update(clip.subject for clip in clips)
        ask(self, clips, *arguments, **options)

    monkeypatch.setattr(run_folder, "_open", ruin)
    monkeypatch.setattr(ClipDataset, "__init__", asked)
    output = tmp_path / "run"
    return main([*line, "--data", str(data), "--output", str(output), "--fold", "1", "--trials", "2"]), seen


def test_no_clip_of_the_held_out_subject_is_read(line, people, tmp_path, monkeypatch):
    assert search_without(line, people, tmp_path, monkeypatch) == (0, {"spNO.2", "spNO.3"})


def test_a_broken_split_is_seen_by_the_test_above(line, people, tmp_path, monkeypatch, capsys):
    split = folds._fold

    def broken(name, *arguments):
        fold = split(name, *arguments)
        return replace(fold, train=(*fold.train, *fold.test)) if name.startswith("casme3") else fold

    monkeypatch.setattr(folds, "_fold", broken)
    code, seen = search_without(line, people, tmp_path, monkeypatch)
    assert code == 2 and HELD_OUT in seen
    assert "no frame of the clip can be read" in capsys.readouterr().err


def test_the_seed_makes_the_trials(line, tuned, tmp_path, capsys):
    """A fold alone, as a job of an array does it, and a recipe that another seed draws."""
    assert main([*line, "--output", str(tmp_path / "same"), "--fold", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("casme3-spNO.1: UF1 0.") and " of 3: learning_rate " in said[0]
    assert said[1] == f"the search for fold 1 of 3 is done; when all are: hsta evaluate --tuned {tmp_path / 'same'}"
    assert table(search_of(tmp_path / "same")) == table(search_of(tuned))
    for name in ("same", "others"):
        assert not search_of(tmp_path / name, "spNO.2").exists()
    assert main([*line, "--output", str(tmp_path / "others"), "--fold", "1", "--seed", "1"]) == 0
    one, other = (table(search_of(run)) for run in (tuned, tmp_path / "others"))
    assert one[0]["learning_rate"] == other[0]["learning_rate"]
    assert all(a["learning_rate"] != b["learning_rate"] for a, b in zip(one[1:], other[1:], strict=True))


def test_trials_that_are_done_are_not_done_again(line, tuned, tmp_path, monkeypatch):
    run = shutil.copytree(tuned, tmp_path / "run")
    before = table(search_of(run))
    (search_of(run) / "recipe.json").unlink()
    journal = search_of(run) / "journal.log"
    journal.write_bytes(journal.read_bytes()[:-20])  # by a process that died while it wrote of the last trial
    monkeypatch.setattr("hsta.results.evaluation.fit", None)  # cannot be called
    for _ in range(2):
        assert main([*line, "--output", str(run), "--resume"]) == 0
        assert table(search_of(run)) == before
    assert (search_of(run) / "recipe.json").read_bytes() == (search_of(tuned) / "recipe.json").read_bytes()


def test_a_training_that_diverges_scores_nothing(line, tmp_path):
    """And the search goes on."""
    search = ["--search", "learning-rate=1e-3,1e30", "--learning-rate", "1e30"]
    assert main([*line, *search, "--output", str(tmp_path / "run"), "--fold", "1", "--epochs", "2"]) == 0
    first, *others = table(search_of(tmp_path / "run"))
    assert (first["uf1"], first["diverged"]) == ("0.0", "1")
    assert not (search_of(tmp_path / "run") / "trials" / "1").exists()
    assert len(others) == 2


def test_evaluate_learns_each_fold_by_its_recipe(line, tuned, short, tmp_path, monkeypatch, capsys):
    used = {}

    def noted(config, task, clips, recipe, **options):
        used[options["directory"].name] = recipe
        assert config.drop_rate == recipe.drop_rate
        return fit(config, task, clips, recipe, **options)

    monkeypatch.setattr("hsta.results.evaluation.fit", noted)
    evaluate = [*short, "--epochs", "1", "--warmup-epochs", "0", "--tuned", str(tuned), "--output"]
    assert main([*evaluate, str(tmp_path / "run")]) == 0
    assert len(used) == 3
    for name, recipe in used.items():
        assert asdict(recipe) == json.loads((tuned / "searches" / name / "recipe.json").read_text())["recipe"]
    # A recipe that changed meanwhile is another run.
    changed = shutil.copytree(tuned, tmp_path / "changed")
    path = search_of(changed) / "recipe.json"
    values = json.loads(path.read_text())
    values["found"]["drop_rate"] = values["recipe"]["drop_rate"] = 0.123
    path.write_text(json.dumps(values))
    said = refused([*evaluate, tmp_path / "run", "--tuned", changed, "--resume"], capsys)
    assert "changed: recipe for casme3-spNO.1" in said


def test_recipes_that_must_not_be_taken_are_refused(tuned, short, tmp_path, capsys):
    changed = shutil.copytree(tuned, tmp_path / "changed")
    evaluate = [*short, "--epochs", "1", "--warmup-epochs", "0", "--output", tmp_path / "run", "--tuned"]
    path = search_of(changed) / "recipe.json"
    others = (search_of(tuned, "spNO.2") / "recipe.json").read_bytes()
    path.write_bytes(others)
    assert f"the recipe for casme3-spNO.1 in {changed} was chosen on people who are tested: ['casme3 " in refused(
        [*evaluate, changed], capsys
    )
    path.write_text("{}")
    assert f"{path} is damaged: 'found'; search anew" in refused([*evaluate, changed], capsys)
    path.unlink()
    assert f"no recipe for casme3-spNO.1 was found: {path} is missing" in refused([*evaluate, changed], capsys)
    assert "was found with epochs 1, not 2: give the options that hsta tune was given" in refused(
        [*evaluate, tuned, "--epochs", "2"], capsys
    )
    train = ["train", *short[1:], "--output", tmp_path / "run", "--tuned", tuned]
    assert "hsta tune --protocol none finds it" in refused(train, capsys)
    assert not (tmp_path / "run").exists()


def test_train_takes_a_recipe_that_was_found_on_everybody(line, learning, tmp_path, monkeypatch):
    tuning = tmp_path / "tuning"
    assert main([*line, "--protocol", "none", "--trials", "2", "--output", str(tuning)]) == 0
    found = json.loads((tuning / "searches" / "everybody" / "recipe.json").read_text())
    assert len(found["people"]) == 3
    seen = []
    monkeypatch.setattr("hsta.training.loop.fit", lambda config, task, clips, recipe, **more: seen.append(recipe))
    train = ["train", *learning, "--epochs", "1", "--warmup-epochs", "0", "--tuned", str(tuning)]
    assert main([*train, "--output", str(tmp_path / "run")]) == 0
    assert asdict(seen[0]) == found["recipe"]


def test_weights_that_know_who_is_tested_within_a_search_are_refused(line, trained, tmp_path, capsys):
    start = ["--protocol", "none", "--start-from", trained, "--output", tmp_path / "run"]
    assert f"{trained} was trained on people who are tested: casme3 " in refused([*line, *start], capsys)
    assert not (tmp_path / "run").exists()


def test_without_optuna(learning, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "hsta.tuning.search", raising=False)
    monkeypatch.setitem(sys.modules, "optuna", None)  # cannot be imported
    said = refused(["tune", *learning, "--inner-folds", "2", "--output", tmp_path / "run"], capsys)
    assert said == "hsta: optuna is not installed: pip install hsta-kernels[tune]"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--search epochs", "search must be NAME=LOW:HIGH or NAME=A,B, such as epochs=50:150, got epochs"),
        ("--search depth=1:2", "search must name settings of the recipe, epochs, batch_size, learning_rate,"),
        ("--trials 0", "trials must be at least 1, got 0"),
        (
            "--inner-folds 3",
            "inner_folds must be from 2 to the 2 subjects that the search for casme3-spNO.1 sees, got 3",
        ),
        ("--search drop-rate=0:1", "search: drop_rate must be a number in [0, 1), got 1.0"),
        ("--devices 2", "devices must be 1, those of a search, got 2"),
        (
            "--protocol none --fold 1",
            "--folds, --test-on and --fold do not go with --protocol none: nobody is held out",
        ),
        ("--fold 4", "fold must be from 1 to 3, the number of folds, got 4"),
        ("--protocol authors-folds", "invalid choice 'authors-folds' for argument '--protocol'"),
    ],
)
def test_what_cannot_be_is_refused_before_the_run_is_begun(options, message, line, tmp_path, capsys):
    assert message in refused([*line, "--output", tmp_path / "run", *options.split()], capsys)
    assert not (tmp_path / "run").exists()


def test_ranges_and_lists_of_values():
    given = ("learning-rate=1e-4:1e-2", "epochs=50:150", "mixup=0,0.2", "balance=sampling,weights")
    assert parse_space(given, Recipe()) == {
        "learning_rate": Choice((1e-4, 1e-2), True),
        "epochs": Choice((50, 150), True),
        "mixup": Choice((0.0, 0.2), False),
        "balance": Choice(("sampling", "weights"), False),
    }
    assert 0.01 in Choice((1e-4, 1e-2), True) and 0.02 not in Choice((1e-4, 1e-2), True)
    assert "weights" in Choice(("sampling", "weights"), False) and "none" not in Choice(("sampling", "weights"), False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs=1.5:3", "search: epochs must be LOW:HIGH or A,B of type int, got 1.5:3"),
        ("epochs=3:50", "warmup_epochs must be from 0 to below epochs 3, got 5"),
        ("epochs=50", "two values or more, no two alike, got 50"),
        ("mixup=0,0", "two values or more, no two alike, got 0,0"),
        ("mixup=0.2:0", "LOW:HIGH with LOW below HIGH, got 0.2:0"),
        ("mixup=0:0.1:0.2", "LOW:HIGH with LOW below HIGH"),
        ("mixup=0:inf", "mixup must be finite, got 0:inf"),
        ("weight_decay=0:0.1", "weight_decay must begin above 0"),
        ("balance=rare,none", "balance must be some of auto,sampling,weights,none, got rare,none"),
        ("balance=auto:none", "balance must be some of"),
        ("augment=0:2", r"augment must be in \[0, 1\], got 2.0"),
    ],
)
def test_what_is_no_range_of_the_recipe_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_space([text], Recipe())
    with pytest.raises(UserError, match="search names mixup twice"):
        parse_space(["mixup=0,1", "mixup=0:1"], Recipe())
