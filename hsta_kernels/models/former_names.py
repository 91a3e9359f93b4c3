"""Names that classes had before, for whoever imports or unpickles them."""

from __future__ import annotations

import warnings
from collections.abc import Callable


def former_names(module: str, classes: dict[str, type]) -> Callable[[str], type]:
    """A module's ``__getattr__`` that finds `classes` under their former names, with a ``DeprecationWarning``."""

    def __getattr__(name: str) -> type:
        if name not in classes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now called {classes[name].__name__}", DeprecationWarning, stacklevel=2)
        return classes[name]

    return __getattr__
