"""The command line: ``hsta generate | train | evaluate | predict | demo``.

Nothing here imports a heavy library before a command runs: help and complaints come at once.
"""

from .program import main

__all__ = ["main"]
