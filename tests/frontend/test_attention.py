"""Attention over example faces: which clips, what is kept of them, and that faces are shown to nobody unasked."""

import base64
import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from hsta.cli import main
from hsta.data.inputs import ClipDataset, frames_of, model_inputs
from hsta.data.registry import read_dataset
from hsta.data.transforms import Augmentation, cut
from hsta.errors import UserError
from hsta.results.attention import Attention, Example, read_attention
from hsta.results.attention_drawing import SIDE, over_space
from hsta.results.evaluated import Evaluated
from hsta.results.examples import MOST, examples, most_certain, of_subjects
from hsta.results.fold_attention import keep_attention
from hsta.results.tested_clips import Prediction
from hsta.training.checkpoints import Task

import hsta_kernels
from tests.frontend.evaluations import certain, drawn_predictions


def told(clip, truth, *probabilities, subject="a"):
    return Prediction("casme2", subject, clip, truth, probabilities)


def test_examples_are_the_most_certain_of_each_class_right_and_wrong():
    predictions = [
        told("right", 1, 0.2, 0.8),
        told("surer", 1, 0.1, 0.9),
        told("as sure", 1, 0.1, 0.9),
        told("wrong", 0, 0.3, 0.7),
        told("rare", 0, 0.6, 0.4),
    ]
    chosen = examples(predictions)
    assert [(one.clip, label) for one, label in chosen.items()] == [("surer", 1), ("wrong", 1), ("rare", 0)]


def test_a_clip_of_several_action_units_is_shown_once():
    both = told("both", (0, 1), 0.9, 0.8, 0.1)
    chosen = examples([both, told("none", (2,), 0.1, 0.2, 0.3), told("wrong", (), 0.1, 0.6, 0.2)])
    assert [(one.clip, label) for one, label in chosen.items()] == [("both", 0), ("wrong", 1)]


def test_what_folds_keep_has_the_examples_of_all():
    rng = np.random.default_rng(0)
    predictions = [
        Prediction("d", str(n // 6), str(n), int(rng.integers(7)), tuple(rng.integers(1, 4, 7) / 4)) for n in range(90)
    ]
    kept = {one for n in range(0, 90, 6) for one in most_certain(predictions[n : n + 6]).values()}
    assert examples(predictions).keys() <= kept
    assert len(examples(predictions)) == MOST


def test_subjects_by_name_and_of_which_data_set():
    rng = np.random.default_rng(0)
    predictions = drawn_predictions(rng, 2, 0.5) + drawn_predictions(rng, 2, 0.5, "samm")
    (found,) = {(one.dataset, one.subject) for one in of_subjects(predictions, ["samm/sub2"])}
    assert found == ("samm", "sub02")
    with pytest.raises(UserError, match="no subject sub03 was tested"):
        of_subjects(predictions, ["sub03"])
    with pytest.raises(UserError, match="several subjects sub01: name one of casme2/sub01, samm/sub01"):
        of_subjects(predictions, ["sub01"])


def test_what_is_kept_is_the_attention_of_the_clip(people, tmp_path):
    clips = read_dataset("casme3", people).clips[:3]
    config = hsta_kernels.HSTAConfig(image_size=64, num_frames=4, embed_dim=(32, 32), num_heads=(2, 2), depth=((1, 1),))
    model = hsta_kernels.HSTA(config).eval()
    task = Task("casme3", tuple("abcdefg"), "frames", True)
    rows = [certain(clips[0].label, 7), certain((clips[1].label + 1) % 7, 7), tuple(1 / 7 for _ in range(7))]
    predictions = [Prediction.of(clip, row) for clip, row in zip(clips, rows, strict=True)]
    path = tmp_path / "attention" / "fold.safetensors"
    keep_attention(path, model, clips, predictions, task)
    before = path.read_bytes()
    keep_attention(path, model, clips, predictions, task)
    assert path.read_bytes() == before
    kept = read_attention(tmp_path)
    assert set(kept) == set(most_certain(predictions).values()) >= set(predictions[:2])
    dataset = ClipDataset(clips, image_size=64, num_frames=4, training=False)
    for place, prediction in enumerate(predictions[:2]):
        item, attention = dataset[place], kept[prediction]
        with torch.no_grad():
            inputs = model_inputs({name: tensor[None] for name, tensor in item.items()})
            maps = hsta_kernels.cls_attention(model, *inputs)
        np.testing.assert_array_equal(attention.weights, maps["video"][0].mean(dim=0).numpy())
        length = len(clips[place].frames)
        # The middles of four equal parts, two a moment.
        assert np.ravel(attention.moments).tolist() == [int((part + 0.5) * length / 4) for part in range(4)]
        assert attention.apex == clips[place].apex
        assert attention.patch == 16 / 64
        assert 0 < sum(attention.over_time) < 1
        np.testing.assert_allclose(attention.over_time, attention.weights.sum(axis=(1, 2)))
    path.write_bytes(before[:-1] + b"\0")
    with pytest.raises(UserError, match=r"fold\.safetensors is damaged"):
        read_attention(tmp_path)


def test_the_shades_are_those_of_the_weights():
    """Mean 1, so that the scale ends at 4: a level is half of the mean."""
    weights = np.array([[[0, 0.5, 0.5], [4, 5, 0], [0, 0, 0]], [[8, 0, 0], [0, 0, 0], [0, 0, 0]]], np.float32)
    example = Example(told("a", 0, 1.0), 0, Attention(weights, ((0, 1), (2, 3)), None, 0.3))
    first, second = over_space(example)
    assert re.findall(r'fill-opacity="(\S+)" d="(\S.*?)"', first) == [
        ("0.09", "M1 0h2v1h-2z"),
        ("0.72", "M0 1h2v1h-2z"),
    ]
    assert re.findall(r'd="(.*?)"', second) == ["M0 0h1v1h-1z"]
    assert 'viewBox="0 0 3.3333 3.3333"' in first


def report(folder, tmp_path, *more):
    page = tmp_path / "page.html"
    assert main(["report", str(folder), "--output", str(page), *more]) == 0
    return page.read_text(encoding="utf-8"), json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))


def pictures(text):
    return [
        cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_GRAYSCALE)
        for data in re.findall(r'href="data:image/webp;base64,([^"]+)"', text)
    ]


def test_without_being_asked_no_face_is_shown(evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr("hsta.data.registry.read_dataset", None)  # the data are not looked at either
    text, values = report(evaluated, tmp_path)
    assert "<image" not in text and "data:image" not in text
    chosen = examples(Evaluated.read(evaluated).predictions())
    assert [one["clip"] for one in values["attention"]] == [one.clip for one in chosen]
    assert text.count('<svg class="plain"') == sum(len(one["moments"]) for one in values["attention"]) > 0
    assert values["attention_in_words"][-1] in text and "The faces are left out" in text
    for one, (prediction, label) in zip(values["attention"], chosen.items(), strict=True):
        assert one["probability"] == prediction.probabilities[label]
        assert one["right"] == (prediction.truth == label)
        assert np.sum(one["over_space"], axis=(1, 2)).tolist() == pytest.approx(one["over_time"])
        assert f"{one['over_time'][0]:.1%}</div>" in text


def test_faces_that_are_asked_for_are_those_of_the_moments(evaluated, people, tmp_path):
    text, values = report(evaluated, tmp_path, "--faces")
    clips = {(clip.subject, clip.name): clip for clip in read_dataset("casme3", people).clips}
    shown = iter(pictures(text))
    for one in values["attention"]:
        frames = frames_of(clips[one["subject"], one["clip"]])
        for moment in one["moments"]:
            face = cv2.cvtColor(cut([frames[moment[0]]], SIDE, Augmentation())[0], cv2.COLOR_RGB2GRAY)
            assert np.abs(next(shown) - face.astype(float)).mean() < 0.01 * 255
    assert next(shown, None) is None
    assert len(text) < 2_000_000
    assert "its licence tells" in text
    assert report(evaluated, tmp_path, "--faces")[0] == text


def test_faces_of_subjects_that_are_named(evaluated, tmp_path, capsys):
    text, values = report(evaluated, tmp_path, "--faces", "spNO.2")
    assert {one["subject"] for one in values["attention"]} == {"spNO.2"}
    assert "chosen from the clips of spNO.2 alone" in text
    assert "note: the page shows the face of casme3 spNO.2: pass it on as" in capsys.readouterr().err
    assert len(pictures(text)) == len(values["attention"]) and values["left_out"] == []
    assert main(["report", str(evaluated), "--output", str(tmp_path / "page.html"), "--faces", "spNO.4"]) == 2
    assert "hsta: no subject spNO.4 was tested\n" in capsys.readouterr().err


def test_faces_of_data_that_are_others_now_are_refused(evaluated, people, tmp_path, capsys):
    run, data = shutil.copytree(evaluated, tmp_path / "run"), shutil.copytree(people, tmp_path / "data")
    config = json.loads((run / "config.json").read_text())

    def refused(**change):
        (run / "config.json").write_text(json.dumps(config | change))
        assert main(["report", str(run), "--faces"]) == 2
        assert not (run / "report.html").exists()
        return capsys.readouterr().err

    moved = {"data": config["data"] | {"data": str(data)}}
    one = next(iter(examples(Evaluated.read(run).predictions())))
    (clip,) = [
        clip for clip in read_dataset("casme3", data).clips if (clip.subject, clip.name) == (one.subject, one.clip)
    ]
    frame = clip.files[0]
    frame.write_bytes(frame.read_bytes() + b"more")
    assert f"not those that were tested: changed: casme3 {one.subject} {one.clip}\n" in refused(**moved)
    assert "no such folder" in refused(data=config["data"] | {"data": str(tmp_path / "gone")})
    assert "does not hold the arguments of this version" in refused(data={"folder": str(data)})
    (run / "config.json").unlink()
    assert main(["report", str(run), "--faces"]) == 2
    assert "nothing tells where the data lie: no config.json in" in capsys.readouterr().err


def test_attention_that_was_not_kept_is_said(evaluated, tmp_path):
    run = shutil.copytree(evaluated, tmp_path / "run")
    kept, chosen = read_attention(run), examples(Evaluated.read(run).predictions())
    (run / "attention" / f"casme3-{next(iter(chosen)).subject}.safetensors").unlink()
    left = [one for one in chosen if one in read_attention(run)]
    assert len(left) < len(chosen) and set(chosen) <= set(kept)
    _, values = report(run, tmp_path)
    assert [one["clip"] for one in values["attention"]] == [one.clip for one in left]
    assert values["left_out"][-1].startswith(f"Attention: the folder has that of {len(left)} of {len(chosen)} examples")
