"""``hsta generate``: write the generated data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..errors import UserError


@dataclass
class Generate:
    """Write a data set of generated faces, in the layout of a licensed one."""

    output: Path
    """Folder to write to; it is made if it is missing."""
    format: Literal["casme2", "casme2-2014", "samm", "smic", "casme3", "mmew", "dfme", "megc2019", "folder"] = "casme3"
    """Data set whose layout and file names are used: casme3 is CAS(ME)^3 part A, casme2-2014 has CASME II's older
    table."""
    subjects: int = 10
    """Number of people; the first is a photograph, the others are drawn."""
    clips_per_subject: int = 8
    """Number of micro-expressions filmed of each of them."""
    seed: int = 0
    """Seed of the random numbers that make people and clips; the same seed gives the same bytes."""
    image_size: int = 224
    """Side of the frames in pixels."""
    amplitude: float = 1.0
    """Factor on the movement of 0.5 to 3 pixels; 0 makes a control, from which nothing can be learned."""
    emotions: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="STR ...")] = None
    """Emotions that occur in the clips; all that the data set has if left out."""
    faults: bool = False
    """Plant the faults of real tables, for `hsta check` to find."""

    def run(self) -> None:
        from ..generated.layouts import check_request

        numbers = (self.subjects, self.clips_per_subject, self.seed, self.image_size, self.amplitude)
        try:
            check_request(*numbers, self.format, self.emotions)
        except ValueError as error:
            raise UserError(str(error)) from error
        from ..generated.writer import generate_dataset

        annotation = generate_dataset(
            self.output,
            self.subjects,
            self.clips_per_subject,
            self.seed,
            format=self.format,
            image_size=self.image_size,
            amplitude=self.amplitude,
            emotions=self.emotions,
            faults=self.faults,
        )
        print(f"{self.subjects * self.clips_per_subject} generated clips: {annotation}")
