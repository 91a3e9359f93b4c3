"""The generated data set: what is written, that it is the same each time, and that it can be learned."""

import hashlib
import json

import cv2
import hsta.generated.writer as writer
import numpy as np
import pandas as pd
import pytest
from hsta.cli.generate import Generate
from hsta.data.inputs import ClipDataset
from hsta.data.registry import read_dataset
from hsta.errors import UserError
from hsta.generated.action_units import ACTION_UNITS, displacement
from hsta.generated.clips import generate_clip, subject_portrait
from hsta.generated.emotions import EMOTION_UNITS, EMOTIONS
from hsta.generated.landmarks import NAMES
from hsta.generated.mark import MARKER
from hsta.generated.writer import generate_dataset

TABLE = "cas(me)3_part_A_ME_label_JpgIndex_v2.csv"


def generate(root, subjects=2, clips=2, **options):
    return generate_dataset(root, subjects, clips, **{"image_size": 64, "progress": False, **options})


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_tree_is_that_of_casme3(tmp_path):
    assert generate(tmp_path, subjects=2, clips=15) == tmp_path / TABLE
    header = (tmp_path / TABLE).read_text().splitlines()[0]
    assert header == "Subject,Filename,Onset,Apex,Offset,AU,Expression type,Objective class,emotion"
    table = pd.read_csv(tmp_path / TABLE, dtype={"AU": str})
    assert table["Subject"].tolist() == ["spNO.1"] * 15 + ["spNO.2"] * 15
    assert table["Filename"].tolist()[:15] == [*"abcdefghijklm", "a", "b"]
    assert set(table["emotion"]) == set(EMOTIONS)
    for row in table.itertuples():
        folder = tmp_path / row.Subject / row.Filename / "color"
        assert row.Onset < row.Apex < row.Offset
        # Neutral frames lie on both sides of the micro-expression.
        assert all((folder / f"{number}.jpg").is_file() for number in range(row.Onset - 2, row.Offset + 3))
    index = read_dataset("casme3", tmp_path)
    assert len(index.clips) == 30
    assert index.notes == ["generated data: no evidence about real faces"]
    assert all(5 <= len(clip.frames) <= 16 and clip.apex is not None for clip in index.clips)
    assert cv2.imread(str(index.clips[0].frames[0])).shape == (64, 64, 3)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    generate(tmp_path / "one")
    generate(tmp_path / "two")
    generate(tmp_path / "other", seed=1)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert (tmp_path / "one" / TABLE).read_text() != (tmp_path / "other" / TABLE).read_text()


def test_a_subject_is_the_same_whatever_the_number_of_others(tmp_path):
    generate(tmp_path / "few", subjects=2, clips=1)
    generate(tmp_path / "many", subjects=3, clips=2)
    few, many = digests(tmp_path / "few"), digests(tmp_path / "many")
    frames = [name for name in few if name.endswith(".jpg")]
    assert len(frames) > 10
    assert all(few[name] == many[name] for name in frames)


def test_classes_are_balanced_and_can_be_limited(tmp_path):
    generate(tmp_path, subjects=2, clips=4, emotions=("happy", "surprise"))
    labels = [clip.emotion for clip in read_dataset("casme3", tmp_path).clips]
    assert sorted(labels[:4]) == sorted(labels[4:]) == ["happy", "happy", "surprise", "surprise"]


def test_an_interrupted_generation_shows_and_can_be_run_again(tmp_path, monkeypatch):
    write, calls = writer._write_frames, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(*arguments)

    generate(tmp_path, seed=5)  # an older set in the same place must not be taken for the new one
    monkeypatch.setattr(writer, "_write_frames", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match="generation was interrupted"):
        read_dataset("casme3", tmp_path)
    generate(tmp_path)
    generate(tmp_path.parent / "fresh")
    assert digests(tmp_path) == digests(tmp_path.parent / "fresh")


def test_a_folder_of_other_files_is_not_touched(tmp_path):
    frame = tmp_path / "spNO.1" / "a" / "color" / "1.jpg"
    frame.parent.mkdir(parents=True)
    frame.write_bytes(b"a licensed recording")
    with pytest.raises(UserError, match="holds no generated data set") as raised:
        generate(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert frame.read_bytes() == b"a licensed recording"
    with pytest.raises(UserError, match="is a file"):
        generate(frame)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"subjects": 0}, "subjects must be at least 1, got 0"),
        ({"clips": 0}, "clips_per_subject must be at least 1"),
        ({"image_size": 8}, "image_size must be at least 32"),
        ({"amplitude": -1.0}, "amplitude must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"emotions": ("happy", "bored")}, "emotions must be some of .* got .*bored"),
        ({"emotions": ()}, "emotions must be some of"),
    ],
)
def test_arguments_are_checked(tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        generate(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path, capsys):
    Generate(tmp_path / "out", subjects=1, clips_per_subject=2, image_size=48).run()
    assert str(tmp_path / "out" / TABLE) in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / MARKER).read_text())["clips_per_subject"] == 2
    with pytest.raises(UserError, match="subjects must be at least 1"):
        Generate(tmp_path / "out", subjects=0).run()


@pytest.mark.parametrize("subject", [1, 2, 3])
def test_faces_have_every_landmark_where_the_face_is(subject):
    portrait = subject_portrait(0, subject)
    assert (portrait.texture.shape, portrait.texture.dtype) == ((448, 448, 3), np.uint8)
    points = portrait.landmarks
    assert set(points) == set(NAMES)
    assert points["brow_inner_left"][1] < points["lid_upper_left"][1] < points["lid_lower_left"][1]
    assert points["lid_lower_left"][1] < points["cheek_left"][1] < points["lip_corner_left"][1] < points["chin"][1]
    for name in ("eye", "lip_corner", "brow_outer", "nose_wing"):
        assert 30 < points[f"{name}_left"][0] < 112 < points[f"{name}_right"][0] < 194


def test_subjects_differ():
    two, three = subject_portrait(0, 2), subject_portrait(0, 3)
    assert np.abs(two.texture.astype(int) - three.texture).mean() > 5
    assert two.landmarks != three.landmarks


@pytest.mark.parametrize("unit", sorted(ACTION_UNITS))
def test_a_unit_pulls_its_landmark(unit):
    landmarks = subject_portrait(0, 2).landmarks
    field = displacement({unit: 2.0}, landmarks, 224)
    assert field.shape == (224, 224, 2)
    name, outward, down, _ = ACTION_UNITS[unit][0]
    sides = (("_left", -1), ("_right", 1)) if f"{name}_left" in landmarks else (("", 0),)
    for side, sign in sides:
        x, y = landmarks[name + side]
        pull = field[int(y), int(x)]
        assert pull @ (sign * outward, down) > np.hypot(outward, down)  # more than a pixel that way
    assert 0.9 < np.linalg.norm(field, axis=-1).max() < 3.0
    # The same face at half the size moves half as far.
    np.testing.assert_allclose(displacement({unit: 2.0}, landmarks, 112) * 2, field[::2, ::2], atol=0.25)


def test_one_sided_units_move_one_side():
    landmarks = subject_portrait(0, 2).landmarks
    field = np.abs(displacement({14: 2.0}, landmarks, 224, sides=("right",))).sum(axis=-1)
    assert field[:, :100].max() < 0.1 < 1 < field[:, 112:].max()


def test_movement_rises_to_the_apex_and_decays_more_slowly():
    portrait = subject_portrait(0, 2)
    rng = [9, 9]
    moving = generate_clip(portrait, "surprise", np.random.default_rng(rng))
    still = generate_clip(portrait, "surprise", np.random.default_rng(rng), amplitude=0)
    # Amplitude changes the movement and nothing else: the difference is the movement alone.
    change = [np.abs(a.astype(int) - b).mean() for a, b in zip(moving.frames, still.frames, strict=True)]
    onset, apex, offset = moving.onset, moving.apex, moving.offset
    assert (still.onset, still.apex, still.offset) == (onset, apex, offset)
    assert max(change[: onset + 1] + change[offset:]) == 0
    assert int(np.argmax(change)) == apex
    assert (np.diff(change[onset : apex + 1]) > 0).all()
    assert (np.diff(change[apex : offset + 1]) < 0).all()
    assert apex - onset <= offset - apex
    assert 0.1 <= (offset - onset) / 30 <= 0.5


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_clips_show_the_units_of_their_emotion(emotion):
    clip = generate_clip(subject_portrait(0, 2), emotion, np.random.default_rng(1), image_size=48)
    written = clip.action_units.replace("L", "").replace("R", "")
    assert tuple(int(unit) for unit in written.split("+")) in EMOTION_UNITS[emotion]
    assert 0.5 <= clip.amplitude <= 3.0
    assert {(frame.shape, frame.dtype) for frame in clip.frames} == {((48, 48, 3), np.dtype(np.uint8))}


def test_an_unknown_emotion_is_refused():
    with pytest.raises(ValueError, match=r"emotion must be one of .*got 'bored'"):
        generate_clip(subject_portrait(0, 2), "bored", np.random.default_rng(0))


def held_out_accuracy(root, amplitude):
    """Accuracy on unseen subjects of nearest class means of the onset → apex flow, seven classes."""
    generate(root, subjects=12, clips=7, image_size=96, amplitude=amplitude)
    clips = read_dataset("casme3", root).clips
    dataset = ClipDataset(clips, image_size=96, num_frames=2, special="flow", training=False)
    flow = [item["special"][:2, 0].numpy().transpose(1, 2, 0) for item in dataset]
    features = np.stack([cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA).ravel() for image in flow])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = np.array([clip.label for clip in clips])
    subjects = np.array([clip.subject for clip in clips])
    right = 0
    for subject in np.unique(subjects):
        seen = subjects != subject
        means = np.stack([features[seen & (labels == label)].mean(axis=0) for label in range(7)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        right += ((features[~seen] @ means.T).argmax(axis=1) == labels[~seen]).sum()
    return right / len(clips)


def test_emotions_can_be_learned_and_the_control_cannot(tmp_path):
    # Chance is 1/7; 84 clips of the control are beyond 0.28 in fewer than one draw in a thousand.
    assert held_out_accuracy(tmp_path / "moving", 1.0) > 0.6
    assert held_out_accuracy(tmp_path / "control", 0.0) < 0.28
