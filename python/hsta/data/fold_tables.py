"""Folds that somebody else drew: pairs of tables in a folder ``folds``, named alike but for ``train`` and ``test``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .annotation import ENDINGS, read_table
from .clips import Clip
from .folds import Fold
from .names import name_key
from .natural_order import natural_key
from .table_dataset import FOLDS


def read_folds(root: Path, clips: Sequence[Clip]) -> tuple[list[Fold], list[str]]:
    """The folds in ``root/folds``, and what a reader of their scores must know: whom a fold shares.

    Tables have the columns subject, file name and onset, as the annotation has. Raises `UserError` naming the
    file when one of a pair is missing, or names none of the ``clips``.
    """
    folder = root / FOLDS
    pairs: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)) if folder.is_dir() else []:
        role = re.search("train|test", path.stem.casefold())
        if role and path.suffix.lower() in ENDINGS and not path.name.startswith((".", "~$")):
            name = re.sub("train|test", "", path.stem.casefold()).strip("_- .") or FOLDS
            pairs.setdefault(name, {})[role[0]] = path
    if not pairs:
        raise UserError(f"no folds: {folder} must hold pairs of tables such as train_1.csv and test_1.csv")
    places = {(clip.person[1], name_key(clip.name)): place for place, clip in enumerate(clips)}
    folds: list[Fold] = []
    notes: list[str] = []
    for name, pair in pairs.items():
        if set(pair) != {"train", "test"}:
            raise UserError(f"{next(iter(pair.values()))} has no partner for {'train' if 'test' in pair else 'test'}")
        indices = {role: _indices(path, places, notes) for role, path in pair.items()}
        learned, tested = ({clips[i].person for i in indices[role]} for role in ("train", "test"))
        if both := set(indices["train"]) & set(indices["test"]):
            raise UserError(f"fold {name} tests {len(both)} clips that it is trained on")
        if shared := learned & tested:
            notes.append(
                f"fold {name} shares {len(shared)} of its {len(tested)} tested subjects with those it learns from: "
                "its score says nothing about people who were not seen"
            )
        subjects = tuple(sorted({clips[i].subject for i in indices["test"]}, key=natural_key))
        folds.append(Fold(name, subjects, indices["train"], indices["test"]))
    return folds, notes


def _indices(path: Path, places: dict[tuple[str, str], int], notes: list[str]) -> tuple[int, ...]:
    rows = read_table(path, ("subject", "clip", "onset")).rows
    keys = [(name_key(row.cells["subject"]), name_key(f"{row.cells['clip']}_{row.cells['onset']}")) for row in rows]
    found = dict.fromkeys(places[key] for key in keys if key in places)
    if not found:
        raise UserError(f"{path} names no clip of the data set")
    if missing := sum(key not in places for key in keys):
        notes.append(f"{path.name}: {missing} of {len(rows)} rows are no clips of the data set, passed over")
    return tuple(found)
