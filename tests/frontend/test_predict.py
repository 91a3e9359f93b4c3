"""`hsta predict` on video files and folders, with and without a face."""

import csv
import json
from pathlib import Path

import cv2
import hsta.face.crop
import hsta.face.flow
import numpy as np
import pytest
from hsta.cli import main
from hsta.data.video import write_video
from hsta.generated.clips import generate_clip, subject_portrait

import hsta_kernels
from tests.frontend.films import write_film


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
    np.testing.assert_allclose(result["times"], np.arange(len(film)) / 30, atol=1e-4)
    assert result["motion_curve"][result["onset"]] == 0
    assert len(result["motion_curve"]) == len(film)
    assert result["generated"] is True
    rate = "a folder tells no rate: 30 frames a second are assumed (--fps tells it)"
    assert result["notes"] == ([] if kind == "video" else [rate])
    path = request.getfixturevalue(kind)
    assert said == "".join(f"note: {path}: {note}\n" for note in result["notes"])
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
    assert result["moments"] == [sorted(moment) for moment in result["moments"]]
    first, *_, last = (frame for moment in result["moments"] for frame in moment)
    assert result["onset"] <= first <= last <= result["offset"]
    assert len(result["moments"]) == len(result["attention_over_time"]) == 1  # two frames, one tubelet
    assert sum(result["attention_over_time"]) == pytest.approx(video.sum())


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
    result, said = predict(folder, "--fps", "25")
    assert said == f"note: {folder}: no face found, the centre is taken\n"
    assert result["notes"] == ["no face found, the centre is taken"]
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

    monkeypatch.setattr("hsta.face.framing.crop_face", spying_crop)
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
    assert said.err.splitlines()[-1] == f"hsta: File exists: {tmp_path / 'out'}"


def call(trained, output, *paths_and_options):
    return main(["predict", *map(str, paths_and_options), "--checkpoint", str(trained), "--output", str(output)])


def test_the_model_runs_once(folder, predict, monkeypatch):
    runs = []
    forward = hsta_kernels.HSTA.forward
    monkeypatch.setattr(hsta_kernels.HSTA, "forward", lambda self, *inputs: (runs.append(1), forward(self, *inputs))[1])
    predict(folder, "--onset", "3", "--offset", "9")
    assert len(runs) == 1


def test_several_films_of_one_name_each_have_results_and_a_broken_one_stops_nothing(
    video, folder, trained, tmp_path, capsys
):
    paths = []
    for name in ("a/clip.mp4", "b/clip.mp4", "b/clip.avi"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(video.read_bytes()[: None if name != "b/clip.avi" else 100])
        paths.append(path)
    missing = tmp_path / "missing.mp4"
    output = tmp_path / "out"
    assert call(trained, output, *paths[:1], missing, paths[2], paths[1], folder, "--json") == 2
    said = capsys.readouterr()
    results = [json.loads(line) for line in said.out.splitlines()]
    assert [result["file"] for result in results] == [str(paths[0]), str(paths[1]), str(folder)]
    complaints = [line for line in said.err.splitlines() if line.startswith("hsta: ")]
    assert complaints[0] == f"hsta: no such file or folder: {missing}"
    assert complaints[1].startswith(f"hsta: cannot read {paths[2]} as a video: ")
    assert complaints[2:] == ["hsta: 2 of 5 could not be read"]
    written = {path.name: json.loads(path.read_text())["file"] for path in output.glob("*.json")}
    assert written == {
        "clip.json": str(paths[0]),
        "clip.mp4.json": str(paths[1]),
        "some.body.json": str(folder),
    }
    assert len(list(output.glob("*.png"))) == 3
    # Later, alone: its own name again.
    assert call(trained, output, paths[1]) == 0
    assert len(list(output.iterdir())) == 6


def test_frames_are_chosen_by_time_where_the_rate_varies(film, predict, tmp_path):
    # Every frame of the second half lasts as long as three of the first.
    path = tmp_path / "film.mkv"
    stamps = [*range(0, 400, 20), *range(400, 400 + 60 * (len(film) - 20), 60)]
    write_film(path, film, stamps[: len(film)])
    whole, _ = predict(path, "--onset", "10", "--apex", "21", "--offset", "29")
    np.testing.assert_allclose(whole["times"], np.array(stamps[: len(film)]) / 1000, atol=1e-6)
    even = [10 + round(t) for t in np.interp(np.linspace(200, 940, 20), stamps[10:30], range(20))]
    even[int(np.abs(np.array([stamps[t] for t in even]) - stamps[21]).argmin())] = 21
    write_film(tmp_path / "even.mkv", [film[t] for t in even])
    same, _ = predict(tmp_path / "even.mkv", "--onset", "0", "--apex", str(even.index(21)), "--offset", "19")
    for name, probability in whole["probabilities"].items():
        assert same["probabilities"][name] == pytest.approx(probability, abs=5e-3)


@pytest.fixture(scope="module")
def long_film(tmp_path_factory):
    """Somebody who twice shows the same, clearly, five seconds apart; between is a pause of the camera."""
    clip = generate_clip(
        subject_portrait(0, 7), "happy", np.random.default_rng(3), amplitude=2.5, image_size=160, margin=0.5
    )
    film = [np.pad(frame, ((40, 40), (80, 80), (0, 0)), constant_values=120) for frame in clip.frames]
    path = tmp_path_factory.mktemp("long") / "long.mkv"
    stamps = [round(1000 * t / 30) for t in range(len(film))]
    write_film(path, film + film, stamps + [5000 + stamp for stamp in stamps])
    return path, len(film)


def test_spotting_gives_json_lines_a_table_a_picture_and_scores(long_film, trained, tmp_path, capsys):
    path, length = long_film
    assert call(trained, tmp_path, path, "--spot", "--json") == 0
    intervals = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(intervals) == 2
    first, second = intervals
    for name in ("onset", "apex", "offset"):
        assert second[name] == pytest.approx(first[name] + 5, abs=0.05)
        assert second[f"{name}_frame"] == pytest.approx(first[f"{name}_frame"] + length, abs=1)
    assert first["onset"] < first["apex"] < first["offset"] <= first["onset"] + 0.76
    assert first["score"] >= 0.7
    assert sum(first["probabilities"].values()) == pytest.approx(1)
    assert first["file"] == str(path)

    with (tmp_path / "long.spotted.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["apex"]) for row in rows] == pytest.approx([i["apex"] for i in intervals], abs=1e-4)
    assert [row["label"] for row in rows] == [i["label"] for i in intervals]
    whole = json.loads((tmp_path / "long.spotted.json").read_text())
    assert whole["intervals"] == intervals
    assert len(whole["times"]) == len(whole["scores"]) == 2 * length
    assert whole["scores"][first["apex_frame"]] == first["score"] == max(whole["scores"][:length])
    assert min(cv2.imread(str(tmp_path / "long.spotted.png")).shape[:2]) > 300

    table = tmp_path / "truth.csv"
    truth = [(first["onset"], first["offset"]), (2.0, 2.3), (3.0, 3.3)]
    lines = [f"{path},{onset},{offset}" for onset, offset in truth]
    table.write_text("\n".join(["file,onset,offset", *lines, "another.mp4,1,2", ""]))
    assert call(trained, tmp_path, path, "--spot", "--truth", table) == 0
    said = capsys.readouterr()
    *told, count, picture, scores = said.out.splitlines()
    assert len(told) == 2
    assert all(line.startswith(f"{path}: ") and " s, apex " in line for line in told)
    assert count == f"{path}: 2 spotted; learned from generated data: no evidence about real faces"
    assert picture == f"picture: {tmp_path / 'long.spotted.png'}"
    assert scores.startswith("precision 0.5, recall 0.333, f1 0.4, true positives 1")
    assert said.err == f"note: {table} has 1 more films: they do not count\n"


def test_a_film_without_truth_is_refused(long_film, trained, tmp_path, capsys):
    table = tmp_path / "truth.csv"
    table.write_text("file,onset,offset\nanother.mp4,1,2\n")
    assert call(trained, tmp_path, long_film[0], "--spot", "--truth", table) == 2
    assert f"{table} has no row of {long_film[0]}" in capsys.readouterr().err


def test_spotting_holds_a_window_however_long_the_film(trained, film, monkeypatch):
    from hsta.data.film import Frame
    from hsta.results.spotting import Curve, spot_film
    from hsta.training.checkpoints import load_checkpoint

    held, most = [0], [0]

    class Counted(np.ndarray):
        def __del__(self):
            held[0] -= 1

    class Endless:
        def __init__(self):
            self.notes = []

        def __iter__(self):
            for number in range(150):
                held[0] += 1
                most[0] = max(most[0], held[0])
                yield Frame(number / 30, film[number % 2].copy().view(Counted))

    curve = Curve()
    model, task = load_checkpoint(trained)
    assert list(spot_film(model, task, Endless(), file="endless", threshold=5.0, curve=curve)) == []
    assert len(curve.scores) == 150
    assert most[0] < 10


def test_a_face_that_moves_gets_a_new_box_and_no_spotted_jump(film, trained, tmp_path, capsys):
    still = [film[0]] * 45 + [np.roll(film[0], 70, axis=1)] * 45
    write_film(tmp_path / "moves.mkv", still, [round(1000 * t / 30) for t in range(90)])
    assert call(trained, tmp_path, tmp_path / "moves.mkv", "--spot", "--json") == 0
    assert capsys.readouterr().out == ""


def test_no_face_to_spot_in_is_refused(trained, tmp_path, capsys):
    write_film(tmp_path / "plain.mkv", [np.full((64, 96, 3), 90, np.uint8)] * 5)
    assert call(trained, tmp_path, tmp_path / "plain.mkv", "--spot") == 2
    assert capsys.readouterr().err == f"hsta: no face found in {tmp_path / 'plain.mkv'}\n"


def test_a_webcam_is_a_film(film, trained, tmp_path, capsys, monkeypatch):
    class Camera:
        def __init__(self, number):
            assert number == 1
            self.frames = iter(film)

        def isOpened(self):
            return True

        def read(self):
            frame = next(self.frames, None)
            return frame is not None, None if frame is None else frame[..., ::-1]

        def release(self):
            pass

    now = iter(range(len(film) + 1))
    monkeypatch.setattr("hsta.data.webcam.cv2.VideoCapture", Camera)
    monkeypatch.setattr("hsta.data.webcam.time.monotonic", lambda: next(now) / 30)
    monkeypatch.chdir(tmp_path)
    assert call(trained, Path("out"), "webcam:1", "--json") == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["file"] == "webcam:1"
    assert len(result["times"]) == len(film)
    assert said.err == f"note: webcam:1: the webcam stopped after {len(film) / 30:.1f} seconds\n"
    assert {path.name for path in Path("out").iterdir()} == {"webcam-1.json", "webcam-1.png"}
