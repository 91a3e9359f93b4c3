"""`hsta report`: one page with everything that the folder of an evaluation has, and the same as JSON."""

import json
import re
import shutil
import statistics
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hsta.cli import main
from hsta.data.clips import DatasetIndex
from hsta.results.bootstrap import Subjects, draw, figures, intervals
from hsta.results.evaluated import Evaluated
from hsta.results.learning_curves import Curve, mean_curve
from hsta.results.report import write_seeds
from hsta.results.scoring import scores_of
from hsta.results.tested_clips import Prediction

from tests.frontend.evaluations import NAMES, certain, drawn_predictions, write_evaluation

EMPTY = {"meta", "br", "path", "use", "rect", "line"}
HOSTILE = '<script>alert("1")</script>&$x_2$'


class Page(HTMLParser):
    """What a browser sees: the words of each section by its id, all tags, and whether every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.sections, self.tags, self.attributes, self.open, self.words = {}, set(), [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag not in EMPTY:
            self.open.append((tag, dict(attributes).get("id")))

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        if tag not in EMPTY:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.words.append(data)
        for tag, name in self.open:
            if tag == "section":
                self.sections[name] = self.sections.get(name, "") + data


def report(folder, *more):
    assert main(["report", str(folder), *more]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    return Page(text), json.loads((folder / "report.json").read_text(encoding="utf-8")), text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two data sets, a class with a hostile name, everything that an evaluation leaves."""
    folder = tmp_path_factory.mktemp("run <b>")
    rng = np.random.default_rng(0)
    predictions = drawn_predictions(rng, 5, 0.7) + drawn_predictions(rng, 4, 0.5, "samm")
    write_evaluation(
        folder, predictions, (*NAMES[:2], HOSTILE), model="hsta_tiny_224", seed=3, device="cpu",
        versions={"torch": "2.13.0"}, notes=["no clip of fear"], faults=["table.csv row 7: <apex> is missing"],
        lost_clips=1, shuffled_labels=False, generated_data=True,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"command": "evaluate", "recipe": {"epochs": 2}, "contents": {}}))
    (folder / "curves").mkdir()
    for number in range(4):
        rows = "".join(f"{epoch},{1.5 / epoch},0.001\n" for epoch in (1, 2))
        (folder / "curves" / f"casme2-{number}.csv").write_text("epoch,loss,learning_rate\n" + rows)
    return folder


@pytest.fixture(scope="module")
def written(folder):
    return report(folder)


def test_every_section_is_there(written):
    page, values, _ = written
    assert list(page.sections) == [
        "scores", "data-sets", "confusion-matrix", "classes", "subjects", "learning-curves", "protocol", "made-with",
        "data", "left-out",
    ]  # fmt: skip
    said = page.sections
    low, high = values["scores"]["uf1"]["interval"]
    assert f"UF1{values['scores']['uf1']['value']:.3f}[{low:.3f}, {high:.3f}]" in said["scores"]
    assert "2,000 bootstrap draws over subjects" in said["scores"] and "seed 0" in said["scores"]
    assert "no evidence about real faces" in said["scores"]
    assert "casme25" in said["data-sets"] and "samm4" in said["data-sets"]
    assert "Leave one subject out" in said["protocol"] and "4 folds" in said["protocol"]
    assert "torch2.13.0" in said["made-with"] and "recipe.epochs2" in said["made-with"]
    assert "faults of the files cost: 1." in said["data"]
    assert "no clip of fear" in said["data"] and "table.csv row 7: <apex> is missing" in said["data"]
    assert [said.split(":")[0] for said in values["left_out"]] == ["Attention"]


def test_the_page_needs_nothing_else_and_pictures_are_vectors(written):
    page, _, text = written
    assert text.count("<svg") == 2
    assert not page.tags & {"script", "img", "image", "link", "iframe", "object", "b"}
    for name, value in page.attributes:
        if name in {"src", "href", "xlink:href"}:
            assert value.startswith("#"), (name, value)
        assert not name.startswith("on"), name
    assert (
        "data:image" not in text
        and "base64" not in text
        and "@import" not in text
        and not re.search(r"url\((?!#)", text)
    )
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_names_are_escaped_and_shown_as_they_are(written):
    page, values, text = written
    assert "<script" not in text
    words = "".join(page.words)
    assert words.count(HOSTILE) >= 4  # both axes of the picture, tables of classes and subjects
    assert "run <b>" in words
    assert list(values["per_class"])[2] == HOSTILE


def test_the_numbers_are_those_of_the_predictions(written, folder):
    _, values, _ = written
    metrics = json.loads((folder / "metrics.json").read_text())
    evaluated = Evaluated.read(folder)
    subjects = Subjects.of(evaluated.predictions(), evaluated.class_names, False)
    ends = intervals(subjects)
    for name in ("uf1", "uar", "accuracy"):
        told = values["scores"][name]
        assert told["value"] == pytest.approx(metrics[name])
        np.testing.assert_allclose(told["interval"], ends[name])
    assert values["confusion_matrix"] == metrics["confusion_matrix"]
    assert (values["subjects"], values["bootstrap"]) == (9, {"draws": 2000, "seed": 0, "level": 0.95})
    by_subject = np.array([one["confusion_matrix"] for one in values["by_subject"]])
    assert by_subject.sum(axis=0).tolist() == metrics["confusion_matrix"]
    assert sum(one["clips"] for one in values["by_subject"]) == values["clips"] == np.sum(by_subject)
    parts = np.array([part["confusion_matrix"] for part in values["by_dataset"].values()])
    assert parts.sum(axis=0).tolist() == metrics["confusion_matrix"]
    assert values["learning_curves"]["casme2-2"] == {"loss": [1.5, 0.75], "learning_rate": [0.001, 0.001]}
    assert values["arguments"] == {"command": "evaluate", "recipe": {"epochs": 2}}


def test_the_same_folder_gives_the_same_bytes(written, folder):
    assert report(folder)[2] == written[2]


def test_what_the_folder_lacks_is_left_out_and_said(tmp_path):
    folder = write_evaluation(tmp_path, [Prediction("casme2", "a", str(n), n, certain(0, 3)) for n in range(3)])
    page, values, _ = report(folder)
    assert {"learning-curves", "data", "data-sets"}.isdisjoint(page.sections)
    said = page.sections["left-out"]
    for word in ("Intervals", "Learning curves", "config.json", "Versions", "faults of the data", "Attention"):
        assert word in said, word
    assert len(values["left_out"]) == 6
    assert values["scores"]["uf1"] == {"value": pytest.approx(0.5 / 3)}


def test_action_units_have_their_f1_with_intervals(tmp_path):
    units = [(0,), (0, 1), (1,), ()]
    predictions = [Prediction("samm", str(s), str(n), units[n], certain(units[(n + s) % 4], 3)) for s in range(4)
                   for n in range(4)]  # fmt: skip
    page, values, text = report(write_evaluation(tmp_path, predictions, ("AU1", "AU4", "AU12")))
    assert "action-units" in page.sections and "confusion-matrix" not in page.sections
    assert text.count("<svg") == 1
    told = values["per_unit"]
    low, high = told["AU1"]["f1"]["interval"]
    assert low <= told["AU1"]["f1"]["value"] <= high
    assert told["AU12"]["f1"] == {"value": None, "interval": [None, None]}
    assert "AU12000undefined" in page.sections["action-units"]
    assert values["scores"]["mean_f1"]["value"] == pytest.approx(0.5)


def test_a_seed_of_several_has_the_arguments_of_them_all(tmp_path):
    (tmp_path / "seeds" / "7").mkdir(parents=True)
    (tmp_path / "config.json").write_text('{"command": "evaluate", "repeats": 2}')
    folder = write_evaluation(tmp_path / "seeds" / "7", drawn_predictions(np.random.default_rng(0), 2, 0.5))
    assert report(folder)[1]["arguments"]["repeats"] == 2


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Three evaluations of the same clips of two data sets, and what is of them all."""
    folder = tmp_path_factory.mktemp("seeds") / "run"
    truth = drawn_predictions(np.random.default_rng(0), 5, 1.0) + drawn_predictions(
        np.random.default_rng(1), 3, 1.0, "s"
    )
    by_seed = {}
    for seed in (4, 5, 6):
        told = np.random.default_rng(seed).integers(0, 3, len(truth)).tolist()
        predictions = [replace(p, probabilities=certain(label, 3)) for p, label in zip(truth, told, strict=True)]
        at = folder / "seeds" / str(seed)
        at.mkdir(parents=True)
        write_evaluation(at, predictions, seed=seed, device="cpu" if seed < 6 else "cuda:0", folds=2)
        by_seed[seed] = scores_of(predictions, NAMES)
        (at / "curves").mkdir()
        for fold, epochs in (("a", 2), ("b", 3)):
            rows = "".join(f"{epoch},{seed / epoch},0.1\n" for epoch in range(1, epochs + 1))
            (at / "curves" / f"{fold}.csv").write_text("epoch,loss,learning_rate\n" + rows)
    write_seeds(folder, by_seed, DatasetIndex("casme2", [], NAMES))
    (folder / "config.json").write_text('{"command": "evaluate", "repeats": 3, "tuned": "tuning"}')
    return folder


def test_several_seeds_have_mean_deviation_and_each(seeds):
    page, values, _ = report(seeds)
    each = {seed: json.loads((seeds / "seeds" / seed / "metrics.json").read_text()) for seed in "456"}
    subjects = [Evaluated.read(seeds / "seeds" / seed).subjects() for seed in "456"]
    for name in ("uf1", "uar", "accuracy"):
        told = values["scores"][name]
        several = [metrics[name] for metrics in each.values()]
        assert told["value"] == pytest.approx(statistics.fmean(several))
        assert told["deviation"] == pytest.approx(statistics.stdev(several)) != 0
        # Each draw of the interval has the same people of all seeds.
        means = np.mean([figures(draw(one.counts), False)[name] for one in subjects], axis=0)
        np.testing.assert_allclose(told["interval"], np.quantile(means, [0.025, 0.975]))
        for (seed, one), alone in zip(values["by_seed"].items(), subjects, strict=True):
            assert one["scores"][name]["value"] == pytest.approx(each[seed][name])
            np.testing.assert_allclose(one["scores"][name]["interval"], intervals(alone)[name])
    for place, name in enumerate(NAMES):
        f1 = [metrics["per_class"][name]["f1"] for metrics in each.values()]
        assert values["per_class"][name]["f1"]["value"] == pytest.approx(statistics.fmean(f1))
        assert values["per_class"][name]["f1"]["deviation"] == pytest.approx(statistics.stdev(f1))
        assert values["per_class"][name]["clips"] == sum(values["confusion_matrix"][place])
    assert values["confusion_matrix"] == np.sum([m["confusion_matrix"] for m in each.values()], axis=0).tolist()
    assert np.sum(values["confusion_matrix"]) == 3 * values["clips"]
    assert sum(one["clips"] for one in values["by_subject"]) == values["clips"]
    assert (values["seed"], values["device"]) == ([4, 5, 6], "cpu, cuda:0")
    assert [said.split(":")[0] for said in values["left_out"]] == [
        "Versions",
        "Notes and faults of the data",
        "Attention",
    ]
    assert values["learning_curves"]["5"]["b"]["loss"] == [5.0, 2.5, 5 / 3]

    said = page.sections
    score = values["scores"]["uf1"]
    title = f"UF1 {score['value']:.3f} ± {score['deviation']:.3f}"
    assert f"casme2: {title}, UAR" in "".join(page.words) and "over 3 seeds" in "".join(page.words)
    assert list(said)[:3] == ["scores", "seeds", "data-sets"]
    assert "the same in all 3 evaluations" in said["scores"] and "mean ± deviation" in said["scores"]
    assert "sample standard deviation" in said["seeds"] and "there a clip counts 3 times" in said["seeds"]
    assert f"5{each['5']['uf1']:.3f} [" in said["seeds"]
    assert "of all folds and 3 seeds together" in said["confusion-matrix"]
    assert "of those that show it, in all 3 seeds." in said["subjects"]
    assert "each of 3 seeds, and their mean" in said["learning-curves"]
    assert "The recipe of each fold was chosen by hsta tune" in said["protocol"]
    assert "seed4, 5, 6" in said["made-with"]


def test_the_curve_of_a_seed_is_the_mean_over_its_folds():
    curves = [Curve((4.0, 2.0), (0.1, 0.2)), Curve((2.0, 1.0, 0.5), (0.3, 0.2, 0.1))]
    assert mean_curve(curves) == Curve((3.0, 1.5), (0.2, 0.2))


def test_seeds_that_are_not_of_one_evaluation_are_refused(seeds, tmp_path, capsys):
    def refused(change):
        folder = shutil.copytree(seeds, tmp_path / str(len(list(tmp_path.iterdir()))))
        change(folder / "seeds" / "5")
        capsys.readouterr()
        assert main(["report", str(folder)]) == 2
        return capsys.readouterr().err

    rng = np.random.default_rng(0)
    assert "5/metrics.json" in refused(lambda at: (at / "metrics.json").write_text("{"))
    assert "no metrics.json in" in refused(lambda at: (at / "metrics.json").unlink())
    assert "has uf1 of other evaluations than its seeds do" in refused(
        lambda at: write_evaluation(at, drawn_predictions(rng, 5, 0.5))
    )

    def renamed(at):
        table = at / "predictions.csv"
        table.write_text(table.read_text().replace("EP1", "EP100"))

    assert "are not of the same clips and labels" in refused(renamed)


def test_what_is_no_finished_evaluation_is_refused(tmp_path, capsys):
    def refused(*arguments):
        assert main(["report", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert f"no such folder: {tmp_path}/nothing" in refused(tmp_path / "nothing")
    assert f"no metrics.json in {tmp_path}" in refused(tmp_path)
    metrics = tmp_path / "metrics.json"
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object, got list"),
        ('{"uf1": 1}', "is not of hsta evaluate"),
        ('{"seeds": [4, 5]}', f"no such folder: {tmp_path}/seeds/4"),
        ('{"seeds": [4]}', "must name two seeds or more, got [4]"),
        ('{"class_names": ["a"], "confusion_matrix": [[1]]}', "no predictions.csv in"),
    ):
        metrics.write_text(text)
        assert message in refused(tmp_path), text
    write_evaluation(tmp_path, drawn_predictions(np.random.default_rng(0), 3, 0.5))
    table = tmp_path / "predictions.csv"
    whole = table.read_text().splitlines(keepends=True)
    for lines, message in (
        (whole[:-1], "are not of one evaluation"),
        (whole[:1], "holds no clip"),
        ([*whole, "casme2,sub01,EP9,positive,positive,0.5\n"], "is damaged: a clip has 1 probabilities, not 3"),
    ):
        table.write_text("".join(lines))
        assert message in refused(tmp_path), message
    table.write_bytes("".join(whole).encode("utf-16"))
    assert f"{table} is damaged: 'utf-8' codec can't decode byte 0xff" in refused(tmp_path)
    table.write_text("".join(whole))
    assert "output must end in .html" in refused(tmp_path, "--output", tmp_path / "page.txt")
    before = metrics.read_bytes()
    assert "is a file of a run" in refused(tmp_path, "--output", tmp_path / "metrics.html")
    assert metrics.read_bytes() == before
    (tmp_path / "curves").mkdir()
    (tmp_path / "curves" / "a.csv").write_text("epoch,loss,learning_rate\n1,x,1\n")
    assert "a.csv is damaged" in refused(tmp_path)
    (tmp_path / "curves" / "a.csv").write_bytes(b"epoch,loss,learning_rate\n1,\xff,1\n")
    assert "a.csv is damaged: 'utf-8' codec can't decode byte 0xff" in refused(tmp_path)
    assert not (tmp_path / "report.html").exists() and not (tmp_path / "report.json").exists()
