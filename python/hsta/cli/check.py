"""``hsta check``: what a copy of a data set holds, what is wrong in it, and how that is treated."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from .options import DatasetOptions

if TYPE_CHECKING:
    from ..data.clips import DatasetIndex


@dataclass(frozen=True)
class Check(DatasetOptions):
    """Tell what a copy of a data set holds, what is wrong in it, and how that is treated.

    Every frame of every clip is read. The exit code is 1 when clips are lost.
    """

    json: bool = False
    """Print the answer as JSON and nothing else."""

    def run(self) -> int:
        from ..data.readable import leave_out_unreadable

        index = self.read_all()
        leave_out_unreadable(index, self.data)
        if self.json:
            print(json.dumps(_answer(index), indent=2, ensure_ascii=False))
        else:
            print(_table(index))
        return int(index.lost > 0)


def _answer(index: DatasetIndex) -> dict:
    return {
        "dataset": index.name,
        "clips": len(index.clips),
        "subjects": len({clip.person for clip in index.clips}),
        "classes": dict(zip(index.class_names, index.counts(), strict=True)),
        "lost": index.lost,
        "faults": [asdict(fault) for fault in index.faults],
        "notes": index.notes,
    }


def _table(index: DatasetIndex) -> str:
    answer = _answer(index)
    width = max(map(len, (*answer["classes"], "subjects")))
    counts = {"clips": answer["clips"], "subjects": answer["subjects"], "lost": answer["lost"]}
    lines = [answer["dataset"]]
    for part in (counts, answer["classes"]):
        lines += [f"  {name:<{width}}  {count:>6}" for name, count in part.items()] + [""]
    lines += [f"note: {note}" for note in index.notes]
    lines += [str(fault) for fault in index.faults] or ["nothing is wrong"]
    return "\n".join(lines)
