"""DFME (Zhao et al., 2023): a folder a clip, named as in the table; up to 500 frames a second."""

from ..classes import emotions, polarity
from ..table_dataset import Edition, TableDataset

DFME = TableDataset(
    name="dfme",
    title="DFME",
    editions=(Edition(table="*_with_au.xlsx", clips=7526, subjects=671),),
    frames=("{clip}",),
    classes={
        "8": emotions("happiness", "anger", "contempt", "disgust", "fear", "sadness", "surprise", "others"),
        "7": emotions("happiness", "anger", "contempt", "disgust", "fear", "sadness", "surprise"),
        "3": polarity("anger", "contempt", "disgust", "fear", "sadness"),
    },
    prefixes=("sub", "s"),
    several=True,  # one table for training and one for each test
)
