"""Checks of settings against their types and ranges, for options, TOML files and run folders."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from lthfunc.errors import UserError, invalid, unknown
from lthfunc.experiments.config import SETTINGS, Config, current_names
from lthfunc.experiments.settings.setting import Setting
from lthfunc.plugins import OWN

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


def from_mapping(values: Mapping[str, Any]) -> Config:
    """A Config from plain values, e.g. of a TOML file; None means the default.

    Raises UserError, with the option and its range, for an unknown name or a value out of range.
    """
    from pydantic import ValidationError  # importing pydantic takes a tenth of a second, which would delay --help

    values = current_names(values)
    for name in values:
        if name not in SETTINGS:
            raise unknown("configuration", str(name), sorted(SETTINGS))
    given = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if value is not None
    }
    try:
        model = _model().model_validate(given)
    except ValidationError as error:
        raise _told(error) from None
    for name, value in given.items():
        _check_text(name, value)
    return Config(**{name: getattr(model, name) for name in model.model_fields_set})


def setting_value(name: str, text: str) -> Any:
    """Parse a setting's value from text. Its range is checked later, with all settings. Raises UserError."""
    setting = SETTINGS[name]
    if setting.holds is not None:
        raise invalid(setting.option, text, "a setting with a single value")
    if setting.item is bool:
        if text not in ("true", "false"):
            raise invalid(setting.option, text, "true or false")
        return text == "true"
    try:
        return setting.item(text)
    except ValueError:
        raise invalid(setting.option, text, _words(setting.item)) from None


def accepted(setting: Setting) -> str:
    """The values that a setting accepts, in words."""
    return _words(setting.kind)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of configuration files."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_model().model_json_schema()}
    for name, kind in schema["properties"].items():
        setting = SETTINGS[name]
        kind.pop("title")
        kind["description"] = setting.help
        if setting.choices:
            named, patterns = (setting.choices, ()) if setting.names is None else setting.names.spelled()
            names = {"enum": list(named)}
            others: list[str] = [*patterns, *([OWN] if setting.own else [])]
            choice: dict[str, Any] = names
            if setting.listed:
                one = "|".join([*map(re.escape, named), *(each.strip("^$") for each in others)])
                choice = {"type": "string", "pattern": f"^({one})(,({one}))*$"}
            elif others:
                choice = {"anyOf": [names, *({"type": "string", "pattern": each} for each in others)]}
            kind.pop("anyOf", None)
            if kind.pop("type", None) == "array":
                kind |= {"type": "array", "items": choice}
            else:
                kind |= choice
    return schema


@functools.cache
def _model() -> type[BaseModel]:
    """The pydantic model of `Config`: the same names, types, ranges and defaults."""
    from pydantic import ConfigDict, Field, create_model

    members: dict[str, Any] = {name: (each.kind, Field(each.value)) for name, each in SETTINGS.items()}
    rules = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, title="lthfunc configuration")
    return create_model("Settings", __config__=rules, **members)


def _told(error: ValidationError) -> UserError:
    first = error.errors(include_url=False, include_context=False)[0]
    name, *inside = first["loc"]
    value = first["input"]
    setting = SETTINGS[str(name)]
    if inside and isinstance(inside[0], str):
        value = f"{inside[0]}={value}"
    return invalid(setting.option, _short(value), accepted(setting))


class _Text(str):
    """Text that messages show without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _short(value: object) -> object:
    """A value, shortened to fit on a line."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python converts
        return _Text("of thousands of digits")
    return value if len(text) <= 80 else _Text(f"{text[:80]}…")


def _check_text(name: str, value: Any) -> None:
    """Raise UserError for text with control characters or lone surrogates."""
    texts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
    for text in texts:
        if isinstance(text, str) and any(unicodedata.category(each) in ("Cc", "Cs") for each in text):
            raise invalid(SETTINGS[name].option, _short(text), "text in UTF-8 without control characters")


def _words(kind: Any) -> str:
    """What a type accepts, in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = [part for part in parts[1:] if isinstance(part, (Ge, Gt, Le, Lt))]
        return _range(parts[0], bounds) if bounds else _words(parts[0])
    if origin is tuple:
        return "a list of strings" if parts[0] is str else f"a list, each {_words(parts[0])}"
    if origin is dict:
        return f"a table of names, each with {_words(parts[1])}"
    if parts:  # or None
        return _words(next(part for part in parts if part is not type(None)))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}[kind]


def _range(kind: type, bounds: Sequence[Any]) -> str:
    what = _words(kind)
    low: Any = next((bound for bound in bounds if isinstance(bound, (Ge, Gt))), None)
    high: Any = next((bound for bound in bounds if isinstance(bound, (Le, Lt))), None)
    if kind is int:
        return f"{what} from {low.ge:,} to {high.le:,}"
    if high is None:
        return f"{what} above {low.gt}" if isinstance(low, Gt) else f"{what} of at least {low.ge}"
    if isinstance(low, Gt) and isinstance(high, Lt):
        return f"{what} between {low.gt} and {high.lt}, both excluded"
    if isinstance(low, Gt):
        return f"{what} in ({low.gt}, {high.le}]"
    return f"{what} in [{low.ge}, {high.le}]" if isinstance(high, Le) else f"{what} in [{low.ge}, {high.lt})"
