"""The composite of MEGC 2019 (See et al., 2019): three data sets under one folder, and one table of labels.

``combined_3class_gt.csv`` has no header; its lines are ``casme2,sub01,EP02_01f,1``. The frames lie in folders
whose names hold ``casme2``, ``samm`` and ``smic``; where such a folder has the annotation of its set, onset, apex
and offset are taken from it, else all frames of a clip's folder are the clip.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from ...generated.mark import MARKER, NO_EVIDENCE
from ..annotation import Row, read_grids, read_table
from ..classes import Classes
from ..clips import DatasetIndex, Fault
from ..table_dataset import Assembly, Edition, TableDataset, differences, find_tables, table_files
from ..units import CHOICE
from .casme2 import CASME2
from .samm import SAMM
from .smic import SMIC

PARTS = {"casme2": CASME2, "samm": SAMM, "smic": SMIC}
FOLDER_NAMES = {"casme2": ("casme2", "casmeii"), "samm": ("samm",), "smic": ("smic",)}
CLASSES = Classes(
    "label", {"negative": ("negative", "0"), "positive": ("positive", "1"), "surprise": ("surprise", "2")}
)
EDITION = Edition("*3class_gt*", 442, 68, {"label": {"negative": 250, "positive": 109, "surprise": 83}})
PUBLISHED = {"casme2": 145, "samm": 133, "smic": 164}  # clips


@dataclass(frozen=True)
class Megc2019:
    name: str = "megc2019"
    title: str = "composite of MEGC 2019"

    def read(self, root: Path, classes: str | None = None) -> DatasetIndex:
        """The clips of all three sets. Raises `UserError`, naming the file or folder."""
        if classes == CHOICE:
            raise UserError(
                f"{self.name} has no action units, as SMIC has none: give CASME II and SAMM as data sets of their own"
            )
        if classes not in (None, "3"):
            raise UserError(f"{self.name} has no classes {classes!r}; known: 3")
        path, rows = _labels(root)
        generated = (root / MARKER).exists()
        index = DatasetIndex(self.name, [], CLASSES.names, [NO_EVIDENCE] * generated, generated)
        for part, dataset in PARTS.items():
            of_part = [row for row in rows if row.cells["dataset"] == part]
            if of_part:
                _add(index, dataset, _part_folder(root, part), of_part)
        if not index.clips:
            detail = "; ".join(map(str, index.faults[:3]))
            raise UserError(f"no usable clip in {path} and the folders below {root} ({detail})")
        if not generated:
            said = differences(index, EDITION, CLASSES)
            for part, count in PUBLISHED.items():
                there = sum(clip.dataset == part for clip in index.clips)
                if there != count:
                    said.append(f"{there} clips of {part}, published are {count}")
            index.faults += [Fault(path.name, None, sentence) for sentence in said]
        return index


def _labels(root: Path) -> tuple[Path, list[Row]]:
    found = [path for path in table_files(root) if re.search("3_?class.*gt|combined", path.name.lower())]
    if len(found) != 1:
        raise UserError(f"the labels are in combined_3class_gt.csv; found {len(found)} such tables in {root}")
    grid = max((grid for _, grid in read_grids(found[0])), key=_rows_of_parts)
    rows = []
    for number, cells in grid:
        if len(cells) < 4 or not any(cells[:4]) or (number == 1 and cells[0].strip().casefold() not in PARTS):
            continue
        dataset, subject, clip, label = (cell.strip() for cell in cells[:4])
        rows.append(
            Row(
                found[0].name,
                number,
                {"dataset": dataset.casefold(), "subject": subject, "clip": clip, "label": label},
            )
        )
    if not rows:
        raise UserError(f"{found[0]} must have lines such as casme2,sub01,EP02_01f,1")
    unknown = [row for row in rows if row.cells["dataset"] not in PARTS]
    if unknown:
        first = unknown[0]
        named = ", ".join(PARTS)
        raise UserError(f"{found[0]} row {first.number} is of {first.cells['dataset']!r}; expected one of {named}")
    return found[0], rows


def _rows_of_parts(grid: list[tuple[int, list[str]]]) -> int:
    return sum(len(cells) >= 4 and cells[0].strip().casefold() in PARTS for _, cells in grid)


def _part_folder(root: Path, part: str) -> Path:
    named = [
        path
        for path in sorted(root.iterdir())
        if path.is_dir() and any(n in re.sub(r"[\W_]", "", path.name.casefold()) for n in FOLDER_NAMES[part])
    ]
    if len(named) > 1:
        raise UserError(f"several folders of {part}, keep one: {', '.join(map(str, named))}")
    return named[0] if named else root


def _add(index: DatasetIndex, dataset: TableDataset, folder: Path, rows: list[Row]) -> None:
    try:
        tables, _ = find_tables(dataset, folder)
        annotated = {dataset.key(row): row.cells for path in tables for row in read_table(path, dataset.required).rows}
    except UserError as error:
        annotated = {}
        index.notes.append(f"{dataset.name}: all frames of a clip's folder are the clip ({error})")
    assembly = Assembly(dataset, index, dataset.folders(folder))
    for row in rows:
        label = CLASSES.label(row.cells["label"])
        if label is None:
            assembly.lose(row, f"label {row.cells['label']!r} is none of 0, 1, 2, left out")
            continue
        cells = annotated.get(dataset.key(row), {})
        if annotated and not cells:
            assembly.fault(row, f"not in the annotation of {dataset.name}: all frames of its folder are the clip")
        assembly.clip(row, CLASSES.names[label], label, cells)


MEGC2019 = Megc2019()
