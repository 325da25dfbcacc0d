"""Names and their functions, kind by kind: the library's own, those that installed packages add, and a user's own.

A table says of each name where its function lies; nothing but the function that is asked for is imported.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lthfunc.errors import UserError, unknown
from lthfunc.plugins import called, guarded, is_own, load_plugin
from lthfunc.tracebacks import first_line, user_location

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@dataclass(frozen=True)
class Entry:
    """What is known of a name before its function is imported.

    target: where the function lies, "package.module:function", or ".module:function" within lthfunc.
    about: one line of help. source: the paper.
    takes: the settings that it takes and others of its kind don't.
    pattern: for a family of names, such as top-K: an expression whose named groups are arguments, digits as int.
    example: a name of the family.
    """

    target: str
    about: str
    source: str = ""
    takes: tuple[str, ...] = ()
    pattern: str | None = None
    example: str = ""


E = TypeVar("E", bound=Entry)


class Registry(Mapping[str, E], Generic[E]):
    """A table of the library's own names (as a mapping), which finds installed and users' functions as well.

    kind: in the plural, so that packages add to it by entry points of the group ``lthfunc.KIND``. option: that takes
    the names. own: whether it takes users' functions by package.module:function. auto: what "auto" stands for, where
    that is a choice. own_takes: the settings that a user's own function may take, of those in `Entry.takes`.
    """

    def __init__(
        self,
        kind: str,
        option: str,
        entries: Mapping[str, E],
        *,
        own: bool = True,
        auto: str = "",
        own_takes: tuple[str, ...] = (),
    ) -> None:
        self.kind, self.option, self.own, self.auto, self.own_takes = kind, option, own, auto, own_takes
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> E:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def described(self) -> str:
        """The names with what each is, for help."""
        return ", ".join(f"{name} ({entry.about})" for name, entry in self.items())

    @property
    def choices(self) -> tuple[str, ...]:
        """What may be chosen, as help and errors have it."""
        return (*(("auto",) if self.auto else ()), *self)

    @property
    def offers(self) -> tuple[str, ...]:
        """What completion offers: the same, with an example of each family."""
        return tuple(self[name].example or name if name in self else name for name in self.choices)

    def complete(self, incomplete: str) -> list[str]:
        """The names that begin so, for a shell."""
        return [name for name in (*self.offers, *sorted(self.installed())) if name.startswith(incomplete)]

    def installed(self) -> dict[str, list[EntryPoint]]:
        """The entry points that installed packages add, by name."""
        from importlib.metadata import entry_points  # takes a while, and is asked for rarely

        found: dict[str, dict[str, EntryPoint]] = {}
        for point in entry_points(group=f"lthfunc.{self.kind}"):
            found.setdefault(point.name, {})[point.value] = point
        return {name: list(points.values()) for name, points in found.items()}

    def known(self) -> list[str]:
        """What may be chosen, with what packages add."""
        return [*self.choices, *(name for name in sorted(self.installed()) if name not in self)]

    def spelled(self) -> tuple[list[str], list[str]]:
        """(the names that may be chosen as they are, regular expressions of the others), as JSON Schema has them."""
        families = {
            key: re.sub(r"\?P<\w+>", "", each.pattern) for key, each in self.items() if each.pattern is not None
        }
        return [name for name in self.known() if name not in families], [f"^{each}$" for each in families.values()]

    def find(self, name: str) -> tuple[E, dict[str, Any]] | None:
        """(the entry, the arguments that the name holds); None for a name that isn't in the table."""
        for key, entry in self._entries.items():
            if entry.pattern is None and key == name:
                return entry, {}
            if entry.pattern is not None and (found := re.fullmatch(entry.pattern, name)):
                return entry, {
                    part: int(text) if text.isdecimal() else text
                    for part, text in found.groupdict().items()
                    if text is not None
                }
        return None

    def is_own(self, name: str) -> bool:
        """Whether a name is that of a user's own function."""
        prefix = name.partition(":")[0]
        return self.own and is_own(name) and not any((each.pattern or "").startswith(prefix) for each in self.values())

    def about(self, name: str) -> str:
        """What a name is, in a line."""
        found = self.find(name)
        return "of your own" if found is None else found[0].about

    def takes(self, name: str) -> tuple[str, ...]:
        """The settings that a name takes and others of its kind don't."""
        found = self.find(name)
        return self.own_takes if found is None else found[0].takes

    def has(self, name: str) -> bool:
        """Whether a name may be chosen."""
        known = (self.auto and name == "auto") or self.find(name) is not None or self.is_own(name)
        return bool(known) or name in self.installed()

    def check(self, name: str) -> None:
        """Raise UserError for a name that nobody has."""
        if not self.has(name):
            raise unknown(self.option, name, self.known())

    def load(self, name: str) -> Any:
        """The function of a name, imported. Raises UserError where there is none, or it cannot be imported."""
        if (found := self.find(name)) is not None:
            return imported(found[0].target)
        if self.is_own(name):
            return load_plugin(self.option, name)
        if name not in (installed := self.installed()):
            raise unknown(self.option, name, [each for each in self.known() if each != "auto"])
        point, *others = installed[name]
        if others:
            values = " and ".join(each.value for each in (point, *others))
            raise UserError(f"{self.option}: several installed packages have a {name!r}: {values}; name one by that")
        try:
            return point.load()
        except (Exception, SystemExit) as error:
            package = "an installed package" if point.dist is None else f"the installed package {point.dist.name}"
            raise UserError(
                f"{self.option}: {name!r} of {package} cannot be imported{user_location(error)} ({first_line(error)})"
            ) from error

    def make(self, name: str, offered: Mapping[str, Any], returns: type | None = None) -> Any:
        """What a name stands for: its function, or what that makes of what it takes, by name, of `offered`.

        A function makes something if all of its parameters are offered or have defaults. returns: what the result
        returns when it is called; held to, with a clear line for whatever it raises, where it isn't the library's.
        """
        function, found = self.load(name), self.find(name)
        if found is None:
            made = function if taken(function, offered) is None else called(self.option, name, function, offered, {})
            return made if returns is None else guarded(self.option, name, made, returns)
        entry, parts = found
        names = taken(function, {*offered, *parts})
        if names is None:
            return function
        others = {each for entry in self.values() for each in entry.takes} - {*entry.takes}
        return function(**{each: parts.get(each) or offered[each] for each in names if each not in others})


def imported(target: str) -> Any:
    """What lies at an entry's target."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module, "lthfunc"), attribute)


def taken(function: Callable[..., Any], offered: Collection[str]) -> list[str] | None:
    """The parameters of a function that are offered; None where it needs others, so that it is not to be called."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # builtins may not tell
        return None
    others = [each for each in parameters if each.default is each.empty and each.name not in offered]
    if any(each.kind is not each.VAR_KEYWORD for each in others):
        return None
    return [each.name for each in parameters if each.name in offered]


class Offered(Mapping[str, Any]):
    """Values by name, each worked out when it is asked for."""

    def __init__(self, **values: Callable[[], Any]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
