"""Where frames lie: folders of numbered images, found by the ends of their paths."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from .images import ENDINGS
from .names import name_key
from .natural_order import natural_key

ENOUGH = 50  # images without a folder among them: the rest of a video's thousands are not looked at


class FrameFolders:
    """The folders of images below ``root``, each listed when it is asked for.

    A folder is found by a pattern such as ``{subject}/*/{clip}``, whose fields stand for cells. What lies above
    does not matter, so that a copy may be put anywhere, unless the pattern begins with ``/``, the root.
    ``prefixes`` may stand before a subject's number; ``ignored`` are names of folders that hold something else.
    """

    def __init__(self, root: Path, prefixes: tuple[str, ...] = (), ignored: frozenset[str] = frozenset()):
        self.root = root
        self.prefixes = prefixes
        self.folders = sorted(_image_folders(root, ignored), key=lambda path: (len(path.parts), natural_key(str(path))))
        self._tails: dict[tuple[bool, ...], dict[tuple[str, ...], list[Path]]] = {}
        self._frames: dict[Path, dict[int, Path]] = {}

    def find(self, pattern: str, cells: Mapping[str, str]) -> list[Path]:
        """The folders that fit, the likeliest first: spelled as in the cells, cropped, higher up."""
        if any(not cells[name] for name in re.findall(r"{(\w+)}", pattern)):
            return []
        anchored = pattern.startswith("/")
        parts = (
            pattern.removeprefix("/").format_map(cells).replace("\\", "/").split("/")
        )  # a cell may be a path of its own
        told = [part for part in parts if part != "*"]
        shape = tuple(part != "*" for part in parts)
        found = self._by_tail(shape).get(tuple(map(self._key, told)), [])
        if anchored:
            found = [path for path in found if len(path.relative_to(self.root).parts) == len(parts)]
        spelled = [name.casefold() for name in told]
        return sorted(
            found,
            key=lambda path: ([n.casefold() for n in _named(path, shape)] != spelled, "crop" not in str(path).lower()),
        )

    def frames(self, folder: Path) -> dict[int, Path]:
        """The images of a folder by the last number in their names; of two with one number the first."""
        if folder not in self._frames:
            numbered: dict[int, Path] = {}
            for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
                digits = re.findall(r"\d+", path.stem)
                if digits and _is_image(path.name):
                    numbered.setdefault(int(digits[-1]), path)
            self._frames[folder] = dict(sorted(numbered.items()))
        return self._frames[folder]

    def _by_tail(self, shape: tuple[bool, ...]) -> dict[tuple[str, ...], list[Path]]:
        if shape not in self._tails:
            tails: dict[tuple[str, ...], list[Path]] = {}
            for folder in self.folders:
                if len(folder.relative_to(self.root).parts) >= len(shape):
                    tails.setdefault(tuple(map(self._key, _named(folder, shape))), []).append(folder)
            self._tails[shape] = tails
        return self._tails[shape]

    def _key(self, name: str) -> str:
        return name_key(name, self.prefixes)


def _named(path: Path, shape: tuple[bool, ...]) -> list[str]:
    return [name for name, counts in zip(path.parts[-len(shape) :], shape, strict=True) if counts]


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in ENDINGS


def _image_folders(folder: Path, ignored: frozenset[str]) -> list[Path]:
    """``folder``, if it holds images, and those below."""
    inner: list[Path] = []
    images = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_image(entry.name):
                images += 1
                if images == ENOUGH and not inner:
                    break
            elif entry.is_dir() and not entry.name.startswith(".") and entry.name.casefold() not in ignored:
                inner.append(folder / entry.name)
    return [folder] * bool(images) + [found for path in inner for found in _image_folders(path, ignored)]
