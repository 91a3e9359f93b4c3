"""Files with a checksum: nothing that befalls one is read in silence."""

from __future__ import annotations

import hashlib
import re

import pytest
import safetensors
import safetensors.torch
import torch

from hsta_kernels import tensor_files

TENSORS = {
    "weight": torch.arange(6.0).view(2, 3),
    "transposed": torch.arange(6, dtype=torch.bfloat16).view(2, 3).t(),
    "step": torch.tensor(3),
    "nothing": torch.zeros(0, 4),
    "Gewicht_ß": torch.ones(1, dtype=torch.bool),
}
METADATA = {"epochs_done": "3", "note": '"quoted"', "zeros": "0" * 64}


@pytest.fixture
def file(tmp_path):
    tensor_files.save(tmp_path / "file.safetensors", TENSORS, METADATA)
    return tmp_path / "file.safetensors"


def assert_same(tensors):
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == TENSORS[name].dtype and torch.equal(tensor, TENSORS[name]), name


def test_saved_and_loaded(file):
    tensors, metadata = tensor_files.load(file)
    assert_same(tensors)
    assert metadata.items() >= METADATA.items() and metadata["format"] == "pt"


def test_it_is_safetensors(file):
    assert_same(safetensors.torch.load_file(file))
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0


def test_the_same_bytes_each_time(file, tmp_path):
    tensor_files.save(tmp_path / "again", dict(reversed(TENSORS.items())), METADATA)
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_the_checksum_is_what_the_module_says(file):
    content = file.read_bytes()
    digest = re.search(rb'"hsta_checksum":"sha256:([0-9a-f]{64})"', content)[1]
    assert hashlib.sha256(content.replace(digest, b"0" * 64, 1)).hexdigest() == digest.decode()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"any": "thing"}])
def test_files_of_other_programs_are_read(tmp_path, metadata):
    tensors = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    safetensors.torch.save_file(tensors, tmp_path / "other", metadata=metadata)
    tensors, found = tensor_files.load(tmp_path / "other")
    assert_same(tensors)
    assert found == (metadata or {})


def test_every_changed_byte_is_noticed(file):
    content = file.read_bytes()
    for place, byte in enumerate(content):
        for other in {byte ^ 1 << place % 8, byte ^ 0x20, 0, ord("\n")} - {byte}:
            file.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
            with pytest.raises(ValueError, match=r"file\.safetensors is (damaged|not a safetensors file)"):
                tensor_files.load(file)


def test_every_truncation_is_noticed(file):
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"file\.safetensors is (damaged|not a safetensors file)"):
            tensor_files.load(file)
    file.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=r"file\.safetensors is damaged: its checksum is wrong"):
        tensor_files.load(file)


def test_a_file_that_cannot_be_read_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        tensor_files.load(tmp_path / "nothing")
