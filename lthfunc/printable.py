"""Text for people: that from files and names is made safe, so that nothing in it can control a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any


def can_be_shown(character: str) -> bool:
    """Whether a character only represents itself: no control character, surrogate, or invisible mark."""
    return character.isprintable() or unicodedata.category(character) == "Zs"


def printable(text: str, keep: str = "\n") -> str:
    """The text with unprintable characters escaped as in Python. keep: characters that stay."""
    if text.isprintable():
        return text
    return "".join(each if each in keep or can_be_shown(each) else repr(each)[1:-1] for each in text)


def counted(number: int, noun: str) -> str:
    """A number of things: "1 round", "1,200 rounds"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def dtype_name(dtype: object) -> str:
    """PyTorch's name of a dtype or a layout: "float32"."""
    return str(dtype).removeprefix("torch.")


def dtype_and_shape(value: Any) -> str:
    """A tensor's, "float32 of shape (2, 3)"; of another value its type, "a list"."""
    if not hasattr(value, "dtype"):
        return a_or_an(type(value).__name__)
    return f"{dtype_name(value.dtype)} of shape {tuple(value.shape)}"


def a_or_an(name: str) -> str:
    """A name with its article: "an int", "a list"."""
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def joined(names: Sequence[str], word: str) -> str:
    """Some names, one at least, as in a sentence. word: "and" or "or" before the last."""
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def first_few(names: Sequence[str], most: int = 4) -> str:
    """The first of some names, and the number of the others: "a, b and 3 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
