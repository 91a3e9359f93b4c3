"""Saved models of which something is missing, damaged or of another save."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import safetensors.torch

from hsta_kernels import HSTA
from tests.models.checkpoints import KINDS, assert_same_state
from tests.models.parity import small_config, trained_reference


def test_an_interrupted_save_leaves_the_old_files(tmp_path, monkeypatch):
    trained_reference(small_config()).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(path, tensors, metadata):
        path.write_bytes(b"a beginning")
        raise OSError("no space left")

    monkeypatch.setattr("hsta_kernels.tensor_files.save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        trained_reference(small_config()).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Stop(BaseException):
    """The process ends here."""


@KINDS
@pytest.mark.parametrize("older", [False, True], ids=["with checksum", "of an older version"])
def test_a_save_interrupted_between_its_two_files_is_never_silent(tmp_path, monkeypatch, kind, older):
    """Both configurations fit both files of weights: only the number of frames differs."""
    old, new = trained_reference(small_config(num_frames=6)), trained_reference(small_config(num_frames=8))
    old.save_pretrained(tmp_path)
    if older:
        safetensors.torch.save_file(old.state_dict(), tmp_path / "model.safetensors")
    replaced = []

    def replace_once(source, target):
        if replaced:
            raise Stop
        replaced.append(target)
        Path(source).rename(target)

    def save_and_stop(model):
        replaced.clear()
        monkeypatch.setattr("os.replace", replace_once)
        with pytest.raises(Stop):
            model.save_pretrained(tmp_path)
        monkeypatch.undo()
        assert len(replaced) == 1

    save_and_stop(new)
    with pytest.raises(
        ValueError, match=r"config\.json is not the .* model\.safetensors was saved with: it has num_frames 6, not 8\."
    ):
        kind.from_pretrained(tmp_path)
    old.save_pretrained(tmp_path)
    assert_same_state(kind.from_pretrained(tmp_path), old)
    # Of one configuration, weights may go alone.
    same = trained_reference(old.config)
    save_and_stop(same)
    assert_same_state(kind.from_pretrained(tmp_path), same)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no directory nothing"):
        HSTA.from_pretrained("nothing")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json and no model\.safetensors"):
        HSTA.from_pretrained(tmp_path)
    HSTA(small_config()).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors$"):
        HSTA.from_pretrained(tmp_path)


def test_damaged_files_are_named(tmp_path):
    HSTA(small_config()).save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "depth": [[2, 2], [2, 2]]}))
    with pytest.raises(
        ValueError, match=r"model\.safetensors does not fit the model: it lacks blocks\.0\..* and \d+ more"
    ):
        HSTA.from_pretrained(tmp_path)
    config.write_text(json.dumps({**fields, "num_classes": 6}))
    with pytest.raises(ValueError, match=r"head\.weight has shape \(5, 72\), expected \(6, 72\)"):
        HSTA.from_pretrained(tmp_path)
    config.write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json must hold the fields of HSTAConfig"):
        HSTA.from_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        HSTA.from_pretrained(tmp_path)
    config.write_text(json.dumps(fields))
    weights.write_bytes(b"not this")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file"):
        HSTA.from_pretrained(tmp_path)


@KINDS
def test_no_damage_is_loaded_in_silence(tmp_path, kind):
    """Up to 512 bytes of zeros or of anything, or a lost end, anywhere in the file."""
    trained_reference(small_config()).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    random = Random(0)
    for draw in range(300):
        place = random.randrange(header if draw % 2 else len(content))
        length = random.choice((1, 2, 8, 64, 512))
        damaged = random.choice(
            (
                content[:place] + bytes(length) + content[place + length :],
                content[:place] + random.randbytes(length) + content[place + length :],
                content[:place] + bytes(byte ^ 0x20 for byte in content[place:][:length]) + content[place + length :],
                content[:place],
            )
        )
        if damaged != content:
            weights.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"model\.safetensors is (damaged|not a safetensors file)"):
                kind.from_pretrained(tmp_path)


@KINDS
def test_weights_without_a_checksum_are_loaded(tmp_path, kind):
    model = trained_reference(small_config())
    model.save_pretrained(tmp_path)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same_state(kind.from_pretrained(tmp_path), model)
