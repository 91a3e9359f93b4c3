"""One's own data: a folder, and in it a table that says what is where.

The table is a csv file or a workbook with the columns ``subject``, ``clip`` and ``emotion``, and perhaps ``onset``,
``apex`` and ``offset``, numbers of frames. A clip is a folder of images: its path, or its name where it lies in a
folder of the subject:

    subject,clip,emotion,onset,apex,offset
    anna,anna/laugh1,happiness,12,18,25
    anna,anna/laugh2,happiness,3,,20
    berta,berta/frown,anger,40,47,66

A column ``AU`` of action units may stand beside the emotions or in their place. Without an apex the frame of largest
motion serves; without the three columns all images of a folder are the clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import UserError
from ..annotation import read_table
from ..classes import emotions, polarity, spelled
from ..clips import DatasetIndex
from ..table_dataset import TableDataset, find_tables
from ..units import CHOICE, COLUMN

FACTS = TableDataset(
    name="folder",
    title="one's own data",
    editions=(),
    frames=("/{clip}", "{subject}/{clip}"),
    classes={},
    required=("subject", "clip", "emotion"),
)


@dataclass(frozen=True)
class Folder:
    name: str = FACTS.name
    title: str = FACTS.title

    def read(self, root: Path, classes: str | None = None) -> DatasetIndex:
        """The clips; classes are the emotions that the table names, with ``3`` the field's three, or action units."""
        if classes == CHOICE:
            return replace(FACTS, required=("subject", "clip", COLUMN)).read(root, classes)
        tables, _ = find_tables(FACTS, root)
        written: dict[str, str] = {}
        for path in tables:
            for row in read_table(path, FACTS.required).rows:
                if emotion := row.cells["emotion"]:
                    written.setdefault(spelled(emotion), emotion)
        if not written:
            raise UserError(f"{tables[0]} names no emotion")
        own = emotions(*(written[key] for key in sorted(written)))
        three = polarity("anger", "contempt", "disgust", "fear", "sadness", "repression")
        return replace(FACTS, classes={"own": own, "3": three}).read(root, classes)


FOLDER = Folder()
