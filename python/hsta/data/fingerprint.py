"""Whether clips are still what they were, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

from .clips import Clip
from .folds import Fold
from .prepared_frames import PreparedFrames


def fingerprints(clips: Iterable[Clip]) -> dict[str, str]:
    """A digest of each clip, by data set, subject and name, in the clips' order: its class, apex and frames.

    All bytes of the frames are read, since sizes and times tell neither a copy from a change nor a change from a copy.
    Raises `UserError` where a prepared clip is damaged.
    """
    clips = list(clips)
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(map(_name, clips), pool.map(_digest, clips), strict=True))


def folds_digest(folds: Iterable[Fold]) -> str:
    """Who is tested and who is learned from: tables that somebody else drew may change beside clips that do not."""
    drawn = [(fold.name, fold.train, fold.test) for fold in folds]
    return blake2b(repr(drawn).encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()


def change(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What is no longer the same, in words; empty when nothing is."""
    said = []
    for names, what in (
        ([name for name in before if name in now and before[name] != now[name]], "changed"),
        ([name for name in before if name not in now], "gone"),
        ([name for name in now if name not in before], "new"),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            said.append(f"{what}: {', '.join(names[:3])}{more}")
    if not said and list(before) != list(now):
        said.append("the clips are in another order")
    return "; ".join(said)


def _name(clip: Clip) -> str:
    return f"{clip.dataset} {clip.subject} {clip.name}"


def _digest(clip: Clip) -> str:
    digest = blake2b(repr((clip.emotion, clip.label, clip.apex)).encode(), digest_size=16)
    if isinstance(clip.frames, PreparedFrames):
        clip.frames.check()
        digest.update(clip.frames.checksum.encode())
        return digest.hexdigest()
    for path in clip.frames:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()
