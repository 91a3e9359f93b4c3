"""A run's folder: begun once, gone on with on request, written over only on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import Field, asdict, is_dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, get_args, get_type_hints

from ..errors import UserError
from ..files import remove, temporary_name, write_text

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from ..data.clips import DatasetIndex
    from ..data.folds import Fold
    from ..training.recipe import Recipe
    from .options import DataOptions, ModelOptions

RUN_FILE = "config.json"
CONTENTS = "contents"
VERSIONS = "versions"
DATA = "digest of the data"
LOCK = ".lock"
# Where a run was written, how it was begun and what may differ when it goes on without changing its result. The data
# may have moved: what they are is told by `fingerprints`.
FREE = {"output", "resume", "overwrite", "workers", "data", "also", "start_from", "tuned", "fold"}
FREE |= {"launcher", "address", "cpus_per_task", "gpus_per_task"}

T = TypeVar("T")


class Command(Protocol):
    """A data class of a command that has a run."""

    __dataclass_fields__: ClassVar[dict[str, Field]]

    @property
    def output(self) -> Path: ...
    @property
    def resume(self) -> bool: ...
    @property
    def overwrite(self) -> bool: ...
    @property
    def model(self) -> ModelOptions: ...


def begin(
    command: Command,
    index: DatasetIndex,
    fabric: Fabric,
    owned: Sequence[str],
    folds: Sequence[Fold] = (),
    recipes: Mapping[str, Recipe] | None = None,
) -> dict[str, object]:
    """Tell what was wrong in the data and make the command's ``output`` the folder of its run; returns its `identity`.

    ``owned`` are the names in it that belong to a run, ``folds`` those of its clips, ``recipes`` those
    that `hsta tune` found for it, by fold. Raises `UserError` when there is a
    run already and neither ``resume`` nor ``overwrite`` was asked for, when the one to go on with was begun with other
    arguments, other clips or another version, and when the folder holds something else.
    """
    from ..training.processes import told_once

    refused = None
    if fabric.is_global_zero:  # of the processes that share the work, one
        try:
            _tell(index.told)
            _open(command, index, owned, folds, recipes or {})
        except UserError as error:
            refused = str(error)
    with told_once(fabric):
        if (refused := fabric.broadcast(refused)) is not None:
            raise UserError(refused)
    return identity(command.output)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is here, and keep the others waiting. The lock dies with the process."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK
    with FileLock(lock):
        try:
            yield
        finally:
            with suppress(PermissionError):  # Windows keeps a file that is open
                lock.unlink()


def identity(folder: Path) -> dict[str, object]:
    """All that the results of the run in ``folder`` depend on, by name: arguments, versions, and a digest of the data.

    Raises `UserError` when there is no run.
    """
    values = _read(folder / RUN_FILE)
    contents = json.dumps(values.pop(CONTENTS, None))
    settings = {name: value for name, value in _flat(values).items() if name not in FREE}
    return settings | {DATA: blake2b(contents.encode(), digest_size=16).hexdigest()}


def restored(kind: type[T], folder: Path) -> T:
    """The command that the run in ``folder`` was begun with, a data class ``kind``, to go on there.

    Raises `UserError` when there is no run, or that of another command or version.
    """
    path = folder / RUN_FILE
    arguments = _read(path)
    if arguments.pop("command") != kind.__name__.lower():
        raise UserError(f"{path} is not of hsta {kind.__name__.lower()}")

    from ..results.versions import versions

    _check_same({VERSIONS: arguments.pop(VERSIONS, {})}, {VERSIONS: versions()}, folder)
    del arguments[CONTENTS]
    try:
        return _made(kind, arguments | {"output": str(folder), "resume": True, "overwrite": False})
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold the arguments of this version: {error}") from error


def data_of(arguments: Mapping[str, Any] | None, folder: Path) -> DataOptions:
    """What the run in ``folder`` read, by the ``arguments`` in its ``config.json``.

    Raises `UserError` where there are none, or those of another version.
    """
    from .options import DataOptions

    if arguments is None:
        raise UserError(f"nothing tells where the data lie: no {RUN_FILE} in {folder}")
    try:
        return _made(DataOptions, arguments["data"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{RUN_FILE} in {folder} does not hold the arguments of this version: {error}") from error


def _made(hint: Any, value: Any) -> Any:
    """What ``asdict`` and JSON made of a value that is declared as ``hint``, made back."""
    if isinstance(hint, type) and is_dataclass(hint):
        hints = get_type_hints(hint)
        return hint(**{name: _made(hints[name], inner) for name, inner in value.items()})
    if isinstance(value, str) and Path in (hint, *get_args(hint)):
        return Path(value)
    return tuple(_made(None, inner) for inner in value) if isinstance(value, list) else value


def _tell(notes: Sequence[str], most: int = 10) -> None:
    """Print what was wrong in a data set's files, not more of it than a screen takes."""
    for note in notes[:most]:
        print(f"note: {note}", file=sys.stderr)
    if len(notes) > most:
        print(f"note: and {len(notes) - most} more", file=sys.stderr)


def _open(
    command: Command,
    index: DatasetIndex,
    owned: Sequence[str],
    folds: Sequence[Fold],
    recipes: Mapping[str, Recipe],
) -> None:
    """The folder's ``config.json`` holds all arguments of ``command``, the versions and what its clips are.

    Of several processes that begin the same run at the same time, one writes it and the others find it.
    """
    from ..data.fingerprint import change
    from ..results.versions import versions

    output = command.output
    arguments = {
        "command": type(command).__name__.lower(),
        **json.loads(json.dumps(asdict(command), default=str)),
        VERSIONS: versions(),
    }
    _found(command)  # complains before all data are read, and before anything is written
    contents = _contents(command, index, folds)
    # Where they lie may change, as with data and weights; what they are may not.
    contents |= {f"recipe for {name}": json.dumps(asdict(recipe)) for name, recipe in recipes.items()}
    with alone_in(output):
        before = _found(command)
        if before is None or command.overwrite:
            if command.resume:
                print(f"hsta: no run in {output} yet, it is begun", file=sys.stderr)
            for name in owned if before else ():
                remove(output / name)
            write_text(output / RUN_FILE, json.dumps({**arguments, CONTENTS: contents}, indent=2) + "\n")
    if before is not None and command.resume:
        clips = before.pop(CONTENTS, {})
        _check_same(before, arguments, output)
        if said := change(clips, contents):
            raise UserError(
                f"the data are not those that the run in {output} was begun with: {said}. "
                "Put them back, or choose another folder"
            )


def _found(command: Command) -> dict | None:
    """What ``config.json`` says of the run to go on with or to write over; None where there is no run yet.

    Raises `UserError` where ``command`` must not touch the folder.
    """
    output, path = command.output, command.output / RUN_FILE
    if command.resume and command.overwrite:
        raise UserError("resume and overwrite exclude each other")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; the run needs a folder")
    # Listed first: another process may be beginning the run.
    others = output.is_dir() and {inside.name for inside in output.iterdir()} - {temporary_name(path).name, LOCK}
    if path.is_file():
        before = _read(path)
        if not command.resume and not command.overwrite:
            raise UserError(f"{output} holds a run: --resume goes on with it, --overwrite begins it again")
        return before
    if others:
        raise UserError(f"{output} is not empty and holds no run; choose another folder")
    return None


def _read(path: Path) -> dict:
    """A run's ``config.json``."""
    if not path.is_file():
        raise UserError(f"no run in {path.parent}: {path} is missing")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict) or "command" not in values:
        raise UserError(f"{path} is not of a run; choose another folder")
    return values


def _contents(command: Command, index: DatasetIndex, folds: Sequence[Fold]) -> dict[str, str]:
    """Digests of what the run learns from: its clips, how they are dealt out, and the weights that it begins with."""
    from ..data.fingerprint import file_digest, fingerprints, folds_digest

    digests = fingerprints(index.clips)
    if folds:
        digests["folds"] = folds_digest(folds)
    start = command.model.start_from
    if start is None:
        return digests
    files = [start] if start.is_file() else sorted(start.rglob("model.safetensors"))
    return digests | {f"weights {file.name}": file_digest(file) for file in files}


def _check_same(before: dict, now: dict, output: Path) -> None:
    before, now = _flat(before), _flat(now)
    for name in sorted(before.keys() | now.keys()):
        if name not in FREE and before.get(name) != now.get(name):
            raise UserError(
                f"the run in {output} has {name} {before.get(name)}, not {now.get(name)}: "
                "go on as it was begun, or choose another folder"
            )


def _flat(values: dict) -> dict:
    flat = {}
    for name, value in values.items():
        flat.update(_flat(value) if isinstance(value, dict) else {name: value})
    return flat
