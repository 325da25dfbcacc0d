"""A user's own functions, named on the command line as ``package.module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lthfunc.errors import UserError, invalid


def load_plugin(option: str, name: str) -> Callable[..., Any]:
    """Import the function; the working directory counts, as it does for `python -m`. Raises UserError."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise invalid(option, name, "a name of the list, or package.module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{option}: cannot import {name!r} ({error})") from error
    if not callable(function):
        raise UserError(f"{option}: {name!r} is not a function")
    return function  # type: ignore[no-any-return]
