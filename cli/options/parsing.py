"""Parsing of option values, and completion."""

from __future__ import annotations

from collections.abc import Callable

import typer


def whole(text: str) -> int:
    """A whole number. Raises BadParameter."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


def round_of_run(text: str) -> int | str:
    """A round's number, or "winning" or "last". Raises BadParameter."""
    try:
        return text if text in ("winning", "last") else int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a round's number, winning or last") from None


def number(text: str) -> float:
    """A number. Raises BadParameter."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


def names(*known: str) -> Callable[[str], list[str]]:
    """A completion function for these names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return complete
