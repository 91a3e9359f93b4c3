"""The command line: ``hsta train``, ``hsta evaluate`` and the other commands, a file each.

What computes is imported when a command runs and its options are found good, so that help and complaints come at once.
"""

from .program import main

__all__ = ["main"]
