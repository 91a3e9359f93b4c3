"""``hsta generate``: write the generated data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import UserError
from ..generated.emotions import EMOTIONS


@dataclass
class Generate:
    """Write a data set of generated faces, in the layout of a licensed one."""

    output: Path
    """Folder to write to; made if missing."""
    format: Literal["casme3"] = "casme3"
    """Whose layout and file names: casme3 is CAS(ME)^3 part A."""
    subjects: int = 10
    """Number of people; the first is a photograph, the others are drawn."""
    clips_per_subject: int = 8
    """Micro-expressions filmed of each."""
    seed: int = 0
    """The same seed gives the same bytes."""
    image_size: int = 224
    """Side of the frames in pixels."""
    amplitude: float = 1.0
    """Multiplies the movement of 0.5 to 3 pixels; 0 is the control, in which nothing can be learned."""
    emotions: tuple[str, ...] = EMOTIONS
    """The classes that occur."""

    def run(self) -> None:
        from ..generated.writer import generate_casme3

        try:
            annotation = generate_casme3(
                self.output,
                self.subjects,
                self.clips_per_subject,
                self.seed,
                image_size=self.image_size,
                amplitude=self.amplitude,
                emotions=self.emotions,
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        print(f"{self.subjects * self.clips_per_subject} generated clips: {annotation}")
