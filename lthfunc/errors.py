"""Errors that a user can fix: one line that names the option, the value and what is expected."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

from lthfunc.printable import a_or_an

#: The most characters of a value to show; of a longer one the type is shown.
_LONGEST_SHOWN = 160


class UserError(ValueError):
    """A mistake of the user, not of the program; the command line prints it and exits with `code`."""

    code = 2


class ArgumentError(UserError, TypeError):
    """An argument of a type that a function doesn't accept; also a TypeError."""


class DamagedError(UserError):
    """A file that is not what was written: truncated, altered or missing."""

    code = 3


class LostRankError(UserError):
    """One of several ranks that train together is lost."""

    code = 3


class LostRunError(UserError):
    """A run's address that can no longer be written to."""

    code = 3


class UnavailableError(UserError):
    """A folder that another process works on, or that holds what isn't this program's to write over."""


class UnfitInputsError(UserError):
    """A network that cannot take the inputs of a data set."""


class DivergedError(UserError):
    """A training whose loss or gradient is not finite."""


def invalid(option: str, value: object, accepted: str) -> UserError:
    """An error for a value that an option does not accept."""
    shown = f" {value!r}"
    if "\n" in shown or len(shown) > _LONGEST_SHOWN:
        shown = f": {a_or_an(type(value).__name__)}"
    return UserError(f"{option}: invalid value{shown} (expected {accepted})")


@contextmanager
def failing_as(message: Callable[[Exception], str], kind: type[UserError] = UserError) -> Iterator[None]:
    """Raise every error but a UserError as a UserError (of a kind) with a message."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise kind(message(error)) from error


@contextmanager
def prefixed(option: str) -> Iterator[None]:
    """Let messages of UserErrors begin with an option."""
    try:
        yield
    except UserError as error:
        text = str(error)
        raise error if text.startswith(f"{option}:") else type(error)(f"{option}: {text}") from error


@contextmanager
def failing_as_options(options: Mapping[str, str]) -> Iterator[None]:
    """Let messages of UserErrors that begin with an argument of a function begin with an option instead, by name."""
    try:
        yield
    except UserError as error:
        text = as_option(str(error), options)
        raise type(error)(text) if text != str(error) else error from error


def as_option(message: str, options: Mapping[str, str]) -> str:
    """A message with an option in front, by name, instead of the argument of a function that it names there."""
    name, colon, text = message.partition(":")
    return f"{options[name]}:{text}" if colon and name in options else message


def did_you_mean(value: str, known: Collection[str]) -> str:
    """The name closest to a value, as a question that follows a message; "" if none is close."""
    lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(value.lower(), lower, n=1, cutoff=0.5)
    return f"; did you mean {lower[near[0]]!r}?" if near else ""


def unknown(option: str, value: str, names: Iterable[str]) -> UserError:
    """An error for a name that is not in a list, with the closest one suggested."""
    if value.endswith(".py"):
        return invalid(option, value, f"{value}:NAME, with the name of a class or function in that file")
    known = list(names)
    return UserError(
        f"{option}: unknown name {value!r}{did_you_mean(value, known)} (expected one of {', '.join(known)})"
    )
