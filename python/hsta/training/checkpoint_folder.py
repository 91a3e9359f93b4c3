"""Where a checkpoint lies. Importing this loads no library."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError

CHECKPOINT = "checkpoint"
TASK_FILE = "task.json"


def checkpoint_folder(path: Path) -> Path:
    """The folder of the checkpoint in a run's folder, or that folder itself. Raises `UserError` when there is none."""
    directory = path / CHECKPOINT if (path / CHECKPOINT).is_dir() else path
    if not (directory / TASK_FILE).is_file():
        raise UserError(f"no checkpoint in {path}: {directory / TASK_FILE} is missing")
    return directory
