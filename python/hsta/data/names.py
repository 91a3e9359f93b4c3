"""When two spellings are one name."""

from __future__ import annotations

import re
import unicodedata


def name_key(name: str, prefixes: tuple[str, ...] = ()) -> str:
    """Equal for spellings of one name: case, spaces, zeros before a number and full-width digits do not count.

    One of the ``prefixes`` before a bare number does not count either: with ``sub``, ``sub01`` is ``1``.
    """
    key = "".join(unicodedata.normalize("NFKC", name).casefold().split())
    key = re.sub(r"\d+", lambda digits: str(int(digits[0])), key)
    for prefix in prefixes:
        rest = key.removeprefix(prefix.casefold())
        if rest.isdecimal():
            return rest
    return key
