"""Patterns of parameter names, as of a shell."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable

from lthfunc.errors import invalid


def check_patterns(option: str, patterns: Iterable[str], names: Collection[str]) -> None:
    """Raise UserError for a pattern that matches none of the names."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise invalid(option, pattern, f"a pattern that matches one of {', '.join(names)}")
