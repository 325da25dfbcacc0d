"""Text out of files and names as it may stand on a screen: nothing in it that a terminal would obey."""

from __future__ import annotations

import unicodedata


def can_be_shown(character: str) -> bool:
    """Whether a character is only itself: no control, no half of one, none that turns or hides its neighbours."""
    return character.isprintable() or unicodedata.category(character) == "Zs"


def printable(text: str, keep: str = "\n") -> str:
    """The text with whatever can't be shown escaped, as Python would write it. keep: what stays as it is."""
    if text.isprintable():
        return text
    return "".join(each if each in keep or can_be_shown(each) else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return repr(character)[1:-1]
