"""Tables of contents whose names are imported on first use.

``import lthfunc`` then costs nothing (torch takes over a second), and the command line answers at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def table_of_contents(
    package: str, contents: Mapping[str, Sequence[str]], rooms: Sequence[str] = ()
) -> tuple[Callable[[str], Any], list[str]]:
    """(the package's ``__getattr__``, its ``__all__``) for {module: names}; `rooms` are submodules themselves."""
    homes = {name: module for module, names in contents.items() for name in names}

    def getattribute(name: str) -> Any:
        if name in rooms:
            return importlib.import_module(f"{package}.{name}")
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return getattribute, [*homes, *rooms]
