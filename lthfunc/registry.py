"""Names and their functions, kind by kind: the library's, those of installed packages, and users' own.

A table has the location of each name's function; only the requested function is imported.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections import UserDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from lthfunc.errors import UserError, invalid, unknown
from lthfunc.plugins import called, guarded, is_own, load_plugin
from lthfunc.tracebacks import first_line, user_location

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@dataclass(frozen=True)
class Entry:
    """What is known about a name before its function is imported.

    target: the location of the function, "module:function", or ".module:function" within lthfunc.
    about: one line of help. source: the paper.
    takes: the settings that it uses and others of its kind don't.
    pattern: for a family of names, such as top-K: an expression whose named groups are arguments, digits as int and
    decimals as float.
    example: a name of the family.
    """

    target: str
    about: str
    source: str = ""
    takes: tuple[str, ...] = ()
    pattern: str | None = None
    example: str = ""


E = TypeVar("E", bound=Entry)

#: What stands for K in names such as step:K, by its part of the pattern.
_TAKES = {
    r"\d+": "a whole number of at least 0",
    r"[1-9]\d*": "a whole number of at least 1",
    r"[1-9]\d?": "a whole number from 1 to 99",
}


class Registry(UserDict[str, E]):
    """A table of the library's names (as a mapping), which also finds functions of installed packages and users.

    kind: in the plural; packages add names by entry points of the group ``lthfunc.KIND``. option: the one that accepts
    the names. own: whether users' functions are accepted as module:function. auto: what "auto" stands for, if
    that is a choice. own_takes: whether users' functions may use the settings in `Entry.takes`.
    """

    def __init__(
        self,
        kind: str,
        option: str,
        entries: Mapping[str, E],
        *,
        own: bool = True,
        auto: str = "",
        own_takes: bool = False,
    ) -> None:
        super().__init__(entries)
        self.kind, self.option, self.own, self.auto, self.own_takes = kind, option, own, auto, own_takes

    @property
    def described(self) -> str:
        """The names with their descriptions, for help."""
        return ", ".join(f"{name} ({entry.about})" for name, entry in self.items())

    @property
    def choices(self) -> tuple[str, ...]:
        """The possible choices, as help and errors list them."""
        return (*(("auto",) if self.auto else ()), *self)

    @property
    def offers(self) -> tuple[str, ...]:
        """The choices that completion offers: the same, with an example of each family."""
        return tuple(self[name].example or name if name in self else name for name in self.choices)

    def complete(self, incomplete: str) -> list[str]:
        """The names with a prefix, for completion in a shell."""
        return [name for name in (*self.offers, *sorted(self.installed())) if name.startswith(incomplete)]

    def installed(self) -> dict[str, list[EntryPoint]]:
        """The entry points that installed packages add, by name."""
        from importlib.metadata import entry_points  # slow to import, and rarely needed

        found: dict[str, dict[str, EntryPoint]] = {}
        for point in entry_points(group=f"lthfunc.{self.kind}"):
            found.setdefault(point.name, {})[point.value] = point
        return {name: list(points.values()) for name, points in found.items()}

    def known(self) -> list[str]:
        """The possible choices, including those of installed packages."""
        return [*self.choices, *(name for name in sorted(self.installed()) if name not in self)]

    def spelled(self) -> tuple[list[str], list[str]]:
        """(fixed names, regular expressions of the others), as for JSON Schema."""
        families = {
            key: re.sub(r"\?P<\w+>", "", each.pattern) for key, each in self.items() if each.pattern is not None
        }
        return [name for name in self.known() if name not in families], [f"^{each}$" for each in families.values()]

    def find(self, name: str) -> tuple[E, dict[str, Any]] | None:
        """(the entry, the arguments in the name); None for a name that isn't in the table."""
        for key, entry in self.items():
            if entry.pattern is None and key == name:
                return entry, {}
            if entry.pattern is not None and (found := re.fullmatch(entry.pattern, name)):
                return entry, {part: _number(text) for part, text in found.groupdict().items() if text is not None}
        return None

    def is_own(self, name: str) -> bool:
        """Whether a name is that of a user's own function."""
        prefix = name.partition(":")[0]
        return self.own and is_own(name) and not any((each.pattern or "").startswith(prefix) for each in self.values())

    def about(self, name: str) -> str:
        """The description of a name, in a line."""
        found = self.find(name)
        return "of your own" if found is None else found[0].about

    @property
    def settings(self) -> set[str]:
        """The settings that some names use and others don't."""
        return {each for entry in self.values() for each in entry.takes}

    def takes(self, name: str) -> Collection[str]:
        """The settings that a name uses and others of its kind don't."""
        found = self.find(name)
        return found[0].takes if found is not None else self.settings if self.own_takes else ()

    def has(self, name: str) -> bool:
        """Whether a name may be chosen."""
        known = (self.auto and name == "auto") or self.find(name) is not None or self.is_own(name)
        return bool(known) or name in self.installed()

    def check(self, name: str) -> None:
        """Raise UserError for an unknown name."""
        if not self.has(name):
            raise self._of_family(name) or unknown(self.option, name, self.known())

    def _of_family(self, name: str) -> UserError | None:
        """The error for a name that begins as those of a family, such as step:-1; None for any other."""
        for key, entry in self.items():
            found = re.fullmatch(r"([a-z-]*)[A-Z]?([:x-])[A-Z].*", key)
            head, between = found.groups() if found else (key, ":")
            begins = name.startswith(head + between) if head else re.fullmatch(rf"[-.\d]*{between}[-.\d]*", name)
            if entry.pattern is not None and (begins or name == head):
                takes = next((words for part, words in _TAKES.items() if f">{part})" in entry.pattern), "")
                named = " and ".join(re.findall(r"[A-Z]+", key))
                numbers = f"; {named}: {takes}" if takes and named else ""
                return invalid(self.option, name, f"{key}, {entry.about}{numbers}")
        return None

    def load(self, name: str) -> Any:
        """Import the function of a name. Raises UserError if there is none, or it cannot be imported."""
        if (found := self.find(name)) is not None:
            return imported(found[0].target)
        if self.is_own(name):
            return load_plugin(self.option, name)
        if name not in (installed := self.installed()):
            raise unknown(self.option, name, [each for each in self.known() if each != "auto"])
        point, *others = installed[name]
        if others:
            values = " and ".join(each.value for each in (point, *others))
            raise UserError(
                f"{self.option}: several installed packages have a {name!r}: {values}; use one of these instead"
            )
        try:
            return point.load()
        except (Exception, SystemExit) as error:
            package = "an installed package" if point.dist is None else f"the installed package {point.dist.name}"
            raise UserError(
                f"{self.option}: {name!r} of {package} cannot be imported{user_location(error)} ({first_line(error)})"
            ) from error

    def make(self, name: str, offered: Mapping[str, Any], returns: type | None = None, fits: str = "") -> Any:
        """What a name stands for: its function, or the result of calling that with `offered` arguments.

        It is called if all of its parameters are offered or have defaults. returns: the type that the result returns
        when called; checked, with a clear line for whatever it raises, if the function isn't the library's. fits: the
        annotation (as in `argument_kinds`) that the result of such a function must fit. Raises UserError.
        """
        function, found = self.load(name), self.find(name)
        if found is None:
            made = function if taken(function, offered) is None else called(self.option, name, function, offered, None)
            if fits and not (kind := importlib.import_module("lthfunc.argument_kinds").KINDS[fits]).fits(made):
                more = f", or what makes it of {', '.join(offered)}" if made is function and offered else ""
                raise invalid(self.option, name, kind.words + more)
            return made if returns is None else guarded(self.option, name, made, returns)
        entry, parts = found
        names = taken(function, {*offered, *parts})
        if names is None:
            return function
        others = self.settings - {*entry.takes}
        return function(
            **{each: parts[each] if each in parts else offered[each] for each in names if each not in others}
        )


def _number(text: str) -> int | float | str:
    """Digits as an int, decimals as a float, other text as it is."""
    return int(text) if text.isdecimal() else float(text) if re.fullmatch(r"\d+\.\d+", text) else text


def imported(target: str) -> Any:
    """Import an entry's target."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module, "lthfunc"), attribute)


def taken(function: Callable[..., Any], offered: Collection[str]) -> list[str] | None:
    """The parameters of a function that are offered; None if it needs others, so that it is not called."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # builtins may have no signature
        return None
    others = [each for each in parameters if each.default is each.empty and each.name not in offered]
    if any(each.kind is not each.VAR_KEYWORD for each in others):
        return None
    return [each.name for each in parameters if each.name in offered]


class Offered(UserDict[str, Any]):
    """Values by name, each computed when it is requested. Made of functions without arguments."""

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name)()
