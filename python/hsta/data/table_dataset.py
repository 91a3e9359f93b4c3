"""A data set of a table and folders of frames, from a statement of its facts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from ..errors import UserError
from ..generated.mark import MARKER, NO_EVIDENCE
from .annotation import ENDINGS, OLD_ENDINGS, Row, read_table
from .classes import Classes
from .clips import Clip, DatasetIndex, Fault, Label
from .frame_folders import FrameFolders
from .images import ENDINGS as IMAGE_ENDINGS
from .names import name_key
from .natural_order import natural_key
from .spans import find_span
from .units import CHOICE, COLUMN, occurring, read_units, unit_name

FOLDS = "folds"  # the folder of the tables that say who is tested


@dataclass(frozen=True)
class Edition:
    """A published table: its file name as a pattern (lower case), and what it holds.

    ``counts`` has the number of clips by what stands in the column ``emotion`` and ``objective``.
    """

    table: str
    clips: int | None = None
    subjects: int | None = None
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class TableDataset:
    """What is known of a data set; a new one is a file that states one of these, and its line in the registry.

    ``frames`` are patterns of the folders of frames, tried in turn: ``{subject}``, ``{clip}``, ``{onset}`` stand
    for cells, ``*`` for any name. ``classes`` are the choices of ``--classes``, the default first. ``prefixes``
    may stand before a subject's number, ``ignored`` are folders of something else. With ``whole_videos`` a folder
    holds a video of several clips. ``longest`` cuts spans, in frames. ``several`` allows several tables of the
    first edition's name. ``emotion_of`` reads the emotion off a clip's name where the table has none, and
    ``objective_table`` names a second table with the objective classes. ``required`` are the columns without
    which a table is none of clips.
    """

    name: str
    title: str
    editions: tuple[Edition, ...]
    frames: tuple[str, ...]
    classes: Mapping[str, Classes]
    clip_name: str = "{clip}"
    prefixes: tuple[str, ...] = ()
    ignored: frozenset[str] = frozenset()
    whole_videos: bool = False
    longest: int | None = None
    several: bool = False
    emotion_of: Callable[[str], str] | None = None
    objective_table: str | None = None
    required: tuple[str, ...] = ("subject", "clip", "onset", "offset")

    def read(self, root: Path, classes: str | None = None) -> DatasetIndex:
        """The clips under ``root`` by one of the ``classes``, or by their action units where these are `CHOICE`.

        Raises `UserError`, naming the file or folder.
        """
        tables, edition = find_tables(self, root)
        read = [read_table(path, self.required) for path in tables]
        columns = frozenset.union(*(table.columns for table in read))
        rows = [row for table in read for row in table.rows]
        if self.emotion_of is not None and "emotion" not in columns:
            columns |= {"emotion"}
            for row in rows:
                row.cells["emotion"] = self.emotion_of(row.cells["clip"])
        generated = (root / MARKER).exists()
        notes = [NO_EVIDENCE] * generated + [note for table in read for note in table.notes]
        if "objective" not in columns and self._wants_objective(classes, columns):
            columns |= {"objective"}
            self._join_objective(root, rows, notes)
        names = ", ".join(path.name for path in tables)
        if classes == CHOICE:
            if COLUMN not in columns:
                raise UserError(f"{names} has no column of action units: {self.name} cannot be read by them")
            units = occurring(row.cells for row in rows)
            scheme = Classes(COLUMN, {unit_name(unit): (str(unit),) for unit in units})
        else:
            scheme = self.scheme(classes, columns, names, notes)
        if "apex" not in columns:
            notes.append(f"{tables[0].name} has no column Apex: the frame of largest motion is taken")
        index = DatasetIndex(self.name, [], scheme.names, notes, generated, action_units=classes == CHOICE)
        assembly = Assembly(self, index, self.folders(root))
        if index.action_units:
            assembly.add_by_units(rows)
        else:
            assembly.add(rows, scheme, self._known(scheme.column))
        if not index.clips:
            detail = "; ".join(map(str, index.faults[:3]))
            where = " and ".join(map(str, tables))
            raise UserError(f"no usable clip in {where} and the folders below {root}{f' ({detail})' if detail else ''}")
        if edition is not None and not generated:
            index.faults += [Fault(tables[0].name, None, said) for said in differences(index, edition, scheme)]
        return index

    def folders(self, root: Path) -> FrameFolders:
        return FrameFolders(root, self.prefixes, self.ignored)

    def key(self, row: Row) -> tuple[str, str]:
        """The same for two rows about the same clip of the same subject, however they are spelled."""
        return name_key(row.cells["subject"], self.prefixes), name_key(self.clip_name.format_map(row.cells))

    def scheme(self, classes: str | None, columns: frozenset[str], file: str, notes: list[str]) -> Classes:
        """The classes asked for, or the first ones whose column is there."""
        if classes is not None:
            if classes not in self.classes:
                raise UserError(f"{self.name} has no classes {classes!r}; known: {', '.join(self.classes)}")
            scheme = self.classes[classes]
            if scheme.column not in columns:
                raise UserError(f"{file} has no column {scheme.column}, which the classes {classes} are of")
            return scheme
        first = next(iter(self.classes.values()))
        for scheme in self.classes.values():
            if scheme.column in columns:
                if scheme.column != first.column:
                    notes.append(f"{file} has no column {first.column}: the labels are the objective classes I to VII")
                return scheme
        wanted = sorted({scheme.column for scheme in self.classes.values()})
        raise UserError(f"{file} has no column {' and no column '.join(wanted)}")

    def _known(self, column: str) -> list[Classes]:
        return [scheme for scheme in self.classes.values() if scheme.column == column]

    def _wants_objective(self, classes: str | None, columns: frozenset[str]) -> bool:
        return self.objective_table is not None and (classes == "objective" or "emotion" not in columns)

    def _join_objective(self, root: Path, rows: list[Row], notes: list[str]) -> None:
        """Fill in the objective classes from the table that has them alone."""
        assert self.objective_table is not None
        found = [path for path in table_files(root) if fnmatch(path.name.lower(), self.objective_table)]
        if len(found) != 1:
            raise UserError(
                f"the objective classes are in a table {self.objective_table}; found {len(found)} in {root}"
            )
        classes = {self.key(row): row.cells["objective"] for row in read_table(found[0], _OBJECTIVE).rows}
        for row in rows:
            row.cells["objective"] = classes.get(self.key(row), "")
        notes.append(f"objective classes from {found[0].name}")


_OBJECTIVE = ("subject", "clip", "objective")


class Assembly:
    """Makes clips of rows, into an index: each row is a clip, or a fault that says why not."""

    def __init__(self, dataset: TableDataset, index: DatasetIndex, folders: FrameFolders):
        self.dataset = dataset
        self.index = index
        self.folders = folders
        self.people: dict[str, str] = {}  # one spelling a person, the folder's where there is one
        self.seen: dict[tuple[str, str], Row] = {}
        self.copies: set[tuple[Path, Path]] = set()

    def add(self, rows: list[Row], scheme: Classes, known: list[Classes]) -> None:
        """``known`` are all classes of the column: what is in none of them is a mistake, not a choice."""
        outside: Counter[str] = Counter()
        for row in self._named(rows):
            written = row.cells[scheme.column]
            label = scheme.label(written)
            if label is None and any(other.label(written) is not None for other in known):
                outside[written] += 1
            elif label is None:
                names = ", ".join(name for other in known[:1] for name in other.names)
                self.lose(row, f"{scheme.column} {written!r} is none of {names}, left out")
            else:
                self.clip(row, scheme.names[label], label, row.cells)
        if outside:
            names = ", ".join(f"{count} of {written}" for written, count in sorted(outside.items()))
            self.index.notes.append(f"{sum(outside.values())} clips belong to none of the classes asked for: {names}")

    def add_by_units(self, rows: list[Row]) -> None:
        """Of a row in which nothing is coded nobody knows what its clip shows: it is lost, not a clip without units."""
        place = {name: label for label, name in enumerate(self.index.class_names)}
        for row in self._named(rows):
            try:
                units, certain = read_units(row.cells.get(COLUMN, ""))
            except ValueError as error:
                self.lose(row, f"{error}, left out")
                continue
            if not certain:
                self.fault(row, f"action units {row.cells[COLUMN]!r}: one or another, all are taken")
            labels = tuple(place[unit_name(unit)] for unit in units)
            self.clip(row, "+".join(map(str, units)), labels, row.cells)

    def _named(self, rows: list[Row]) -> Iterator[Row]:
        for row in rows:
            if row.cells["subject"] or row.cells["clip"]:
                yield row
            else:  # a sum below the table, a remark
                self.fault(row, "names neither a subject nor a clip, passed over")

    def clip(self, row: Row, emotion: str, label: Label, cells: Mapping[str, str]) -> None:
        """One clip more; ``cells`` has the numbers of its frames, which may be of another table than the row."""
        dataset = self.dataset
        key = dataset.key(row)
        if first := self.seen.get(key):
            spelled = f"{first.cells['subject']} {first.cells['clip']}"
            self.fault(row, f"given twice, also in row {first.number} as {spelled}: the first is kept")
            return
        self.seen[key] = row
        for pattern in dataset.frames:
            if found := self.folders.find(pattern, row.cells):
                break
        else:
            missing = dataset.frames[0].removeprefix("/").format_map(row.cells)
            self.lose(row, f"folder {missing} is missing or holds no image, left out")
            return
        folder = found[0]
        for other in found[1:]:
            self._copy(row, folder, other)
        frames = self.folders.frames(folder)
        if not frames:
            self.lose(row, f"no image in {folder.relative_to(self.folders.root)} has a number in its name, left out")
            return
        # A pattern that has the onset names a folder of that clip alone.
        span = find_span(
            cells, frames, longest=dataset.longest, whole=dataset.whole_videos and "{onset}" not in pattern
        )
        for fault in span.faults:
            self.fault(row, fault)
        if not span.numbers:
            self.index.lost += 1
            return
        name = dataset.clip_name.format_map({**row.cells, "clip": self._part(pattern, folder, "{clip}", row)})
        subject = self.people.setdefault(key[0], self._part(pattern, folder, "{subject}", row))
        paths = tuple(frames[number] for number in span.numbers)
        self.index.clips.append(Clip(dataset.name, subject, name, paths, span.apex, emotion, label))

    def lose(self, row: Row, message: str) -> None:
        self.fault(row, message)
        self.index.lost += 1

    def fault(self, row: Row, message: str) -> None:
        cells = row.cells
        clip = " ".join(filter(None, (cells["subject"], cells["clip"], cells.get("onset", ""))))
        self.index.faults.append(Fault(row.file, row.number, f"{clip}: {message}" if clip else message))

    def _copy(self, row: Row, folder: Path, other: Path) -> None:
        """Frames that lie in two places: once for each pair of places, not for each clip."""
        kept, left = folder.parts, other.parts
        while kept and left and kept[-1] == left[-1]:
            kept, left = kept[:-1], left[:-1]
        places = Path(*kept), Path(*left)
        if places not in self.copies:
            self.copies.add(places)
            self.fault(row, f"frames lie in {folder} and in {other}: the former serve, here and for others alike")

    def _part(self, pattern: str, folder: Path, part: str, row: Row) -> str:
        """A name as the folder spells it; as the row does where no folder is named so."""
        parts = pattern.removeprefix("/").split("/")
        if part in parts and "/" not in row.cells[part.strip("{}")]:
            return folder.parts[parts.index(part) - len(parts)]
        return row.cells[part.strip("{}")]


def find_tables(dataset: TableDataset, root: Path) -> tuple[list[Path], Edition | None]:
    """The annotation below ``root``: of the first edition whose name is there, else the only table of clips."""
    tables = table_files(root)
    for edition in dataset.editions:
        named = [path for path in tables if fnmatch(path.name.lower(), edition.table)]
        if len(named) > 1 and not dataset.several:
            raise UserError(f"several annotation tables, keep one: {', '.join(map(str, named))}")
        if named:
            return named, edition
    candidates = [path for path in tables if _is_of_clips(path, dataset.required)] if len(tables) > 1 else tables
    if len(candidates) > 1:
        raise UserError(f"several annotation tables, keep one: {', '.join(map(str, candidates))}")
    if candidates:
        return candidates, None
    hint = " (its generation was interrupted: run it again)" if (root / MARKER).exists() else ""
    if old := table_files(root, OLD_ENDINGS):
        hint = f"; {old[0]} is in a format that is not read here: save it as xlsx or csv"
    raise UserError(f"no annotation table (csv or xlsx) in {root} or the folders in it{hint}")


def table_files(root: Path, endings: set[str] = ENDINGS) -> list[Path]:
    """Tables in ``root`` and two levels of folders below it, without looking through folders of frames."""
    found: list[Path] = []
    level = [root]
    for _ in range(3):
        inner: list[Path] = []
        for folder in level:
            with os.scandir(folder) as entries:
                for entry in entries:
                    ending = os.path.splitext(entry.name)[1].lower()
                    if entry.name.startswith((".", "~$")):
                        continue
                    if ending in IMAGE_ENDINGS and folder != root:
                        break
                    if ending in endings and entry.is_file():
                        found.append(folder / entry.name)
                    elif entry.is_dir() and entry.name != FOLDS:
                        inner.append(folder / entry.name)
        level = inner
    return sorted(found, key=lambda path: (len(path.parts), natural_key(str(path))))


def differences(index: DatasetIndex, edition: Edition, scheme: Classes) -> list[str]:
    """Where a copy differs from what was published, a sentence each."""
    counts = edition.counts.get(scheme.column, {})
    expected: dict[str, int] = {}
    for written, count in counts.items():
        label = scheme.label(written)
        if label is not None:
            expected[scheme.names[label]] = expected.get(scheme.names[label], 0) + count
    there = Counter(clip.emotion for clip in index.clips)
    total = sum(expected.values()) if expected else edition.clips
    said = []
    if total is not None and len(index.clips) != total:
        said.append(f"{len(index.clips)} clips, published are {total}")
    subjects = len({clip.person for clip in index.clips})
    complete = total is not None and total == edition.clips
    if complete and edition.subjects is not None and subjects != edition.subjects:
        said.append(f"{subjects} subjects, published are {edition.subjects}")
    said += [f"{there[name]} clips of {name}, published are {n}" for name, n in expected.items() if there[name] != n]
    return said


def _is_of_clips(path: Path, required: tuple[str, ...]) -> bool:
    try:
        return bool(read_table(path, required).rows)
    except UserError:
        return False
