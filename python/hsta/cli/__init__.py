"""The command line: ``hsta check | generate | prepare | train | evaluate | collect | predict | serve | export | demo``.

What computes is imported when a command runs and its options are found good, so that help and complaints come at once.
"""

from .program import main

__all__ = ["main"]
