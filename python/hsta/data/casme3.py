"""CAS(ME)³ part A (Li et al., 2022): ``spNO.1/a/color/175.jpg`` and one table of micro-expressions."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ..generated.mark import MARKER, NO_EVIDENCE
from .annotation import frame_number, read_table
from .clips import Clip, DatasetIndex
from .images import ENDINGS

CLASS_NAMES = ("others", "disgust", "surprise", "fear", "anger", "sad", "happy")
# The macro-expression table and the other sets of the field spell the same emotions so.
SPELLINGS = {
    "other": "others",
    "surprised": "surprise",
    "disgusted": "disgust",
    "angry": "anger",
    "sadness": "sad",
    "happiness": "happy",
}
OBJECTIVE_NAMES = ("I", "II", "III", "IV", "V", "VI", "VII")
LONGEST = 50  # frames after the onset; spans of thousands occur, and HSTA's authors cut them here


def read(root: Path) -> DatasetIndex:
    """Read the annotation in ``root`` (or ``root/annotation``) and find the frames of each row."""
    path = find_annotation(root)
    table = read_table(path, ("subject", "filename", "onset", "offset"))
    notes = []
    if "emotion" in table.columns:
        column, class_names = "emotion", CLASS_NAMES
    elif "objective class" in table.columns:
        column, class_names = "objective class", OBJECTIVE_NAMES
        notes.append(f"{path.name} has no column emotion: the labels are the objective classes I to VII")
    else:
        raise UserError(f"{path} has neither a column emotion nor a column Objective class")
    generated = (root / MARKER).exists()
    if generated:
        notes.append(NO_EVIDENCE)
    if "apex" not in table.columns:
        notes.append(f"{path.name} has no column Apex: the frame of largest motion is taken")
    folders = _Folders(root)
    clips: list[Clip] = []
    names: set[tuple[str, str]] = set()
    for position, row in enumerate(table.to_dict("records"), 2):
        if not any(row.values()):
            continue
        clip, faults = _clip(row, column, class_names, folders)
        where = f"row {position} ({row['subject']} {row['filename']} {row['onset']})"
        notes += [f"{where}: {fault}" for fault in faults]
        if clip is None:
            continue
        if (clip.subject, clip.name) in names:
            notes.append(f"{where}: given twice, the first is kept")
            continue
        names.add((clip.subject, clip.name))
        clips.append(clip)
    if not clips:
        detail = "; ".join(notes[:3])
        raise UserError(f"no usable clip in {path} and the folders beside it" + (f" ({detail})" if detail else ""))
    return DatasetIndex("casme3", clips, class_names, notes, generated)


def find_annotation(root: Path) -> Path:
    """The table of micro-expressions under ``root``: the name it is distributed with, else the only table."""
    folders = [folder for folder in (root, root / "annotation") if folder.is_dir()]
    tables = [
        path
        for folder in folders
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in {".csv", ".xlsx"} and not path.name.startswith(("~$", "."))
    ]
    named = [path for path in tables if "me_label" in path.name.lower() and "mae_" not in path.name.lower()]
    candidates = named or tables
    if not candidates:
        hint = " (its generation was interrupted: run it again)" if (root / MARKER).exists() else ""
        raise UserError(f"no annotation table (csv or xlsx) in {root} or {root / 'annotation'}{hint}")
    if len(candidates) > 1:
        raise UserError(f"several annotation tables, keep one: {', '.join(str(path) for path in candidates)}")
    return candidates[0]


class _Folders:
    """Frame files by number, whatever the case of ``spNO`` (the release itself is of two minds)."""

    def __init__(self, root: Path):
        self.subjects = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
        self.read: dict[Path, dict[int, Path]] = {}

    def frames(self, subject: str, filename: str) -> dict[int, Path] | None:
        """None when there is no such folder."""
        base = self.subjects.get(subject.lower())
        folder = base / filename / "color" if base and filename else None
        if folder is None or not folder.is_dir():
            return None
        if folder not in self.read:
            self.read[folder] = {
                int(path.stem): path
                for path in sorted(folder.iterdir())
                if path.suffix.lower() in ENDINGS and path.stem.isascii() and path.stem.isdigit()
            }
        return self.read[folder]


def _clip(
    row: dict[str, str], column: str, class_names: tuple[str, ...], folders: _Folders
) -> tuple[Clip | None, list[str]]:
    """The clip of one row, or None, and what was wrong with the row."""
    faults: list[str] = []
    subject, filename = row["subject"], row["filename"]
    emotion = SPELLINGS.get(row[column].lower(), row[column])
    label = {name.lower(): label for label, name in enumerate(class_names)}.get(emotion.lower())
    if label is None:
        return None, [f"{column} {row[column]!r} is none of the seven classes, left out"]
    onset, offset = frame_number(row["onset"]), frame_number(row["offset"])
    if onset is None or offset is None:
        return None, [f"onset {row['onset']!r} or offset {row['offset']!r} is no frame number, left out"]
    if offset < onset:
        return None, [f"offset {offset} before onset {onset}, left out"]
    if offset - onset > LONGEST:
        faults.append(f"{offset - onset} frames from onset to offset, cut at onset + {LONGEST}")
        offset = onset + LONGEST

    present = folders.frames(subject, filename)
    if present is None:
        return None, [*faults, f"folder {subject}/{filename}/color is missing, left out"]
    numbers = [number for number in range(onset, offset + 1) if number in present]
    if not numbers:
        return None, [*faults, f"none of the frames {onset} to {offset} is there, left out"]
    absent = offset - onset + 1 - len(numbers)
    if absent:
        faults.append(f"{absent} of the frames {onset} to {offset} missing, passed over")

    apex = _apex(row.get("apex"), onset, offset, numbers, faults)
    name = f"{filename}_{onset}"
    frames = tuple(present[number] for number in numbers)
    return Clip("casme3", subject, name, frames, apex, class_names[label], label), faults


def _apex(cell: str | None, onset: int, offset: int, numbers: list[int], faults: list[str]) -> int | None:
    """Index of the apex in ``numbers``, or None, with the reason added to the faults."""
    if cell is None:
        return None
    apex = frame_number(cell)
    if apex is None:
        faults.append(f"no apex ({cell!r}): the frame of largest motion is taken")
    elif not onset <= apex <= offset:
        faults.append(f"apex {apex} outside {onset} to {offset}: the frame of largest motion is taken")
    elif apex not in numbers:
        faults.append(f"apex frame {apex} missing: the frame of largest motion is taken")
    else:
        return numbers.index(apex)
    return None
