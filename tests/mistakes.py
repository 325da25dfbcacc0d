"""How mistakes are told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lthfunc.errors import UserError


def assert_told_in_one_line(typed: Callable[[], object], words: str) -> None:
    """That a mistake is told so. words: a pattern."""
    with pytest.raises(UserError, match=words) as told:
        typed()
    assert "\n" not in str(told.value)
