"""MMEW (Ben et al., 2021): ``happiness/S01-01-001/15.jpg``, 90 frames a second."""

from ..classes import emotions, polarity
from ..table_dataset import Edition, TableDataset

MMEW = TableDataset(
    name="mmew",
    title="MMEW",
    editions=(
        Edition(
            table="mmew*micro*",
            clips=300,
            subjects=36,
            counts={
                "emotion": {
                    "happiness": 36,
                    "anger": 8,
                    "surprise": 89,
                    "disgust": 72,
                    "fear": 16,
                    "sadness": 13,
                    "others": 66,
                }
            },
        ),
    ),
    frames=("*/{clip}",),
    classes={
        "7": emotions("happiness", "anger", "surprise", "disgust", "fear", "sadness", "others"),
        "3": polarity("anger", "disgust", "fear", "sadness"),
    },
    prefixes=("s", "sub"),
    ignored=frozenset({"macro_expression"}),
)
