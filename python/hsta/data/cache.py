"""What `hsta prepare` leaves: a folder that is read like the data set that it was made of.

`FILE` says what the folder is: of which data set, how it was prepared, from which files, and, once it is complete, what
its clips are by each choice of classes. Beside it lie the frames, a file a clip or in shards (`shards`), and a copy of
the data set's folds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from ..errors import UserError
from ..files import write_text
from .clips import Clip, DatasetIndex, Fault, Preparation
from .prepared_frames import PreparedFrames
from .table_dataset import FOLDS, table_files
from .units import CHOICE

FILE = "prepared.json"
CLIPS = "clips"  # the folder of the frames
FORMAT = 1  # of the folder, and of the bits that the same settings give
DEFAULT = "default"  # the index without a choice of classes
CLASSES = (DEFAULT, "3", "5", "7", "8", "objective", CHOICE)


class Source(Protocol):
    """A data set that can be read (`hsta.data.registry.Dataset`)."""

    @property
    def name(self) -> str: ...

    def read(self, root: Path, classes: str | None = None) -> DatasetIndex: ...


@dataclass(frozen=True)
class Plan:
    """What is prepared, and how: ``settings`` with all that the frames depend on but the sources.

    ``tables`` has a stamp for each annotation table by its name, ``clips`` one for each clip by its `key`: of names,
    sizes and times. A clip's number is its place among them. Frames lie in as many ``shards``, with 0 in a file a clip.
    """

    dataset: str
    settings: dict[str, str | int]
    tables: dict[str, str]
    clips: dict[str, str]
    format: int = FORMAT
    shards: int = 0

    def difference(self, other: Plan) -> str | None:
        """The first thing in which another plan differs from this one, in words."""
        if other.dataset != self.dataset:
            return f"the data set {other.dataset}, not {self.dataset}"
        for name, value in self.settings.items():
            if other.settings.get(name) != value:
                return f"{name} {other.settings.get(name)}, not {value}"
        if other.format != self.format:
            return f"format {other.format}, not {self.format}"
        if other.shards != self.shards:
            return f"{other.shards} shards, not {self.shards}"
        if changed := differing(other.tables, self.tables) + differing(other.clips, self.clips):
            return f"data that have changed since: {_few(changed)}"
        return None


def write_plan(root: Path, source: Path, plan: Plan, results: dict | None = None) -> None:
    """Say of the folder what it is; without ``results`` it is not complete."""
    said = {"what": "prepared by hsta", "source": str(source), "plan": asdict(plan), "results": results}
    write_text(root / FILE, json.dumps(said, indent=1, ensure_ascii=False) + "\n")


def read_plan(root: Path) -> tuple[Path, Plan, dict | None] | None:
    """The folder's source, plan and results, or None where nothing was prepared. Raises `UserError` if unreadable."""
    path = root / FILE
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        written = said["plan"]["format"]
        if written != FORMAT:
            raise UserError(
                f"{path} is of format {written}, this version reads {FORMAT}: hsta prepare --overwrite does it anew"
            )
        return Path(said["source"]), Plan(**said["plan"]), said["results"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: prepare it anew with hsta prepare --overwrite") from error


def read_cache(dataset: Source, root: Path, classes: str | None) -> DatasetIndex | None:
    """The clips in a prepared folder; None where ``root`` is none.

    Raises `UserError` when it is not complete, of another data set, has no such classes, or when the data set has
    changed since. Where that is not there any more, a note says so.
    """
    found = read_plan(root)
    if found is None:
        return None
    source, plan, results = found
    if plan.dataset != dataset.name:
        raise UserError(f"{root} is prepared of {plan.dataset}, not of {dataset.name}: give --dataset {plan.dataset}")
    if results is None:
        command = "hsta shard" if plan.shards else "hsta prepare"
        raise UserError(f"{root} is not complete: the same {command} again goes on with it")
    said = results["indices"].get(classes or DEFAULT)
    if classes not in (None, *CLASSES):
        raise UserError(f"{dataset.name} has no classes {classes!r}")
    if said is None:  # by an older version
        raise UserError(f"{root} was prepared without the classes {classes}: hsta prepare --overwrite does it anew")
    if "error" in said:
        raise UserError(said["error"])
    index = _index(said, root, plan, results["files"])
    if not source.is_dir():
        index.notes.append(f"{source}, of which {root} was prepared, is not there: it may have changed since")
    elif changes := _changes(dataset, source, classes, plan, said):
        raise UserError(
            f"{source} has changed since {root} was prepared: {_few(changes)}; hsta prepare --overwrite does it anew"
        )
    return index


def key(clip: Clip) -> str:
    """What tells a clip from all others of its data set."""
    return f"{clip.dataset} {clip.subject} {clip.name}"


def stamp(paths: Iterable[Path], root: Path) -> str:
    """A checksum of the names (from ``root``), sizes and times of files."""
    lines = []
    for path in paths:
        known = path.stat()
        lines.append(f"{os.path.relpath(path, root)} {known.st_size} {known.st_mtime_ns}\n")
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def stamp_tables(root: Path) -> dict[str, str]:
    """Of each table of the data set, and of its folds, by its name."""
    tables = [*table_files(root), *(path for path in sorted((root / FOLDS).glob("*")) if path.is_file())]
    return {path.relative_to(root).as_posix(): stamp([path], root) for path in tables}


def differing(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """The names under which the one has something else than the other."""
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def described(index: DatasetIndex) -> dict:
    """An index as JSON takes it, without its frames."""
    names = ("dataset", "subject", "name", "apex", "emotion", "label")
    return {
        "name": index.name,
        "clips": [{name: getattr(clip, name) for name in names} for clip in index.clips],
        "class_names": list(index.class_names),
        "notes": index.notes,
        "generated": index.generated,
        "faults": [asdict(fault) for fault in index.faults],
        "lost": index.lost,
        "action_units": index.action_units,
    }


def _index(said: dict, root: Path, plan: Plan, files: list[dict]) -> DatasetIndex:
    """What `described` described, less the clips that could not be prepared."""
    numbers = {name: number for number, name in enumerate(plan.clips)}
    index = DatasetIndex(**{**said, "clips": [], "class_names": tuple(said["class_names"])})
    index.faults = [Fault(**fault) for fault in said["faults"]]
    index.prepared = Preparation(str(plan.settings["detector"]), int(plan.settings["size"]))
    for fields in said["clips"]:
        clip = clip_of(fields)
        number = numbers[key(clip)]
        file = files[number]
        if "left_out" in file:
            message = f"{clip.subject} {clip.name}: {file['left_out']}, left out"
            index.faults.append(Fault(file["folder"], None, message))
            index.lost += 1
        else:
            path = shard_file(root, file["shard"]) if plan.shards else frames_file(root, number)
            named = f"{clip.subject} {clip.name}"
            frames = PreparedFrames(path, file["length"], file["checksum"], named, file.get("offset", 0))
            index.clips.append(replace(clip, frames=frames))
    return index


def clip_of(fields: dict) -> Clip:
    """A clip that `described` described, without its frames; JSON knows no tuples."""
    label = fields["label"]
    return Clip(**{**fields, "label": tuple(label) if isinstance(label, list) else label}, frames=())


def frames_file(root: Path, number: int) -> Path:
    return root / CLIPS / f"{number:05}.npy"


def shard_file(root: Path, number: int) -> Path:
    return root / CLIPS / f"{number:05}.tar"


def _changes(dataset: Source, source: Path, classes: str | None, plan: Plan, said: dict) -> list[str]:
    """What is no longer as it was when it was prepared, a few words each."""
    changes = differing(plan.tables, stamp_tables(source))
    try:
        index = dataset.read(source, classes)
    except UserError as error:
        return [*changes, str(error)]
    clips = [clip_of(fields) for fields in said["clips"]]
    before = {key(clip): plan.clips[key(clip)] for clip in clips}
    changes += differing(before, {key(clip): stamp(clip.files, source) for clip in index.clips})
    if not changes and [replace(clip, frames=()) for clip in index.clips] != clips:
        changes.append("its clips are read otherwise by this version")
    return changes


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
