"""Data sets by name."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from . import casme3
from .clips import DatasetIndex

_READERS = {"casme3": casme3.read}
DATASETS = tuple(_READERS)


def read_dataset(name: str, root: str | Path) -> DatasetIndex:
    """The clips of data set ``name`` (one of `DATASETS`) under the folder ``root``.

    Faults known of the real files are read through and told in ``notes``. Raises `UserError`, naming the
    path, for an unknown set, a missing folder or annotation, or when no clip is left.
    """
    if name not in _READERS:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"no such folder: {root}")
    return _READERS[name](root)
