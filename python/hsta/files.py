"""Files that are either whole or not there."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; renamed to it when all went well, else removed.

    The name is the same each time, so that what a killed process left behind is written over by the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Where ``path`` is written until it is whole."""
    return path.with_name(f".{path.stem}.tmp{path.suffix}")


def write_text(path: Path, text: str) -> None:
    """Write ``text``, UTF-8, in one step: a reader sees the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_rows(path: Path) -> list[list[str]]:
    """The cells of a csv table that `write_text` wrote. Raises `UserError` for what is not UTF-8, or no table."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def remove(path: Path) -> None:
    """A file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
