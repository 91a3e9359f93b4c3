"""CASME II (Yan et al., 2014): ``sub01/EP02_01f/reg_img46.jpg``, 200 frames a second."""

from ..classes import OBJECTIVE, Classes, emotions
from ..table_dataset import Edition, TableDataset

OBJECTIVE_COUNTS = {"I": 25, "II": 15, "III": 99, "IV": 26, "V": 20, "VI": 1, "VII": 69}
EMOTION_COUNTS = {"others": 99, "disgust": 63, "happiness": 32, "repression": 27, "surprise": 25}

CASME2 = TableDataset(
    name="casme2",
    title="CASME II",
    editions=(
        Edition(
            table="casme2-coding-2019*",
            clips=255,
            subjects=26,
            counts={
                "emotion": EMOTION_COUNTS | {"surprise": 28, "sadness": 4, "fear": 2},
                "objective": OBJECTIVE_COUNTS,
            },
        ),
        Edition(
            table="casme2-coding-2014*",
            clips=255,
            subjects=26,
            counts={"emotion": EMOTION_COUNTS | {"sadness": 7, "fear": 2}, "objective": OBJECTIVE_COUNTS},
        ),
    ),
    frames=("{subject}/{clip}",),
    classes={
        "7": emotions("others", "disgust", "happiness", "repression", "surprise", "sadness", "fear"),
        "5": emotions("others", "disgust", "happiness", "repression", "surprise"),
        # Negative as in MEGC 2019, whose composite leaves out CASME II's sadness and fear.
        "3": Classes(
            "emotion",
            {"negative": ("disgust", "repression"), "positive": ("happiness",), "surprise": ("surprise",)},
        ),
        "objective": OBJECTIVE,
    },
    prefixes=("sub", "s"),
    objective_table="casme2-objectiveclasses*",
)
