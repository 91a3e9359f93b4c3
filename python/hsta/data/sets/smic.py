"""SMIC-HS (Li et al., 2013): ``s1/micro/negative/s1_ne_01/image000123.jpg``, 100 frames a second; no apex."""

import re

from ..classes import polarity
from ..table_dataset import Edition, TableDataset


def emotion(clip: str) -> str:
    """What is written in a clip's name: ``ne`` of ``s1_ne_01``, whichever way it is spelled."""
    parts = re.findall(r"[^\W\d_]+", clip.casefold())
    return next((part for part in parts if part in ("ne", "po", "sur")), "")


SMIC = TableDataset(
    name="smic",
    title="SMIC-HS",
    editions=(
        Edition(
            table="smic-hs*annotation*",
            clips=164,
            subjects=16,
            counts={"emotion": {"negative": 70, "positive": 51, "surprise": 43}},
        ),
    ),
    frames=("{subject}/micro/*/{clip}", "{subject}/{clip}"),
    classes={"3": polarity()},
    prefixes=("s", "sub"),
    # The other cameras, whose clips have the same names, and clips without a micro-expression.
    ignored=frozenset({"nir", "vis", "non_micro"}),
    emotion_of=emotion,
)
