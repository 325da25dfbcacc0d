"""Settings as options: each command gets the options of the settings that are declared for it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from lthfunc.errors import invalid
from lthfunc.experiments.config import FORMER_NAMES, SETTINGS, current_names, warn_of_former_names
from lthfunc.experiments.settings.setting import Setting, settings_of

from .parsing import names, number, whole

#: The settings that were given on the command line, as plain values by name.
Given = dict[str, Any]

_PARSERS: dict[type, Callable[[str], Any]] = {int: whole, float: number}


def with_settings(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a function's parameter `given`, for Typer, by an option for each of a command's settings."""

    def decorated(function: Callable[..., None]) -> Callable[..., None]:
        taken = {each.name: each for setting in settings_of(SETTINGS, command) for each in _parameters(setting)}
        parameters: list[inspect.Parameter] = []
        for each in inspect.signature(function, eval_str=True).parameters.values():
            parameters += taken.values() if each.name == "given" else [each.replace(kind=each.KEYWORD_ONLY)]

        @functools.wraps(function)
        def called(**values: Any) -> None:
            # Other options of the command may have the names of settings that it doesn't take.
            given, _ = given_of({name: values.pop(name) for name in taken})
            function(given=given, **values)

        del called.__wrapped__  # which Typer would ask for annotations
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return called

    return decorated


def given_of(values: Mapping[str, Any]) -> tuple[Given, dict[str, Any]]:
    """(the settings given, by their present names; everything else) of Typer's values. Raises UserError."""
    known = {name: value for name, value in values.items() if name in SETTINGS or name in FORMER_NAMES}
    typed = {name: value for name, value in known.items() if value not in (None, [], ())}
    warn_of_former_names(typed)
    given = {name: _table(SETTINGS[name], value) if SETTINGS[name].holds is dict else value
             for name, value in current_names(typed).items()}  # fmt: skip
    return given, {name: value for name, value in values.items() if name not in known}


@functools.cache
def _parameters(setting: Setting) -> list[inspect.Parameter]:
    """The option of a setting, and hidden ones by its former names.

    None means "not given": a configuration file or a default then decides.
    """
    kind: Any = str if setting.holds is dict else setting.item
    if setting.holds is not None:
        kind = list[kind]
    default = setting.shown_default
    offered = setting.choices or setting.offers

    def option(flags: str, *, hidden: bool) -> Any:
        return typer.Option(
            flags,
            parser=None if setting.holds is dict else _PARSERS.get(setting.item),
            metavar=setting.shown_metavar,
            help=setting.help if default is None else f"{setting.help} \\[default: {default}]",
            autocompletion=setting.names.complete if setting.names else names(*offered) if offered else None,
            rich_help_panel=setting.panel,
            hidden=hidden,
        )

    options = {setting.name: option(setting.flags, hidden=False)}
    options |= {former: option(f"--{former.replace('_', '-')}", hidden=True) for former in setting.former_names}
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, each])
        for name, each in options.items()
    ]


def _table(setting: Setting, texts: list[str]) -> dict[str, Any]:
    """NAME=VALUE each, or PATTERN=NUMBER. Raises UserError."""
    read = _number_of if setting.item is float else _text_of
    return dict(read(setting.option, text) for text in texts)


def _text_of(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise invalid(option, text, "NAME=VALUE, e.g. width=2")
    return name, value


def _number_of(option: str, text: str) -> tuple[str, float]:
    pattern, equals, rate = text.rpartition("=")
    try:
        value = float(rate)
    except ValueError:
        value = None
    if not equals or not pattern or value is None:
        raise invalid(option, text, "PATTERN=RATE, e.g. 'conv*=0.1'")
    return pattern, value
