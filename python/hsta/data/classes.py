"""From what annotators wrote to the classes that are learned."""

from __future__ import annotations

from dataclasses import dataclass

# The sets spell the same emotions so; within a set either spelling is read.
SPELLINGS = {
    "other": "others",
    "surprised": "surprise",
    "disgusted": "disgust",
    "angry": "anger",
    "sad": "sadness",
    "happy": "happiness",
    "fearful": "fear",
    "afraid": "fear",
    "repressed": "repression",
    "contemptuous": "contempt",
    # SMIC's clips have theirs in their names: s1_ne_01.
    "ne": "negative",
    "po": "positive",
    "sur": "surprise",
}
ROMAN = {"1": "i", "2": "ii", "3": "iii", "4": "iv", "5": "v", "6": "vi", "7": "vii"}
OBJECTIVE_NAMES = ("I", "II", "III", "IV", "V", "VI", "VII")


@dataclass(frozen=True)
class Classes:
    """Classes in the order of their labels, and what annotators call their members, in a ``column``."""

    column: str
    members: dict[str, tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.members)

    def label(self, written: str) -> int | None:
        """The label of what stands in a cell; None for what is in no class."""
        key = spelled(written)
        for label, members in enumerate(self.members.values()):
            if key in map(spelled, members):
                return label
        return None


def spelled(written: str) -> str:
    """Equal for all spellings of an emotion or an objective class."""
    key = written.strip().casefold()
    return SPELLINGS.get(key, ROMAN.get(key, key))


def emotions(*names: str) -> Classes:
    """A class for each emotion."""
    return Classes("emotion", {name: (name,) for name in names})


def polarity(*negative: str) -> Classes:
    """The field's three classes, of which the first has the given emotions; others are left out."""
    return Classes(
        "emotion",
        {"negative": ("negative", *negative), "positive": ("positive", "happiness"), "surprise": ("surprise",)},
    )


OBJECTIVE = Classes("objective", {name: (name,) for name in OBJECTIVE_NAMES})
