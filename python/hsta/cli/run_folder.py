"""A run's folder: begun once, gone on with on request, written over only on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import Field, asdict
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from ..errors import UserError
from ..files import remove, temporary_name, write_text

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from ..data.clips import DatasetIndex
    from .options import ModelOptions

RUN_FILE = "config.json"
CONTENTS = "contents"
# Where a run was written, how it was begun and what may differ when it goes on without changing its result. The data
# may have moved: what they are is told by `fingerprints`.
FREE = {"output", "resume", "overwrite", "workers", "data", "also", "start_from"}


class Command(Protocol):
    """A data class of a command that has a run."""

    __dataclass_fields__: ClassVar[dict[str, Field]]
    output: Path
    resume: bool
    overwrite: bool
    model: ModelOptions


def begin(command: Command, index: DatasetIndex, fabric: Fabric, owned: Sequence[str]) -> None:
    """Tell what was wrong in the data and make the command's ``output`` the folder of its run.

    ``owned`` are the names in it that belong to a run. Raises `UserError` when there is a run already and
    neither ``resume`` nor ``overwrite`` was asked for, when the one to go on with was begun with other
    arguments or other clips, and when the folder holds something else.
    """
    if fabric.is_global_zero:  # of the processes that share the work, one
        _tell(index.told)
        _open(command, index, owned)
    fabric.barrier()


def _tell(notes: Sequence[str], most: int = 10) -> None:
    """Print what was wrong in a data set's files, not more of it than a screen takes."""
    for note in notes[:most]:
        print(f"note: {note}", file=sys.stderr)
    if len(notes) > most:
        print(f"note: and {len(notes) - most} more", file=sys.stderr)


def _open(command: Command, index: DatasetIndex, owned: Sequence[str]) -> None:
    """The folder's ``config.json`` holds all arguments of ``command`` and what its clips are."""
    from ..data.fingerprint import change

    output = command.output
    if command.resume and command.overwrite:
        raise UserError("resume and overwrite exclude each other")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; the run needs a folder")
    arguments = {"command": type(command).__name__.lower(), **json.loads(json.dumps(asdict(command), default=str))}
    path = output / RUN_FILE
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from error
        if not isinstance(before, dict) or "command" not in before:
            raise UserError(f"{path} is not of a run; choose another folder")
        if command.resume:
            clips = before.pop(CONTENTS, {})
            _check_same(before, arguments, output)
            if said := change(clips, _contents(command, index)):
                raise UserError(
                    f"the data are not those that the run in {output} was begun with: {said}. "
                    "Put them back, or choose another folder"
                )
            return
        if not command.overwrite:
            raise UserError(f"{output} holds a run: --resume goes on with it, --overwrite begins it again")
        for name in owned:
            remove(output / name)
    elif output.is_dir() and any(inside != temporary_name(path) for inside in output.iterdir()):
        raise UserError(f"{output} is not empty and holds no run; choose another folder")
    elif command.resume:
        print(f"hsta: no run in {output} yet, it is begun", file=sys.stderr)
    write_text(path, json.dumps({**arguments, CONTENTS: _contents(command, index)}, indent=2) + "\n")


def _contents(command: Command, index: DatasetIndex) -> dict[str, str]:
    """Digests of what the run learns from: its clips, and the weights that it begins with."""
    from ..data.fingerprint import file_digest, fingerprints

    start = command.model.start_from
    if start is None:
        return fingerprints(index.clips)
    files = [start] if start.is_file() else sorted(start.rglob("model.safetensors"))
    return fingerprints(index.clips) | {f"weights {file.name}": file_digest(file) for file in files}


def _check_same(before: dict, now: dict, output: Path) -> None:
    before, now = _flat(before), _flat(now)
    for name in sorted(before.keys() | now.keys()):
        if name not in FREE and before.get(name) != now.get(name):
            raise UserError(
                f"the run in {output} has {name} {before.get(name)}, not {now.get(name)}: "
                "go on with the arguments it was begun with, or choose another folder"
            )


def _flat(values: dict) -> dict:
    flat = {}
    for name, value in values.items():
        flat.update(_flat(value) if isinstance(value, dict) else {name: value})
    return flat
