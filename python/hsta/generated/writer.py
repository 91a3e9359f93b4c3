"""Writes generated clips as the tree of a data set of the field, file names and header as in the real one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ..errors import UserError
from ..files import replacing, write_text
from .clips import GeneratedClip, generate_clip, subject_portrait
from .emotions import OBJECTIVE_CLASSES
from .faults import plant
from .layouts import COMPOSITE, COMPOSITE_LABELS, COMPOSITE_ROWS, FORMATS, SHORT, Layout, check_request, emotions_of
from .mark import MARKER, NO_EVIDENCE

VIDEOS = "abcdefghijklm"  # the thirteen videos of a subject
JPEG_QUALITY = 95


def generate_dataset(
    output: str | Path,
    subjects: int = 10,
    clips_per_subject: int = 8,
    seed: int = 0,
    *,
    format: str = "casme3",
    image_size: int = 224,
    amplitude: float = 1.0,
    emotions: Sequence[str] | None = None,
    faults: bool = False,
    progress: bool = True,
) -> Path:
    """Write ``subjects`` × ``clips_per_subject`` clips under ``output`` as the data set ``format``, one of
    `FORMATS`; returns the path of the annotation file.

    Subject 1 is the photograph, the others are drawn from ``seed``. A subject's emotions, some of
    `emotions_of` (``format``), go round the list, so that classes are balanced. The same arguments give the
    same bytes (but for the time in a workbook), and a subject or clip is the same whatever the number of
    others. ``amplitude`` 0 is the control: same clips, no movement of the face. ``faults`` plants those of real
    tables. The annotation is written last: a tree without it is an interrupted one, and the same call again
    completes it. Raises `ValueError` naming the argument, and `UserError` when ``output`` holds files that are
    not of a generated set.
    """
    check_request(subjects, clips_per_subject, seed, image_size, amplitude, format, emotions)
    emotions = emotions or emotions_of(format)

    root = Path(output)
    _claim(root)
    write_text(
        root / MARKER,
        json.dumps(
            {
                "what": NO_EVIDENCE,
                "format": format,
                "subjects": subjects,
                "clips_per_subject": clips_per_subject,
                "seed": seed,
                "image_size": image_size,
                "amplitude": amplitude,
                "emotions": list(emotions),
                "faults": faults,
            },
            indent=2,
        ),
    )
    parts = list(FORMATS[format].items())
    filmed: dict[str, list[dict[str, object]]] = {part: [] for part, _ in parts}
    with tqdm(total=subjects * clips_per_subject, unit="clip", desc="generate", disable=not progress) as bar:
        for subject in range(1, subjects + 1):
            portrait = subject_portrait(seed, subject)
            order = np.random.default_rng([seed, subject, 0]).permutation(len(emotions))
            part, layout = parts[(subject - 1) % len(parts)]
            for number in range(clips_per_subject):
                emotion = emotions[order[number % len(emotions)]]
                rng = np.random.default_rng([seed, subject, 1 + number])
                clip = generate_clip(portrait, emotion, rng, image_size=image_size, fps=layout.fps, amplitude=amplitude)
                fields = _fields(clip, layout, 1 + (subject - 1) // len(parts), number, rng)
                _write_frames(root / part, layout, clip, fields)
                filmed[part].append(fields)
                bar.update()
    written = [root / part / layout.table for part, layout in parts]
    for part, layout in parts:
        if filmed[part]:
            _write_tables(root / part, layout, filmed[part], faults)
    if format != "megc2019":
        return written[0]
    lines = [[_cell(p, fields) for p in COMPOSITE_ROWS[part]] for part, clips in filmed.items() for fields in clips]
    write_text(root / COMPOSITE, _csv(lines))
    return root / COMPOSITE


def _fields(
    clip: GeneratedClip, layout: Layout, subject: int, number: int, rng: np.random.Generator
) -> dict[str, object]:
    """What a layout's patterns stand for, of one clip."""
    # Thirteen videos a subject; further clips lie further on in the same videos.
    first = 1000 * (number // len(VIDEOS)) + int(rng.integers(1, 900))
    written = layout.emotions[clip.emotion]
    return {
        "subject": subject,
        "take": number + 1,
        "video": VIDEOS[number % len(VIDEOS)],
        "first": first,
        "onset": first + clip.onset,
        "apex": first + clip.apex,
        "offset": first + clip.offset,
        "duration": clip.offset - clip.onset + 1,
        "units": clip.action_units,
        "objective": OBJECTIVE_CLASSES[clip.emotion],
        "emotion": written,
        "short": SHORT.get(written, ""),
        "label": COMPOSITE_LABELS.get(clip.emotion, ""),
    }


def _cell(pattern: str, fields: dict[str, object]) -> object:
    """A pattern filled in; of one field alone the number itself."""
    alone = pattern[1:-1]
    return fields[alone] if pattern == f"{{{alone}}}" and alone in fields else pattern.format_map(fields)


def _write_tables(folder: Path, layout: Layout, clips: list[dict[str, object]], faults: bool) -> None:
    rows = [[_cell(pattern, fields) for _, pattern in layout.columns] for fields in clips]
    if layout.second is not None:
        name, columns = layout.second
        second = [[_cell(pattern, fields) for _, pattern in columns] for fields in clips]
        _write_workbook(folder / name, [[header for header, _ in columns], *second])
    rows = plant(rows, layout) if faults else rows
    grid: list[Sequence[object]] = [*([line] for line in layout.above), [header for header, _ in layout.columns], *rows]
    if layout.table.endswith(".csv"):
        write_text(folder / layout.table, _csv(grid))
    else:
        _write_workbook(folder / layout.table, grid, layout.sheet, layout.more_sheets)


def _csv(grid: Sequence[Sequence[object]]) -> str:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(grid)
    return table.getvalue()


def _write_workbook(
    path: Path, grid: Sequence[Sequence[object]], sheet: str = "Sheet1", more_sheets: Sequence[str] = ()
) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = sheet
    for row in grid:
        book.active.append([None if cell == "" else cell for cell in row])
    for name in more_sheets:
        book.create_sheet(name)
    with replacing(path) as temporary:
        book.save(temporary)


def _claim(root: Path) -> None:
    """Make ``root`` ours. Real recordings must never be written over: no marker, no entry."""
    if root.is_file():
        raise UserError(f"{root} is a file; the data set needs a folder")
    if root.is_dir() and any(root.iterdir()) and not (root / MARKER).exists():
        raise UserError(f"{root} is not empty and holds no generated data set; choose another folder")
    root.mkdir(parents=True, exist_ok=True)
    # An older set in the same place may be of another format.
    (root / COMPOSITE).unlink(missing_ok=True)
    for parts in FORMATS.values():
        for part, layout in parts.items():
            (root / part / layout.table).unlink(missing_ok=True)
            if layout.second is not None:
                (root / part / layout.second[0]).unlink(missing_ok=True)
            for frame in (root / part).glob(layout.frames_glob()):
                frame.unlink()


def _write_frames(root: Path, layout: Layout, clip: GeneratedClip, fields: dict[str, object]) -> None:
    for number, frame in enumerate(clip.frames):
        if layout.cropped and not clip.onset <= number <= clip.offset:
            continue
        path = root / layout.frame.format_map({**fields, "frame": int(str(fields["first"])) + number})
        path.parent.mkdir(parents=True, exist_ok=True)
        done, data = cv2.imencode(
            ".jpg", np.ascontiguousarray(frame[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        )
        if not done:
            raise OSError(f"OpenCV could not encode a frame of shape {frame.shape} as JPEG")
        path.write_bytes(data.tobytes())
