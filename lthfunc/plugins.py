"""A user's own functions, named on the command line: ``module:function`` or ``path/to/file.py:name``."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from lthfunc.errors import UserError, did_you_mean, invalid, unknown
from lthfunc.printable import a_or_an
from lthfunc.tracebacks import call_user_function, first_line, is_library_function, user_location

#: Pattern of the name of a user's own function.
OWN = r"^(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*$"


def is_own(name: str) -> bool:
    """Whether a name is a user's own function, module:function or path/to/file.py:name."""
    return re.fullmatch(OWN, name) is not None


def load_plugin(option: str, name: str) -> Callable[..., Any]:
    """Import a function; the working directory is searched, as by `python -m`.

    Raises UserError if it cannot be imported, with the line in the user's code that fails.
    """
    module_name, _, attribute = name.rpartition(":")
    path = not module_name.endswith(".py") and (module_name.startswith(".") or "/" in module_name)
    if not module_name or not attribute or path:
        raise invalid(option, name, "a listed name, module:function or path/to/file.py:name")
    try:
        module = _from_file(module_name) if module_name.endswith(".py") else _imported(module_name)
        function = getattr(module, attribute, None)
    except (Exception, SystemExit) as error:
        raise UserError(f"{option}: cannot import {name!r}{user_location(error)} ({first_line(error)})") from error
    if function is None:
        hint = did_you_mean(attribute, [each for each, found in vars(module).items() if callable(found)])
        raise UserError(f"{option}: cannot import {name!r} ({module_name} has no {attribute!r}{hint})")
    if not callable(function):
        raise UserError(f"{option}: {name!r} is not a function")
    return function  # type: ignore[no-any-return]


def guarded(option: str, name: str, function: Callable[..., Any], returns: type) -> Callable[..., Any]:
    """Wrap a user's function: what it raises, or a result of another type, becomes an error of one line."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        result = call_user_function(option, name, lambda: function(*arguments))
        if not isinstance(result, returns):
            raise UserError(
                f"{option}: {name!r} returned {a_or_an(type(result).__name__)}, not {a_or_an(returns.__name__)}"
            )
        return result

    return call


def parameters_of(option: str, name: str, function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Those of a user's function. Raises UserError where it has no signature, as Python 3.10's `print` has none."""
    try:
        return inspect.signature(function).parameters
    except ValueError as error:
        raise UserError(f"{option}: {name!r} doesn't say which arguments it takes") from error


def called(
    option: str, name: str, function: Callable[..., Any], offered: Mapping[str, Any], given: Mapping[str, str] | None
) -> Any:
    """Call a user's function with those of the `offered` arguments that its signature has, and with what the user gave.

    given: name -> text, read as a Python literal if it is one; None where nothing can be given. Raises UserError for a
    given argument that the function doesn't have, for one that it needs but isn't offered, and for whatever it raises,
    with the line in the user's code.
    """
    parameters = parameters_of(option, name, function).values()
    named = {each.name: each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    anything = any(each.kind is each.VAR_KEYWORD for each in parameters)
    options = f"{option}-option" if option.startswith("--") else f"{option}_option"
    for key in given or ():
        if key not in named and not anything:
            mine = [each for each in named if each not in offered]
            if not mine:
                raise invalid(options, key, f"nothing with {name}")
            raise unknown(options, key, mine)
    arguments = {key: offered[key] for key in named if key in offered}
    arguments |= {key: _literal(text) for key, text in (given or {}).items()}
    missing = [key for key, each in named.items() if each.default is each.empty and key not in arguments]
    if missing:
        more = f", and options such as {missing[0]}=VALUE" if given is not None else ""
        raise UserError(f"{option}: {name!r} needs {', '.join(missing)}; it is offered {', '.join(offered)}{more}")
    try:
        return function(**arguments)
    except UserError as error:
        if is_library_function(function) or str(error).startswith(f"{option}:"):
            raise
        raise type(error)(f"{option}: {name!r}: {error}") from error
    except (Exception, SystemExit) as error:
        what = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UserError(
            f"{option}: {name!r} called with {what} fails{user_location(error)}: {first_line(error)}"
        ) from error


def _imported(name: str) -> ModuleType:
    _search(Path.cwd())
    return importlib.import_module(name)


def _search(folder: Path) -> None:
    """Let modules be imported from a folder, as from that of a script."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _from_file(path: str) -> ModuleType:
    """The module in a file, imported once under a unique name."""
    file = Path(path).resolve()
    name = f"lthfunc_user_{file.stem}_{abs(hash(str(file)))}"
    if name in sys.modules:
        return sys.modules[name]
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _search(file.parent)  # its neighbours
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
