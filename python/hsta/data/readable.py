"""Whether the frames of a data set can be read, before a training meets one that cannot."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from .clips import Clip, DatasetIndex, Fault
from .images import read_image
from .prepared_frames import PreparedFrames


def leave_out_unreadable(index: DatasetIndex, root: Path) -> None:
    """Read every frame; name those that are broken, each once, and leave out clips that have no other.

    A prepared clip is whole or left out.
    """
    from tqdm import tqdm

    broken: dict[Path, bool] = {}
    kept: list[Clip] = []
    for clip in tqdm(index.clips, unit="clip", desc="check", disable=None, leave=False):
        if isinstance(clip.frames, PreparedFrames):
            if clip.frames.is_whole():
                kept.append(clip)
            else:
                message = f"{clip.subject} {clip.name}: missing or damaged, left out; {clip.frames.remedy}"
                index.faults.append(Fault(str(clip.frames.path.relative_to(root)), None, message))
                index.lost += 1
            continue
        for path in clip.frames:
            if path not in broken:
                broken[path] = not _can_be_read(path)
                if broken[path]:
                    where = path.relative_to(root) if path.is_relative_to(root) else path
                    message = "not an image, or a broken one: the frame beside it serves"
                    index.faults.append(Fault(str(where), None, message))
        if all(broken[path] for path in clip.frames):
            message = f"{clip.subject} {clip.name}: no frame can be read, left out"
            index.faults.append(Fault(str(clip.frames[0].parent), None, message))
            index.lost += 1
        else:
            kept.append(clip)
    index.clips = kept


def _can_be_read(path: Path) -> bool:
    try:
        read_image(path)
    except UserError:
        return False
    return True
