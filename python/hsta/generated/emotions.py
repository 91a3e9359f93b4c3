"""The action units that emotions are read from.

The combinations are the prototypes of the emotional facial action coding system as far as the units of
`action_units` reach (Ekman, Friesen and Hager, 2002); the objective classes are those of Davison, Merghani and
Yap (2018), by units alone.
"""

from __future__ import annotations

EMOTION_UNITS: dict[str, tuple[tuple[int, ...], ...]] = {
    "others": ((14,),),
    "disgust": ((9,), (4, 9)),
    "surprise": ((1, 2), (1, 2, 25)),
    "fear": ((1, 2, 4, 5), (1, 2, 4, 5, 25)),
    "anger": ((4,), (4, 5)),
    "sad": ((1, 15), (1, 4, 15)),
    "happy": ((12,), (6, 12)),
}

EMOTIONS = tuple(EMOTION_UNITS)

OBJECTIVE_CLASSES = {
    "happy": "I",
    "surprise": "II",
    "anger": "III",
    "disgust": "IV",
    "sad": "V",
    "fear": "VI",
    "others": "VII",
}
