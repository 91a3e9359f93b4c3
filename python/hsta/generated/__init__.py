"""Generated micro-expression clips: a data set that anybody can have. No evidence about real faces."""

from .action_units import EMOTION_UNITS
from .clips import GeneratedClip, generate_clip, subject_portrait
from .writer import MARKER, NO_EVIDENCE, generate_casme3

EMOTIONS = tuple(EMOTION_UNITS)

__all__ = ["EMOTIONS", "MARKER", "NO_EVIDENCE", "GeneratedClip", "generate_casme3", "generate_clip", "subject_portrait"]
