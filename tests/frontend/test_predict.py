"""`hsta predict` on video files and folders, with and without a face."""

import json

import cv2
import hsta.face.crop
import hsta.face.flow
import numpy as np
import pytest
from hsta.cli import main
from hsta.data.video import write_video
from hsta.generated.clips import generate_clip, subject_portrait


@pytest.fixture(scope="module")
def film():
    """Somebody in a larger scene."""
    clip = generate_clip(subject_portrait(0, 7), "happy", np.random.default_rng(3), image_size=160, margin=0.5)
    frames = []
    for frame in clip.frames:
        scene = np.full((240, 320, 3), 120, np.uint8)
        scene[40:200, 90:250] = frame
        frames.append(scene)
    return frames


@pytest.fixture(scope="module")
def video(film, tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "some.body.mp4"
    write_video(path, film, 30.0)
    return path


@pytest.fixture(scope="module")
def folder(film, tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "some.body"
    path.mkdir()
    for number, frame in enumerate(film, 7):
        cv2.imwrite(str(path / f"{number}.png"), frame[..., ::-1])
    return path


@pytest.fixture
def predict(trained, tmp_path, capsys):
    """Run it with ``--json``; what it printed as JSON and said besides."""

    def run(path, *options):
        assert (
            main(["predict", str(path), "--checkpoint", str(trained), "--output", str(tmp_path), "--json", *options])
            == 0
        )
        said = capsys.readouterr()
        return json.loads(said.out), said.err

    return run


@pytest.mark.parametrize("kind", ["video", "folder"])
def test_label_probabilities_and_events(kind, request, predict, film, tmp_path):
    result, said = predict(request.getfixturevalue(kind))
    assert list(result["probabilities"]) == ["surprise", "happy"]
    assert sum(result["probabilities"].values()) == pytest.approx(1)
    assert result["label"] == max(result["probabilities"], key=result["probabilities"].get)
    assert 0 <= result["onset"] <= result["apex"] <= result["offset"] < len(film)
    assert result["spotted"] is True
    assert result["fps"] == (30.0 if kind == "video" else None)
    assert result["motion_curve"][result["onset"]] == 0
    assert len(result["motion_curve"]) == len(film)
    assert result["generated"] is True
    assert said == ""
    x, y, width, height = result["face"]
    assert result["face_found"]
    np.testing.assert_allclose((x + width / 2, y + height / 2), (170, 120), atol=16)

    assert json.loads((tmp_path / "some.body.json").read_text()) == result
    picture = cv2.imread(str(tmp_path / "some.body.png"))
    assert min(picture.shape[:2]) > 600


def test_attention_is_a_map_for_each_branch(folder, predict):
    result, _ = predict(folder)
    special, video = (np.array(result["attention"][branch]) for branch in ("special", "video"))
    assert (special.shape, video.shape) == ((2, 2), (2, 2))  # patches of 12 and 16 in 32 pixels
    for weights in (special, video):
        assert (weights > 0).all()
        assert weights.sum() < 1


def test_what_people_read(folder, trained, tmp_path, capsys):
    assert main(["predict", str(folder), "--checkpoint", str(trained / "checkpoint"), "--output", str(tmp_path)]) == 0
    first, *table, events, origin, picture = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{folder}: ")
    label = first.rpartition(" ")[2]
    names = [line.split()[0] for line in table]
    assert names[0] == label
    assert sorted(names) == ["happy", "surprise"]
    assert events.startswith("  onset ") and events.endswith("(spotted)")
    assert origin == "  learned from generated data: no evidence about real faces"
    assert picture == f"picture: {tmp_path / 'some.body.png'}"


def test_no_face_is_said_and_the_centre_taken(predict, tmp_path):
    ramp = np.tile(np.linspace(0, 255, 160, dtype=np.uint8), (120, 1))
    folder = tmp_path / "plain"
    folder.mkdir()
    for number in range(6):
        cv2.imwrite(str(folder / f"{number}.png"), np.roll(ramp, number, axis=1))
    result, said = predict(folder)
    assert said == f"hsta: no face found in {folder}, the centre is taken\n"
    assert (result["face"], result["face_found"]) == ([20, 0, 120, 120], False)


def test_given_events_are_taken(folder, predict):
    result, _ = predict(folder, "--onset", "3", "--apex", "5", "--offset", "9")
    assert [result[name] for name in ("onset", "apex", "offset", "spotted")] == [3, 5, 9, False]
    assert result["motion_curve"][3] == 0
    result, _ = predict(folder, "--onset", "3", "--offset", "9")
    assert result["apex"] == 3 + int(np.argmax(result["motion_curve"][3:10]))


@pytest.mark.parametrize("options", ["", "--onset 3 --offset 9", "--onset 3 --apex 5 --offset 9"])
def test_no_frame_is_cropped_twice_and_no_pair_has_its_flow_computed_twice(folder, predict, film, monkeypatch, options):
    crop_face, dense_flow = hsta.face.crop.crop_face, hsta.face.flow.dense_flow
    cropped, pairs = [], []

    def spying_crop(frames, box, size):
        cropped.extend(frame.tobytes() for frame in frames)
        return crop_face(frames, box, size)

    def spying_flow(before, after):
        pairs.append((before.tobytes(), after.tobytes()))
        return dense_flow(before, after)

    monkeypatch.setattr("hsta.results.recognition.crop_face", spying_crop)
    monkeypatch.setattr("hsta.face.spotting.dense_flow", spying_flow)
    predict(folder, *options.split())
    assert cropped == [frame.tobytes() for frame in film]
    assert len(pairs) == len(set(pairs)) >= len(film) - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--onset 3", "onset and offset must be given together"),
        ("--apex 3", "onset and offset must be given together"),
        ("--onset 9 --offset 3", "onset and offset must be in order"),
        ("--onset 0 --offset 9999", "onset and offset must be in order and in 0 to"),
        ("--onset 3 --offset 9 --apex 10", "apex must be from onset 3 to offset 9, got 10"),
    ],
)
def test_events_that_cannot_be_are_refused(folder, trained, tmp_path, capsys, options, message):
    arguments = ["predict", str(folder), "--checkpoint", str(trained), "--output", str(tmp_path / "out")]
    assert main([*arguments, *options.split()]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_answer_is_given_where_no_picture_can_be(folder, trained, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert main(["predict", str(folder), "--checkpoint", str(trained), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out.startswith(f"{folder}: ")
    assert said.err == f"hsta: File exists: {tmp_path / 'out'}\n"
