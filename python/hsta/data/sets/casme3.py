"""CAS(ME)³ part A (Li et al., 2022): ``spNO.1/a/color/175.jpg``, 30 frames a second."""

from ..classes import OBJECTIVE, emotions, polarity
from ..table_dataset import Edition, TableDataset

CLASS_NAMES = ("others", "disgust", "surprise", "fear", "anger", "sad", "happy")  # HSTA's order

CASME3 = TableDataset(
    name="casme3",
    title="CAS(ME)^3 part A",
    editions=(
        Edition(
            table="*part_a_me_label*",
            clips=860,
            subjects=94,
            counts={
                "emotion": {
                    "disgust": 250,
                    "surprise": 187,
                    "others": 161,
                    "fear": 86,
                    "anger": 64,
                    "sad": 57,
                    "happy": 55,
                },
                "objective": {"I": 15, "II": 151, "III": 234, "IV": 37, "V": 47, "VI": 3, "VII": 373},
            },
        ),
    ),
    # The videos as they are given out; and the clips cut out of them, which are given out too.
    frames=("{subject}/{clip}/color", "{subject}_{clip}_{onset}"),
    classes={
        "7": emotions(*CLASS_NAMES),
        "3": polarity("disgust", "fear", "anger", "sad"),
        "objective": OBJECTIVE,
    },
    clip_name="{clip}_{onset}",
    prefixes=("spno.", "spno", "sp"),
    ignored=frozenset({"depth"}),
    whole_videos=True,
    longest=50,  # spans of thousands occur, and HSTA's authors cut them here
)
