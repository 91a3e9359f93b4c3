"""A run's folder: begun once, gone on with on request, written over only on request."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..errors import UserError
from ..files import write_text

RUN_FILE = "config.json"
# Where a run was written, how it was begun and what may differ when it goes on without changing its result.
FREE = {"output", "resume", "overwrite", "workers"}


def open_run(command: object, *, output: Path, resume: bool, overwrite: bool, owned: Sequence[str]) -> None:
    """Make ``output`` the folder of this run; its ``config.json`` holds all arguments of ``command``.

    ``owned`` are the names in it that belong to a run. Raises `UserError` when there is a run already and
    neither ``resume`` nor ``overwrite`` was asked for, when the one to go on with was begun with other
    arguments, and when the folder holds something else.
    """
    if resume and overwrite:
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
        if resume:
            _check_same(before, arguments, output)
            return
        if not overwrite:
            raise UserError(f"{output} holds a run: --resume goes on with it, --overwrite begins it again")
        for name in owned:
            remove(output / name)
    elif output.is_dir() and any(output.iterdir()):
        raise UserError(f"{output} is not empty and holds no run; choose another folder")
    elif resume:
        print(f"hsta: no run in {output} yet, it is begun", file=sys.stderr)
    write_text(path, json.dumps(arguments, indent=2) + "\n")


def remove(path: Path) -> None:
    """A file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
