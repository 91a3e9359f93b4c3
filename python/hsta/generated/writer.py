"""Writes generated clips as a CAS(ME)³ part A tree, file names and header as in the real one."""

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
from ..files import write_text
from .clips import GeneratedClip, generate_clip, subject_portrait
from .emotions import EMOTIONS, OBJECTIVE_CLASSES
from .mark import MARKER, NO_EVIDENCE

ANNOTATION = "cas(me)3_part_A_ME_label_JpgIndex_v2.csv"
COLUMNS = (
    "Subject",
    "Filename",
    "Onset",
    "Apex",
    "Offset",
    "AU",
    "Expression type",
    "Objective class",
    "emotion",
)
VIDEOS = "abcdefghijklm"  # the thirteen videos of a subject
FPS = 30.0
JPEG_QUALITY = 95


def generate_casme3(
    output: str | Path,
    subjects: int = 10,
    clips_per_subject: int = 8,
    seed: int = 0,
    *,
    image_size: int = 224,
    amplitude: float = 1.0,
    emotions: Sequence[str] = EMOTIONS,
    progress: bool = True,
) -> Path:
    """Write ``subjects`` × ``clips_per_subject`` clips under ``output``; returns the path of the annotation
    file.

    Frames are ``output/spNO.1/a/color/175.jpg``; subject 1 is the photograph, the others are drawn from
    ``seed``. A subject's emotions go round the list, so that classes are balanced. The same arguments give
    the same bytes, and a subject or clip is the same whatever the number of others. ``amplitude`` 0 is the
    control: same clips, no movement of the face. The annotation is written last: a tree without it is an
    interrupted one, and the same call again completes it. Raises `UserError` when ``output`` holds files that
    are not of a generated set.
    """
    for name, value, least in (
        ("subjects", subjects, 1),
        ("clips_per_subject", clips_per_subject, 1),
        ("image_size", image_size, 32),
        ("seed", seed, 0),
        ("amplitude", amplitude, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    unknown = sorted(set(emotions) - set(EMOTIONS))
    if unknown or not emotions:
        raise ValueError(f"emotions must be some of {', '.join(EMOTIONS)}, got {list(emotions)}")

    root = Path(output)
    annotation = root / ANNOTATION
    _claim(root, annotation)
    write_text(
        root / MARKER,
        json.dumps(
            {
                "what": NO_EVIDENCE,
                "subjects": subjects,
                "clips_per_subject": clips_per_subject,
                "seed": seed,
                "image_size": image_size,
                "amplitude": amplitude,
                "emotions": list(emotions),
            },
            indent=2,
        ),
    )
    rows = []
    with tqdm(total=subjects * clips_per_subject, unit="clip", desc="generate", disable=not progress) as bar:
        for subject in range(1, subjects + 1):
            portrait = subject_portrait(seed, subject)
            order = np.random.default_rng([seed, subject, 0]).permutation(len(emotions))
            for number in range(clips_per_subject):
                emotion = emotions[order[number % len(emotions)]]
                rng = np.random.default_rng([seed, subject, 1 + number])
                clip = generate_clip(portrait, emotion, rng, image_size=image_size, fps=FPS, amplitude=amplitude)
                # Thirteen videos a subject; further clips lie further on in the same videos.
                video = VIDEOS[number % len(VIDEOS)]
                first = 1000 * (number // len(VIDEOS)) + int(rng.integers(1, 900))
                _write_frames(root / f"spNO.{subject}" / video / "color", clip.frames, first)
                rows.append(_row(f"spNO.{subject}", video, first, clip))
                bar.update()
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([COLUMNS, *rows])
    write_text(annotation, table.getvalue())
    return annotation


def _row(subject: str, video: str, first: int, clip: GeneratedClip) -> tuple:
    onset, apex, offset = first + clip.onset, first + clip.apex, first + clip.offset
    objective = OBJECTIVE_CLASSES[clip.emotion]
    return subject, video, onset, apex, offset, clip.action_units, "Micro-expression", objective, clip.emotion


def _claim(root: Path, annotation: Path) -> None:
    """Make ``root`` ours. Real recordings must never be written over: no marker, no entry."""
    if root.is_file():
        raise UserError(f"{root} is a file; the data set needs a folder")
    if root.is_dir() and any(root.iterdir()) and not (root / MARKER).exists():
        raise UserError(f"{root} is not empty and holds no generated data set; choose another folder")
    root.mkdir(parents=True, exist_ok=True)
    annotation.unlink(missing_ok=True)
    for frame in root.glob("spNO.*/*/color/*.jpg"):
        frame.unlink()


def _write_frames(folder: Path, frames: list[np.ndarray], first: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, first):
        done, data = cv2.imencode(
            ".jpg", np.ascontiguousarray(frame[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        )
        if not done:
            raise OSError(f"OpenCV could not encode a frame of shape {frame.shape} as JPEG")
        (folder / f"{number}.jpg").write_bytes(data.tobytes())
