"""Data sets by name."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ..errors import UserError
from .cache import read_cache
from .clips import DatasetIndex
from .sets.casme2 import CASME2
from .sets.casme3 import CASME3
from .sets.dfme import DFME
from .sets.folder import FOLDER
from .sets.megc2019 import MEGC2019
from .sets.mmew import MMEW
from .sets.samm import SAMM
from .sets.smic import SMIC


class Dataset(Protocol):
    """A data set that can be read: most are a `TableDataset`, but anything with these may be given."""

    @property
    def name(self) -> str: ...

    def read(self, root: Path, classes: str | None = None) -> DatasetIndex:
        """The clips below ``root``, with what was wrong in ``faults``. Raises `UserError`, naming the path."""
        ...


_ALL: tuple[Dataset, ...] = (CASME2, SAMM, SMIC, CASME3, MMEW, DFME, MEGC2019, FOLDER)
DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _ALL}


def read_dataset(dataset: str | Dataset, root: str | Path, classes: str | None = None) -> DatasetIndex:
    """The clips of a ``dataset``, a name of `DATASETS` or one of your own, under the folder ``root``, which holds it as
    its owners give it out or as `hsta prepare` left it.

    ``classes`` chooses among the set's (``3``, ``5``, ``7``, ``8``, ``objective``), or makes each action unit that is
    coded a class (``action-units``), of which a clip shows any number; left out, every emotion is a class. Faults known
    of the real files are read through and told in ``faults``. Raises `UserError`, naming the path, for an unknown set
    or classes, a missing folder or annotation, or when no clip is left.
    """
    if isinstance(dataset, str):
        dataset = named_dataset(dataset)
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"no such folder: {root}")
    return read_cache(dataset, root, classes) or dataset.read(root, classes)


def named_dataset(name: str) -> Dataset:
    """One of `DATASETS`. Raises `UserError` for an unknown name."""
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name]
