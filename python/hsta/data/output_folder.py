"""The folder that `hsta prepare` and `hsta shard` write: of nobody else, one process at a time, of one plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree

from filelock import FileLock, Timeout

from ..errors import UserError
from ..files import remove, write_text
from .cache import CLIPS, FILE, Plan, read_plan, write_plan
from .table_dataset import FOLDS

LOCK = ".lock"


def check_output(output: Path) -> None:
    """Raises `UserError` where nothing must be written: the folder is somebody else's."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; what is prepared needs a folder")
    if output.is_dir() and not (output / FILE).is_file() and any(path.name != LOCK for path in output.iterdir()):
        raise UserError(f"{output} is not empty and holds nothing prepared; choose another folder")


@contextmanager
def alone_in(output: Path, command: str) -> Iterator[None]:
    """While this lasts no other process writes into the folder. The lock dies with the process, its file stays."""
    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / LOCK, timeout=0):
            yield
    except Timeout:
        raise UserError(f"another {command} is at work in {output}: let it end, or choose another folder") from None


def open_output(output: Path, source: Path, plan: Plan, overwrite: bool) -> None:
    """Make ``output`` the folder of this plan."""
    found = None if overwrite else read_plan(output)
    if found is not None:
        if difference := plan.difference(found[1]):
            raise UserError(f"{output} was prepared with {difference}: --overwrite begins it again")
        return
    if overwrite and (output / FILE).is_file():
        write_text(output / FILE, "{}\n")  # until the old frames are gone, it is of no plan
        for name in (CLIPS, FOLDS):
            remove(output / name)
    write_plan(output, source.resolve(), plan)


def copy_folds(source: Path, output: Path) -> None:
    """The tables that say who is tested, where the data set has some."""
    if (source / FOLDS).is_dir():
        copytree(source / FOLDS, output / FOLDS, dirs_exist_ok=True)
