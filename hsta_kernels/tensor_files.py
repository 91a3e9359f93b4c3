"""Safetensors files with a checksum: damage is an error that names the file, never other weights in silence.

``hsta_checksum`` in the metadata of such a file is the SHA-256 digest of the whole file in which the digest's own 64
digits are zeros. Every reader of safetensors can read it; this is how one checks it::

    content = open(path, "rb").read()
    digest = re.search(rb'"hsta_checksum":"sha256:([0-9a-f]{64})"', content)[1]
    assert hashlib.sha256(content.replace(digest, b"0" * 64, 1)).hexdigest() == digest.decode()
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

_NAME, _KIND = "hsta_checksum", "sha256:"
_UNKNOWN = "0" * 64
_CHECKSUM = re.compile(f'"{_NAME}":"{_KIND}([0-9a-f]{{64}})"'.encode())


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors of any dtypes and devices, and strings to go with them; the same input makes the same bytes.

    An existing file is written over: give a temporary name and rename it, and readers see either file whole.

    Raises:
        RuntimeError: tensors share memory.
    """
    content = memoryview(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    data = 8 + int.from_bytes(content[:8], "little")
    # The metadata are added here: the library would write them in another order each time.
    metadata = {_NAME: _KIND + _UNKNOWN, "format": "pt", **metadata}
    header = {"__metadata__": metadata, **json.loads(bytes(content[8:data]))}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data are aligned
    head = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(head)
    digest.update(content[data:])
    with open(path, "wb") as file:
        file.write(head.replace(_UNKNOWN.encode(), digest.hexdigest().encode(), 1))
        file.write(content[data:])


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, on the CPU. Other programs' files, without a checksum, are read too.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or no safetensors file.
    """
    path = Path(path)
    _check(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:  # a file without a checksum may hold anything
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def _check(path: Path) -> None:
    with open(path, "rb") as file:
        length = file.read(8)
        header = file.read(min(int.from_bytes(length, "little"), path.stat().st_size))
        found = _CHECKSUM.search(header)
        if found is None:
            # Either of the two is enough to tell that there was a checksum.
            if f'"{_NAME}"'.encode() in header or f'"{_KIND}'.encode() in header:
                raise ValueError(f"{path} is damaged: its checksum cannot be read")
            return
        digest = hashlib.sha256(length + header[: found.start(1)] + _UNKNOWN.encode() + header[found.end(1) :])
        for chunk in iter(partial(file.read, 1 << 20), b""):
            digest.update(chunk)
    if digest.hexdigest() != found[1].decode():
        raise ValueError(f"{path} is damaged: its checksum is wrong")
