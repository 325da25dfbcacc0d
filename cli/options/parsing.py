"""Texts of options into values, and completion."""

from __future__ import annotations

from collections.abc import Callable

import typer

from lthfunc.errors import invalid


def whole(text: str) -> int:
    """A whole number, or a mistake told in one line."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


def round_of_run(text: str) -> int | str:
    """A round's number, or a word for one, or a mistake told in one line."""
    try:
        return text if text in ("winning", "last") else int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a round's number, winning or last") from None


def number(text: str) -> float:
    """A number, or a mistake told in one line."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


def names(*known: str) -> Callable[[str], list[str]]:
    """Completion among these."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return complete


def layer_rates(texts: list[str]) -> dict[str, float]:
    """PATTERN=RATE each. Raises UserError."""
    return dict(_layer_rate(text) for text in texts)


def named_values(option: str, texts: list[str]) -> dict[str, str]:
    """NAME=VALUE each. Raises UserError."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise invalid(option, text, "NAME=VALUE, e.g. width=2")
        found[name] = value
    return found


def _layer_rate(text: str) -> tuple[str, float]:
    pattern, equals, rate = text.rpartition("=")
    try:
        value = float(rate)
    except ValueError:
        value = None
    if not equals or not pattern or value is None:
        raise invalid("--layer-rate", text, "PATTERN=RATE, e.g. 'conv*=0.1'")
    return pattern, value


def listed(family: dict[str, str]) -> str:
    """A family's names with what each is, for a help text."""
    return ", ".join(f"{name} ({about})" for name, about in family.items())
