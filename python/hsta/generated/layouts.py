"""How the field's data sets lie on disk: names of folders, frames and tables, headers, kinds of cells.

Patterns stand for a clip's numbers: ``{subject}``, ``{take}`` (its number among a subject's), ``{video}`` (a letter),
``{emotion}`` as the set writes it, ``{onset}``, ``{apex}``, ``{offset}``, ``{units}``, ``{objective}``, ``{frame}``.
A cell that is one field alone keeps its kind, a number or text; with a width (``{subject:02}``) it is text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ALL = {
    "others": "others",
    "disgust": "disgust",
    "surprise": "surprise",
    "fear": "fear",
    "anger": "anger",
    "sad": "sadness",
    "happy": "happiness",
}
POLARITY = {
    "disgust": "negative",
    "fear": "negative",
    "anger": "negative",
    "sad": "negative",
    "happy": "positive",
    "surprise": "surprise",
}
SHORT = {"negative": "ne", "positive": "po", "surprise": "sur"}  # as SMIC's clips are named


@dataclass(frozen=True)
class Layout:
    """``frame`` is the pattern of a frame's path, ``columns`` are headers and patterns of cells.

    A ``table`` is csv or xlsx by its ending; in a workbook it stands on the ``sheet``, under the rows ``above``,
    and ``more_sheets`` are empty. ``emotions`` maps what is generated to what is written. With ``cropped`` a
    folder holds the frames from onset to offset only. ``second`` is a table more.
    """

    fps: float
    frame: str
    table: str
    columns: tuple[tuple[str, str], ...]
    emotions: Mapping[str, str] = field(default_factory=lambda: ALL)
    sheet: str = "Sheet1"
    above: tuple[str, ...] = ()
    more_sheets: tuple[str, ...] = ()
    cropped: bool = False
    second: tuple[str, tuple[tuple[str, str], ...]] | None = None

    def frames_glob(self) -> str:
        return re.sub(r"{[^}]*}", "*", self.frame)


CASME3 = Layout(
    fps=30,
    frame="spNO.{subject}/{video}/color/{frame}.jpg",
    table="cas(me)3_part_A_ME_label_JpgIndex_v2.csv",
    columns=(
        ("Subject", "spNO.{subject}"),
        ("Filename", "{video}"),
        ("Onset", "{onset}"),
        ("Apex", "{apex}"),
        ("Offset", "{offset}"),
        ("AU", "{units}"),
        ("Expression type", "Micro-expression"),
        ("Objective class", "{objective}"),
        ("emotion", "{emotion}"),
    ),
    emotions=ALL | {"sad": "sad", "happy": "happy"},
)
CASME2_COLUMNS = (
    ("Subject", "{subject:02}"),
    ("Filename", "EP{take:02}_01f"),
    ("", ""),
    ("OnsetFrame", "{onset}"),
    ("ApexFrame", "{apex}"),
    ("OffsetFrame", "{offset}"),
    ("", ""),
    ("Action Units", "{units}"),
    ("Estimated Emotion", "{emotion}"),
)
CASME2 = Layout(
    fps=200,
    frame="sub{subject:02}/EP{take:02}_01f/reg_img{frame}.jpg",
    table="CASME2-coding-20190701.xlsx",
    columns=(*CASME2_COLUMNS, ("Objective Class", "{objective}")),
    emotions={name: written for name, written in ALL.items() if name != "anger"},
    more_sheets=("Sheet2", "Sheet3"),
    cropped=True,
)
CASME2_OF_2014 = Layout(
    fps=200,
    frame=CASME2.frame,
    table="CASME2-coding-20140508.xlsx",
    columns=CASME2_COLUMNS,
    emotions=CASME2.emotions,
    cropped=True,
    second=(
        "CASME2-ObjectiveClasses.xlsx",
        (("Subject", "{subject}"), ("Filename", "EP{take:02}_01f"), ("Objective Class", "{objective}")),
    ),
)
SAMM = Layout(
    fps=200,
    frame="{subject:03}/{subject:03}_{take}_1/{subject:03}_{frame:05}.jpg",
    table="SAMM_Micro_FACS_Codes_v2.xlsx",
    columns=(
        ("Subject", "{subject:03}"),
        ("Filename", "{subject:03}_{take}_1"),
        ("Inducement Code", "{take}"),
        ("Onset Frame", "{onset}"),
        ("Apex Frame", "{apex}"),
        ("Offset Frame", "{offset}"),
        ("Duration", "{duration}"),
        ("Micro", "1/2"),
        ("Action Units", "{units}"),
        ("Estimated Emotion", "{emotion}"),
        ("Objective Classes", "{objective}"),
        ("Notes", ""),
    ),
    emotions={name: written.replace("others", "other").capitalize() for name, written in ALL.items()},
    sheet="MICRO_ONLY",
    above=("SAMM Micro-Expression FACS Codes", "", "Version 2", *("Notes",) * 9, ""),  # the header is the 14th row
)
SMIC = Layout(
    fps=100,
    frame="s{subject}/micro/{emotion}/s{subject}_{short}_{take:02}/image{frame:06}.jpg",
    table="SMIC-HS-E_annotation.xlsx",
    columns=(
        ("Subject", "{subject}"),
        ("Filename", "s{subject}_{short}_{take:02}"),
        ("", ""),
        ("OnsetF", "{onset}"),
        ("OffsetF", "{offset}"),
    ),
    emotions=POLARITY,
    cropped=True,
)
MMEW = Layout(
    fps=90,
    frame="{emotion}/S{subject:02}-01-{take:03}/{frame}.jpg",
    table="MMEW_Micro_Exp.xlsx",
    columns=(
        ("Subject", "{subject}"),
        ("Filename", "S{subject:02}-01-{take:03}"),
        ("OnsetFrame", "{onset}"),
        ("ApexFrame", "{apex}"),
        ("OffsetFrame", "{offset}"),
        ("Action Units", "{units}"),
        ("Estimated Emotion", "{emotion}"),
        ("remarks", ""),
    ),
)
DFME = Layout(
    fps=200,
    frame="sub{subject:04}_{take:02}/{frame:05}.jpg",
    table="training_full_with_AU.xlsx",
    columns=(
        ("Subject", "sub{subject:04}"),
        ("Filename", "sub{subject:04}_{take:02}"),
        ("OnsetFrame", "{onset}"),
        ("ApexFrame", "{apex}"),
        ("OffsetFrame", "{offset}"),
        ("Emotion", "{emotion}"),
        ("EmotionId", ""),
        ("Fps", "200"),
        ("AU", "{units}"),
    ),
)
FOLDER = Layout(
    fps=30,
    frame="person{subject}/clip{take}/{frame}.jpg",
    table="annotation.csv",
    columns=(
        ("subject", "person{subject}"),
        ("clip", "clip{take}"),
        ("emotion", "{emotion}"),
        ("onset", "{onset}"),
        ("apex", "{apex}"),
        ("offset", "{offset}"),
    ),
)

# Each format's folders below the output, and what lies in them; subjects are dealt out to them in turn.
FORMATS: dict[str, dict[str, Layout]] = {
    "casme2": {"": CASME2},
    "casme2-2014": {"": CASME2_OF_2014},
    "samm": {"": SAMM},
    "smic": {"": SMIC},
    "casme3": {"": CASME3},
    "mmew": {"": MMEW},
    "dfme": {"": DFME},
    "megc2019": {"casme2": CASME2, "samm": SAMM, "smic": SMIC},
    "folder": {"": FOLDER},
}
# The composite has one more table, without a header, for these emotions; its names are those of its organizers.
COMPOSITE = "combined_3class_gt.csv"
COMPOSITE_LABELS = {"disgust": 0, "happy": 1, "surprise": 2}
COMPOSITE_ROWS = {
    "casme2": ("casme2", "sub{subject:02}", "EP{take:02}_01f", "{label}"),
    "samm": ("samm", "{subject}", "{subject:03}_{take}_1", "{label}"),
    "smic": ("smic", "s{subject:02}", "s{subject:02}_{short}_{take:02}", "{label}"),
}


def emotions_of(name: str) -> tuple[str, ...]:
    """What can be generated in a format: the emotions that all its parts know."""
    known = set.intersection(*(set(layout.emotions) for layout in FORMATS[name].values()))
    return tuple(emotion for emotion in ALL if emotion in known and (name != "megc2019" or emotion in COMPOSITE_LABELS))


def check_request(
    subjects: int,
    clips_per_subject: int,
    seed: int,
    image_size: int,
    amplitude: float,
    format: str,
    emotions: Sequence[str] | None,
) -> None:
    """Raises `ValueError` naming the argument of `generate_dataset` that it cannot do."""
    for name, value, least in (
        ("subjects", subjects, 1),
        ("clips_per_subject", clips_per_subject, 1),
        ("image_size", image_size, 32),
        ("seed", seed, 0),
        ("amplitude", amplitude, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    known = emotions_of(format)
    if emotions is not None and (set(emotions) - set(known) or not emotions):
        raise ValueError(f"emotions must be some of {', '.join(known)}, got {list(emotions)}")
