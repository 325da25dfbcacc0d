"""Packages whose names are imported on first use.

``import lthfunc`` then costs nothing (torch takes over a second), and the command line answers at once.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ForwardRef


def lazy_exports(
    package: str, more: Mapping[str, Iterable[str]] = {}
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The package's ``__getattr__`` and ``__dir__``, for the names that it imports as themselves for type checkers.

    more: further names, by module. What is fetched prints a signature for people.
    """

    @functools.cache
    def homes() -> dict[str, str]:
        """name -> module. Read from the source when a name is first asked for."""
        tree = ast.parse(inspect.getsource(sys.modules[package]))
        found = {
            alias.name: str(node.module)
            for block in tree.body if isinstance(block, ast.If)
            for node in block.body if isinstance(node, ast.ImportFrom)
            for alias in node.names if alias.asname == alias.name
        }  # fmt: skip
        return found | {name: module for module, names in more.items() for name in names}

    def getattribute(name: str) -> Any:
        if name == "__all__":
            return list(homes())
        if name.startswith("__") or name not in homes():
            import difflib  # which an import need not wait for

            near = [] if name.startswith("_") else difflib.get_close_matches(name, homes(), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")
        if homes()[name] == package:  # a submodule
            return importlib.import_module(f"{package}.{name}")
        found = getattr(importlib.import_module(homes()[name]), name)
        _make_readable(found)
        if inspect.isclass(found) and found.__module__.startswith("lthfunc."):
            _make_help_readable(found)
        return found

    def directory() -> list[str]:
        inner = vars(sys.modules[package])
        return sorted([*homes(), *(name for name in inner if name.startswith("__"))])

    return getattribute, directory


class _Readable(inspect.Signature):
    """A signature that prints its defaults by their names, and annotations as they were written."""

    def __str__(self) -> str:
        return str(_named(self))

    def format(self, **how: Any) -> str:
        return _named(self).format(**how)  # type: ignore[attr-defined, no-any-return, unused-ignore]


class _Text(str):
    """Text that prints as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _make_readable(found: Any) -> None:
    """Give a function or class such a signature, where it has one of its own."""
    if isinstance(getattr(found, "__signature__", None), _Readable) or not callable(found):
        return
    try:
        signature = inspect.signature(found)
        found.__signature__ = _Readable(
            list(signature.parameters.values()), return_annotation=signature.return_annotation
        )
    except (TypeError, ValueError, AttributeError):  # aliases of types, and exceptions, have none
        return


def _make_help_readable(found: Any) -> None:
    """Have `help` print a class's methods so, and what a named tuple knows of its fields."""
    for member in list(vars(found).values()):
        function = getattr(member, "__func__", member)
        if inspect.isfunction(function):
            _make_readable(function)
    if "_field_defaults" in vars(found):
        found._field_defaults = _Defaults(found._field_defaults)
    if annotations := inspect.get_annotations(found):
        found.__annotations__ = {name: _written(each) for name, each in annotations.items()}


class _Defaults(dict[str, Any]):
    """Fields' defaults, which print as those of a signature do."""

    def __repr__(self) -> str:
        return repr({name: _default(value) for name, value in self.items()})


def _named(signature: inspect.Signature) -> inspect.Signature:
    parameters = [
        parameter.replace(annotation=_written(parameter.annotation), default=_default(parameter.default))
        for parameter in signature.parameters.values()
    ]
    return inspect.Signature(parameters, return_annotation=_written(signature.return_annotation))


def _written(annotation: Any) -> Any:
    if isinstance(annotation, ForwardRef):
        return _Text(annotation.__forward_arg__)
    return _Text(annotation) if isinstance(annotation, str) else annotation


def _default(value: Any) -> Any:
    """A default that prints without addresses: a function by its name, what holds functions by its type's."""
    if " at 0x" not in repr(value):
        return value
    name = getattr(value, "__name__", f"{type(value).__name__}(…)")
    return _Text("…" if name == "<lambda>" else name)
