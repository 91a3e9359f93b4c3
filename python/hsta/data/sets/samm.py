"""SAMM (Davison et al., 2018): ``006/006_1_2/006_05562.jpg``, 200 frames a second."""

from ..classes import OBJECTIVE, emotions, polarity
from ..table_dataset import Edition, TableDataset

SAMM = TableDataset(
    name="samm",
    title="SAMM",
    editions=(
        Edition(
            table="samm*micro_facs_codes*",
            clips=159,
            subjects=29,
            counts={
                "emotion": {
                    "anger": 57,
                    "others": 26,
                    "happiness": 26,
                    "surprise": 15,
                    "contempt": 12,
                    "disgust": 9,
                    "fear": 8,
                    "sadness": 6,
                },
                "objective": {"I": 24, "II": 13, "III": 20, "IV": 8, "V": 3, "VI": 7, "VII": 84},
            },
        ),
    ),
    frames=("{subject}/{clip}",),
    classes={
        "8": emotions("anger", "happiness", "other", "surprise", "contempt", "disgust", "fear", "sadness"),
        "7": emotions("anger", "happiness", "surprise", "contempt", "disgust", "fear", "sadness"),
        "5": emotions("anger", "happiness", "other", "surprise", "contempt"),
        "3": polarity("anger", "contempt", "disgust", "fear", "sadness"),
        "objective": OBJECTIVE,
    },
    prefixes=("s", "sub"),
)
