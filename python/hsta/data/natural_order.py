"""Names in the order in which people count them."""

from __future__ import annotations

import re


def natural_key(name: str) -> list[str | int]:
    """Sorts ``sub9`` before ``sub10``."""
    parts: list[str | int] = list(re.split(r"(\d+)", name))
    parts[1::2] = map(int, parts[1::2])  # text and numbers take turns
    return parts
