"""An evaluation with all its seeds, read back: one seed is one repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .evaluated import Evaluated, read_metrics
from .learning_curves import Curve

if TYPE_CHECKING:
    from .bootstrap import Subjects


@dataclass(frozen=True)
class Repeats:
    """The evaluations in ``folder``, of the same clips; ``seeds`` are theirs, None where there is one alone."""

    folder: Path
    several: tuple[Evaluated, ...]
    seeds: tuple[int, ...] | None

    @classmethod
    def read(cls, folder: Path) -> Repeats:
        """Raises `UserError` where no evaluation is done, and for seeds that are not of one."""
        metrics = read_metrics(folder)
        if "seeds" not in metrics:
            return cls(folder, (Evaluated.read(folder),), None)
        seeds = metrics["seeds"]
        if not isinstance(seeds, list) or len(seeds) < 2:
            raise UserError(f"{folder / 'metrics.json'} must name two seeds or more, got {seeds}")
        several = tuple(Evaluated.read(folder / "seeds" / str(seed)) for seed in seeds)
        for name, told in metrics.items():
            each = [evaluated.metrics.get(name) for evaluated in several]
            if isinstance(told, dict) and told.get("each") != each:
                raise UserError(f"metrics.json in {folder} has {name} of other evaluations than its seeds do: {each}")
        from .comparison import check_same

        for other in several[1:]:
            check_same(several[0], other)
        return cls(folder, several, tuple(seeds))

    @property
    def first(self) -> Evaluated:
        return self.several[0]

    def subjects(self) -> list[Subjects]:
        """What was told of each person, by each seed; the people are the same, in the same order."""
        return [evaluated.subjects() for evaluated in self.several]

    def curves(self) -> list[Mapping[str, Curve]]:
        """The learning curves of each seed by fold; none where none were kept."""
        return [evaluated.curves() for evaluated in self.several]
