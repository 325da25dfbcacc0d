"""The options that commands share: all settings, made from their declarations, and a few of the command line's own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from lthfunc.catalog.recipes import RECIPES
from lthfunc.errors import invalid
from lthfunc.experiments.config import SETTINGS, current_names, warn_of_former_names
from lthfunc.experiments.settings.setting import FIRST, RUN, WHAT, Setting, settings_of

T = TypeVar("T")

#: The settings that were given on the command line, as plain values by name.
Given = dict[str, Any]

Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help=f"Settings of a paper (`lthfunc recipes`): {', '.join(RECIPES)}. Other options and --config override it.",
        autocompletion=RECIPES.complete,
        rich_help_panel=WHAT,
    ),
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Read settings from this TOML file (layer_rate = {...}), or from a run's folder. Options typed here "
        "override it.",
        rich_help_panel=WHAT,
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Folder for the results, or an address (s3://…). It must be new or empty. "
        "\\[default: runs/NETWORK-DATASET-TIME]",
        rich_help_panel=FIRST,
    ),
]
Layers = Annotated[
    bool, typer.Option("--layers", help="Print the densities of all layers, however many.", rich_help_panel=RUN)
]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON.", rich_help_panel=RUN)]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Use code (file.py:name, module:function), pickled weights and services (s3://…, W&B, …) "
        "that a run or a file names. What you type here, and code that you have used before, needs no trust.",
        rich_help_panel=RUN,
    ),
]


class Shown(NamedTuple):
    """How results are printed."""

    json: bool
    layers: bool = False


class Sources(NamedTuple):
    """What a command's settings are made of: those that were typed, a recipe, and a file or a run's folder.

    trust: whether those of the file may import code and connect to services.
    """

    given: Given
    recipe: str | None = None
    path: str | None = None
    trust: bool = False


def _option(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


#: The options of `Sources`, after the settings.
_SOURCES = (_option("recipe", Recipe), _option("config", ConfigFile), _option("trust", Trust, False))


class InvalidValue(typer.BadParameter):
    """A value that an option's parser does not accept; Typer adds the option."""

    def __init__(self, value: str, expected: str) -> None:
        super().__init__(f"invalid value {value!r} (expected {expected})")
        self.value, self.expected = value, expected

    def format_message(self) -> str:
        """The line for users."""
        assert self.param is not None
        return str(invalid(self.param.opts[0], self.value, self.expected))


def _parser(read: Callable[[str], T], what: str) -> Callable[[str], T]:
    """A function that reads an option's value. Raises InvalidValue."""

    def parsed(text: str) -> T:
        try:
            return read(text)
        except ValueError:
            raise InvalidValue(text, what) from None

    return parsed


whole = _parser(int, "a whole number")
number = _parser(float, "a number")
#: A round's number, or "winning" or "last".
round_of_run = _parser(
    lambda text: text if text in ("winning", "last") else int(text), "a round's number, winning or last"
)


def _picture(text: str) -> Path:
    if not text.endswith((".png", ".svg")):
        raise ValueError
    return Path(text)


picture = _parser(_picture, "a name that ends in .png or .svg")
Plot = Annotated[
    Path | None,
    typer.Option("--plot", parser=picture, metavar="FILE", help="Draw the results to this file (.png or .svg)."),
]
_PARSERS: dict[type, Callable[[str], Any]] = {int: whole, float: number}


def option(flag: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    """An option of a command's own. more: as for `typer.Option`."""
    return typer.Option(flag, help=help, metavar=metavar, **more)


def whole_number(flag: str, help: str, metavar: str = "N") -> Any:
    """An option that takes a whole number."""
    return option(flag, help, metavar, parser=whole)


def check_least(*given: tuple[str, int | None, int]) -> None:
    """Raise UserError where a value is below its least: (option, value or None, least)."""
    for option, value, least in given:
        if value is not None and value < least:
            raise invalid(option, value, f"a whole number of at least {least}")


def names(*known: str) -> Callable[[str], list[str]]:
    """A completion function for these names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return complete


def with_settings(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a function's parameter `given` or `sources`, for Typer, by an option for each of a command's settings."""

    def decorated(function: Callable[..., None]) -> Callable[..., None]:
        taken = {
            each.name: each for setting in settings_of(SETTINGS, command) for each in _parameters(setting, command)
        }
        own = inspect.signature(function, eval_str=True).parameters
        parameters: list[inspect.Parameter] = []
        for each in own.values():
            if each.name in ("given", "sources"):
                parameters += [*taken.values(), *(_SOURCES if each.name == "sources" else ())]
            else:
                parameters.append(each.replace(kind=each.KEYWORD_ONLY))

        @functools.wraps(function)
        def called(**values: Any) -> None:
            # Other options of the command may have the names of settings that it doesn't take.
            given = _given_of({name: values.pop(name) for name in taken})
            if "sources" in own:
                values["sources"] = Sources(given, *(values.pop(each.name) for each in _SOURCES))
            else:
                values["given"] = given
            function(**values)

        del called.__wrapped__  # otherwise Typer would read the annotations from it
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return called

    return decorated


def _given_of(values: Mapping[str, Any]) -> Given:
    """The settings among Typer's values that were given, by their present names. Raises UserError."""
    typed = {name: value for name, value in values.items() if value not in (None, [], ())}
    warn_of_former_names(typed)
    return {name: _table(SETTINGS[name], value) if SETTINGS[name].holds is dict else value
            for name, value in current_names(typed).items()}  # fmt: skip


@functools.cache
def _parameters(setting: Setting, command: str) -> list[inspect.Parameter]:
    """The option of a setting, and hidden ones by its former names.

    None means "not given": a configuration file, the run that a command continues, or a default then decides.
    """
    kind: Any = str if setting.holds is dict else setting.item
    if setting.holds is not None:
        kind = list[kind]
    of_run = command in ("resume", "branch") or (command == "transfer" and not setting.follows_data)
    default = "the run's" if of_run else setting.shown_default
    flags = {setting.name: setting.flags, **{name: f"--{name.replace('_', '-')}" for name in setting.former_names}}
    options = {
        name: typer.Option(
            each,
            parser=None if setting.holds is dict else _PARSERS.get(setting.item),
            metavar=setting.shown_metavar,
            help=setting.help if default is None else f"{setting.help} \\[default: {default}]",
            autocompletion=_completion(setting),
            rich_help_panel=setting.panel,
            hidden=name != setting.name,
        )
        for name, each in flags.items()
    }
    return [_option(name, Annotated[kind | None, each]) for name, each in options.items()]


def _completion(setting: Setting) -> Callable[[str], list[str]] | None:
    """What completes a setting's value in a shell."""
    offered = setting.choices or setting.offers
    complete = setting.names.complete if setting.names else names(*offered) if offered else None
    if complete is None or not setting.listed:
        return complete

    def complete_last(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in complete(last)]

    return complete_last


def _table(setting: Setting, texts: list[str]) -> dict[str, Any]:
    """NAME=VALUE each, or PATTERN=NUMBER. Raises UserError."""
    numbers, found = setting.item is float, {}
    for text in texts:
        name, equals, value = text.rpartition("=") if numbers else text.partition("=")
        try:
            if not equals or not (name if numbers else name.isidentifier()):
                raise ValueError
            found[name] = float(value) if numbers else value
        except ValueError:
            example = "size=32" if setting.name == "dataset_option" else "width=2"
            expected = "PATTERN=RATE, e.g. 'conv*=0.1'" if numbers else f"NAME=VALUE, e.g. {example}"
            raise invalid(setting.option, text, expected) from None
    return found
