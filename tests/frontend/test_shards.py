"""`hsta shard`: what is prepared in a few tar files, read clip by clip like the folder, to the same bits."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from itertools import groupby

import cv2
import numpy as np
import pytest
import torch
from hsta.cli import main
from hsta.data.cache import CLASSES, FILE
from hsta.data.fingerprint import fingerprints
from hsta.data.output_folder import alone_in
from hsta.data.registry import read_dataset
from hsta.errors import UserError
from hsta.generated.writer import generate_dataset

from tests.frontend.test_training import STATE, WEIGHTS

SHARDS = 4  # of eight clips and one that is left out
LEARNING = """
    --image-size 32 --num-frames 2 --depth 1 1 --augment 0.5 --special apex-offset
    --epochs 2 --warmup-epochs 1 --batch-size 2 --accelerator cpu
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What is prepared, with a clip without a face; the data set is gone, so that it is not read each time."""
    root = tmp_path_factory.mktemp("prepared")
    generate_dataset(root / "source", 3, 3, 0, image_size=96, emotions=("happy", "surprise"), progress=False)
    for path in read_dataset("casme3", root / "source").clips[4].files:
        cv2.imwrite(str(path), np.full((96, 96, 3), 90, np.uint8))
    (root / "source" / "folds").mkdir()
    (root / "source" / "folds" / "train_1.csv").write_text("subject\n")
    options = ["--detector", "cascade", "--image-size", "32", "--workers", "0"]
    assert main(["prepare", "--data", str(root / "source"), "--output", str(root / "prepared"), *options]) == 1
    shutil.rmtree(root / "source")
    return root / "prepared"


@pytest.fixture(scope="module")
def shards(prepared, tmp_path_factory):
    output = tmp_path_factory.mktemp("shards") / "shards"
    assert shard(prepared, output) == 0
    return output


@pytest.fixture
def copy(shards, tmp_path):
    """The shards, to be damaged."""
    return shutil.copytree(shards, tmp_path / "shards")


@pytest.fixture(scope="module")
def run_of_folder(prepared, tmp_path_factory):
    run = tmp_path_factory.mktemp("folder") / "run"
    assert train(prepared, run) == 0
    return run


def shard(source, output, *more):
    return main(["shard", "--data", str(source), "--output", str(output), "--shards", str(SHARDS), *more])


def train(data, run, *more):
    return main(["train", "--data", str(data), "--output", str(run), *LEARNING.split(), *more])


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tar_files(folder):
    return sorted((folder / "clips").iterdir())


def complaint(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def flip(path, place):
    """Change a bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_there_are_as_many_files_as_shards(shards):
    assert [path.name for path in tar_files(shards)] == [f"{number:05}.tar" for number in range(SHARDS)]


@pytest.mark.parametrize("classes", [None, *CLASSES[1:]])
def test_they_are_read_like_the_folder(prepared, shards, classes):
    try:
        folder = read_dataset("casme3", prepared, classes)
    except UserError as error:
        with pytest.raises(UserError) as refusal:
            read_dataset("casme3", shards, classes)
        assert str(refusal.value) == str(error)
        return
    ours = read_dataset("casme3", shards, classes)
    assert (ours.class_names, ours.faults, ours.lost, ours.prepared) == (
        folder.class_names,
        folder.faults,
        folder.lost,
        folder.prepared,
    )
    assert len(ours.clips) == 8
    assert fingerprints(ours.clips) == fingerprints(folder.clips)
    for mine, clip in zip(ours.clips, folder.clips, strict=True):
        assert (mine.person, mine.name, mine.apex, mine.label) == (clip.person, clip.name, clip.apex, clip.label)
        np.testing.assert_array_equal(mine.frames.open(), clip.frames.open())
        assert isinstance(mine.frames.open().base, np.memmap)


def test_published_folds_come_along(prepared, shards):
    assert contents(shards / "folds") == contents(prepared / "folds") != {}


@pytest.mark.parametrize("workers", [0, 2])
def test_training_ends_with_the_same_bits(shards, run_of_folder, tmp_path, workers):
    assert train(shards, tmp_path / "run", "--workers", str(workers)) == 0
    for name in (STATE, WEIGHTS):
        assert (tmp_path / "run" / name).read_bytes() == (run_of_folder / name).read_bytes(), name


def test_a_run_that_began_with_the_folder_goes_on_with_shards(prepared, shards, run_of_folder, tmp_path, monkeypatch):
    forward, steps = sys.modules["hsta_kernels"].HSTA.forward, iter(range(1, 7))

    def interrupted(*inputs):
        if next(steps) == 6:  # in the second of the four steps of the second epoch
            raise KeyboardInterrupt
        return forward(*inputs)

    monkeypatch.setattr("hsta_kernels.HSTA.forward", interrupted)
    assert train(prepared, tmp_path / "run") == 130
    monkeypatch.undo()
    assert train(shards, tmp_path / "run", "--resume") == 0
    assert (tmp_path / "run" / STATE).read_bytes() == (run_of_folder / STATE).read_bytes()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of PyTorch has no torch.distributed")
def test_two_processes_end_with_the_same_bits(prepared, shards, tmp_path):
    script = tmp_path / "both.py"
    script.write_text(f"""
import sys
from hsta.cli import main
for data, run in {[(str(prepared), str(tmp_path / "folder")), (str(shards), str(tmp_path / "shards"))]}:
    line = ["train", "--data", data, "--output", run, "--devices", "2", *{LEARNING.split()}]
    if code := main(line):
        sys.exit(code)
""")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [*torchrun, script], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert child.returncode == 0, child.stderr
    for name in (STATE, WEIGHTS):
        assert (tmp_path / "shards" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes(), name


def samples(shards):
    """Key, frames and description of every clip, by Python's own modules."""
    for path in tar_files(shards):
        with tarfile.open(path) as tar:
            for key, members in groupby(tar, lambda member: member.name.partition(".")[0]):
                frames, described = members
                assert (frames.name, described.name) == (f"{key}.npy", f"{key}.json")
                frames, described = tar.extractfile(frames), tar.extractfile(described)
                yield key, np.load(io.BytesIO(frames.read())), json.load(described)


def test_they_are_tar_files_of_what_webdataset_calls_samples(shards):
    clips, by_units = read_dataset("casme3", shards).clips, read_dataset("casme3", shards, "action-units")
    names = read_dataset("casme3", shards).class_names
    units = [[by_units.class_names[unit] for unit in clip.label] for clip in by_units.clips]
    for clip, shown, (_, frames, said) in zip(clips, units, samples(shards), strict=True):
        np.testing.assert_array_equal(frames, clip.frames.open())
        assert (said["subject"], said["name"], said["apex"]) == (clip.subject, clip.name, clip.apex)
        assert said["classes"]["default"] == names[clip.label]
        assert said["classes"]["action-units"] == shown
    assert [key for key, *_ in samples(shards)] == [f"{number:05}" for number in (0, 1, 2, 3, 5, 6, 7, 8)]


def test_webdataset_reads_them(shards):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed; it is asked by this test alone")
    urls = [str(path) for path in tar_files(shards)]
    read = webdataset.WebDataset(urls, shardshuffle=False).decode()
    for theirs, (key, frames, said) in zip(read, samples(shards), strict=True):
        assert (theirs["__key__"], theirs["json"]) == (key, said)
        np.testing.assert_array_equal(theirs["npy"], frames)


@pytest.mark.parametrize("moment", ["half written", "before it is renamed", "after it is renamed"])
def test_killed_while_a_shard_is_written(prepared, shards, tmp_path, moment):
    script = f"""
import os, signal, sys, tarfile
from hsta.cli import main

add, replace, count = tarfile.TarFile.addfile, os.replace, 0

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def add_some(tar, member, file):
    add(tar, member, file)
    if "00003" in member.name and {moment!r} == "half written":
        tar.fileobj.flush()
        killed()

def replace_some(old, new):
    here = str(new).endswith("00001.tar")
    if here and {moment!r} == "before it is renamed":
        killed()
    replace(old, new)
    if here:
        killed()

tarfile.TarFile.addfile, os.replace = add_some, replace_some
main(sys.argv[1:])
"""
    line = ["shard", "--data", prepared, "--output", tmp_path / "shards", "--shards", str(SHARDS)]
    child = subprocess.run([sys.executable, "-c", script, *line], capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    with pytest.raises(UserError, match="is not complete: the same hsta shard again goes on with it"):
        read_dataset("casme3", tmp_path / "shards")
    assert shard(prepared, tmp_path / "shards") == 0
    assert contents(tmp_path / "shards") == contents(shards)


def test_stopped_by_hand(prepared, shards, tmp_path, monkeypatch, capsys):
    def interrupted(path, samples):
        raise KeyboardInterrupt

    monkeypatch.setattr("hsta.data.shards.write_shard", interrupted)
    assert shard(prepared, tmp_path / "shards") == 130
    assert "hsta: stopped: the same command (without --overwrite) goes on from here" in capsys.readouterr().err
    monkeypatch.undo()
    assert shard(prepared, tmp_path / "shards") == 0
    assert contents(tmp_path / "shards") == contents(shards)


def test_what_is_whole_stays(prepared, shards, copy, monkeypatch):
    monkeypatch.setattr("hsta.data.shards.write_shard", None)
    assert shard(prepared, copy) == 0
    assert contents(copy) == contents(shards)


def harm(path, how):
    clip = read_dataset("casme3", path.parent.parent).clips[3]
    assert clip.frames.path == path
    if how == "a bit":
        flip(path, clip.frames.offset + 1000)
    elif how == "the header":
        flip(path, clip.frames.offset)
    elif how == "cut short":
        os.truncate(path, clip.frames.offset + 1000)
    else:
        path.unlink()
    return f"{clip.subject} {clip.name}"


@pytest.mark.parametrize("how", ["a bit", "the header", "cut short", "gone"])
def test_damage_names_shard_and_clip_and_is_repaired(prepared, shards, copy, tmp_path, capsys, how):
    path = copy / "clips" / "00001.tar"
    named = harm(path, how)
    capsys.readouterr()
    assert train(copy, tmp_path / "run") == 2
    said = complaint(capsys)
    # Where the file is gone, its first clip is met before.
    assert str(path) in said and (named in said or how == "gone"), said
    assert said.endswith("the same hsta shard again makes it anew")
    assert not (tmp_path / "run").exists()
    assert main(["check", "--data", str(copy)]) == 1
    said = capsys.readouterr().out
    assert f"clips/00001.tar: {named}: missing or damaged, left out; the same hsta shard again makes it anew" in said
    times = [path.stat().st_mtime_ns for path in tar_files(copy) if path.name != "00001.tar"]
    assert shard(prepared, copy) == 0
    assert contents(copy) == contents(shards)
    assert [path.stat().st_mtime_ns for path in tar_files(copy) if path.name != "00001.tar"] == times


def test_a_damaged_description_is_written_anew(prepared, shards, copy):
    with tarfile.open(copy / "clips" / "00002.tar") as tar:
        place = tar.getmembers()[1].offset_data
    flip(copy / "clips" / "00002.tar", place + 5)
    assert shard(prepared, copy) == 0
    assert contents(copy) == contents(shards)


def test_a_shard_that_goes_while_loading_processes_read_is_named(copy):
    from hsta.data.inputs import ClipDataset
    from torch.utils.data import DataLoader

    dataset = ClipDataset(read_dataset("casme3", copy).clips, image_size=32, num_frames=2, training=True)
    (copy / "clips" / "00003.tar").unlink()
    with pytest.raises(UserError, match=r"00003\.tar is not there, with spNO\.3 "):
        list(DataLoader(dataset, num_workers=1))


def test_a_damaged_clip_of_the_folder_is_named_and_gets_in_no_shard(prepared, tmp_path, capsys):
    source = shutil.copytree(prepared, tmp_path / "prepared")
    flip(source / "clips" / "00003.npy", -1)
    assert shard(source, tmp_path / "shards") == 2
    clip = read_dataset("casme3", prepared).clips[3]
    assert f"clips/00003.npy is damaged at {clip.subject} {clip.name} (its checksum differs)" in complaint(capsys)
    assert [path.name for path in tar_files(tmp_path / "shards")] == ["00000.tar"]
    assert train(source, tmp_path / "run") == 2
    assert f"clips/00003.npy is damaged at {clip.subject} {clip.name}" in complaint(capsys)


def test_two_into_one_folder(prepared, copy, shards, capsys):
    with alone_in(copy, "hsta shard"):
        assert shard(prepared, copy, "--overwrite") == 2
    assert f"another hsta shard is at work in {copy}" in complaint(capsys)
    assert contents(copy) == contents(shards)


def test_what_cannot_be_put_into_shards(prepared, shards, copy, tmp_path, capsys):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("Dear")
    incomplete = shutil.copytree(prepared, tmp_path / "incomplete")
    said = json.loads((incomplete / FILE).read_text())
    (incomplete / FILE).write_text(json.dumps(said | {"results": None}))
    new = tmp_path / "new"
    for source, output, more, why in [
        (tmp_path / "nowhere", new, [], "no such folder"),
        (tmp_path / "letters", new, [], "holds nothing prepared: hsta prepare comes first"),
        (shards, new, [], "is in shards: give the folder that hsta prepare left"),
        (incomplete, new, [], "is not complete: the same hsta prepare again goes on with it"),
        (prepared, prepared, ["--overwrite"], "holds what is to be put into shards; choose another folder"),
        (prepared, tmp_path / "letters", ["--overwrite"], "is not empty and holds nothing prepared"),
        (prepared, new, ["--shards", "0"], "shards must be from 1 to the number of clips, 8, got 0"),
        (prepared, new, ["--shards", "9"], "shards must be from 1 to the number of clips, 8, got 9"),
        (prepared, copy, ["--shards", "2"], "was prepared with 4 shards, not 2: --overwrite begins it again"),
    ]:
        assert shard(source, output, *more) == 2, why
        assert why in complaint(capsys)
    assert not new.exists()
    assert contents(copy) == contents(shards)
    assert shard(prepared, copy, "--overwrite", "--shards", "2") == 0
    assert [path.name for path in tar_files(copy)] == ["00000.tar", "00001.tar"]
