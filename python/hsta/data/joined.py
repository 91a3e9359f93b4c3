"""Several data sets as one, for protocols that train on some and test on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import UserError
from .classes import spelled
from .clips import DatasetIndex
from .natural_order import natural_key


def join(indices: Sequence[DatasetIndex]) -> DatasetIndex:
    """All clips; classes are the same where their names are spellings of one (``happy``, ``happiness``).

    A class that a set does not know is told in the notes: its clips say which set they are of. Raises `UserError`
    when a data set is given twice, since the clips of one would be copies of the other's.
    """
    if len(indices) == 1:
        return indices[0]
    joined = DatasetIndex("+".join(index.name for index in indices), [], (), action_units=indices[0].action_units)
    names: dict[str, str] = {}  # by the key of their spellings, as the first set spells them
    parts: set[str] = set()
    for index in indices:
        own = {clip.dataset for clip in index.clips}
        if twice := parts & own:
            raise UserError(f"the data set {', '.join(sorted(twice))} is given twice: give each once")
        parts |= own
        if index.action_units != indices[0].action_units:
            raise UserError("action units and emotions cannot be learned together: give all data sets the same classes")
        for name in index.class_names:
            names.setdefault(spelled(name), name)
    if joined.action_units:
        names = dict(sorted(names.items(), key=lambda item: natural_key(item[1])))
    order = {key: label for label, key in enumerate(names)}
    joined.class_names = tuple(names.values())
    for index in indices:
        keys = [spelled(name) for name in index.class_names]
        for clip in index.clips:
            if isinstance(clip.label, tuple):
                joined.clips.append(replace(clip, label=tuple(sorted(order[keys[label]] for label in clip.label))))
            else:
                key = keys[clip.label]
                joined.clips.append(replace(clip, label=order[key], emotion=names[key]))
        joined.notes += [f"{index.name}: {note}" for note in index.notes]
        unknown = [name for key, name in names.items() if key not in keys]
        if unknown and not index.action_units:  # every set codes all units, whether they occur in it or not
            joined.notes.append(f"{index.name} knows no {', '.join(unknown)}")
        joined.faults += index.faults
        joined.lost += index.lost
        joined.generated |= index.generated
    if len(ways := {index.prepared for index in indices}) == 1:
        (joined.prepared,) = ways
    else:
        joined.notes.append(
            "the data sets are not prepared alike: hsta predict cannot tell how to crop, its --detector says"
        )
    return joined
