"""Which settings need trust: code and services are used if the user typed them, or if the file is trusted."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from lthfunc.catalog.data_sets import FILE_KINDS, SUFFIX
from lthfunc.catalog.networks import PICKLED, TIMM_LOADS, ZOOS
from lthfunc.errors import UserError
from lthfunc.experiments.config import SETTINGS
from lthfunc.plugins import is_own

#: The settings that name networks, and those that name files of weights.
_NETWORKS, _WEIGHTS = ("arch", "teacher_arch"), ("weights", "teacher")
#: Prefixes of names that do not name a user's code.
_OURS = {
    **dict.fromkeys(_NETWORKS, tuple(name.partition(":")[0] for name in ZOOS)),
    "dataset": tuple(name.partition(":")[0] for name in FILE_KINDS),
}


def code_in(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """What settings import, and the pickled weights that they read, by setting."""
    found = {}
    for name, setting in SETTINGS.items():
        chosen = setting.chosen(values.get(name))
        if (setting.own or name in _WEIGHTS) and (named := [each for each in chosen if _is_code(name, each)]):
            found[name] = named
    for arch in _NETWORKS:
        options = values.get(f"{arch}_option")
        if str(values.get(arch)).startswith("timm:") and isinstance(options, Mapping):
            found |= {f"{arch}_option.{name}": [str(value)] for name, value in options.items() if name in TIMM_LOADS}
    return found


def places_in(values: Mapping[str, Any]) -> dict[str, str]:
    """The settings that connect to a service: to read data, to compute, or to log."""
    found = {name: value for name, value in _texts(values) if _is_elsewhere(name, value)}
    return found | ({"wandb": "true"} if values.get("wandb") is True else {})


def remember_code(values: Mapping[str, Any]) -> None:
    """Record the code in settings that have been checked or typed, so that its user isn't asked again."""
    if code := code_in(values):
        from lthfunc.experiments.known_code import remember  # not needed for --help

        remember(code, values)


def check_trust(values: Mapping[str, Any], where: object, *, trusted: bool, typed: Collection[str] = ()) -> None:
    """Raise UserError if settings from a file import code that its user has not run before, or connect to services.

    where: the file. trusted: whether they may. typed: settings that the user has typed too, which always may.
    """
    if trusted:
        return
    code = {name: named for name, named in code_in(values).items() if name.partition(".")[0] not in typed}
    if code and (asked := _asked(code, values)):
        words = _named({name: ", ".join(code[name]) for name in asked}, ())
        changed = " that has changed since you used it" if "changed" in asked.values() else ""
        what = "read pickled weights" if asked.keys() <= {*_WEIGHTS} else "import code"
        raise UserError(f"{where}: the settings {what}{changed}: {words}; check it, then allow it with --trust")
    places = _named(places_in(values), typed)
    if places:
        raise UserError(
            f"{where}: the settings connect to {places}; if you trust these services, allow them with --trust"
        )


def _asked(code: Mapping[str, list[str]], values: Mapping[str, Any]) -> dict[str, Literal["new", "changed"]]:
    from lthfunc.experiments.known_code import compared  # not needed for --help

    return compared(code, values)


def _named(found: Mapping[str, str], typed: Collection[str]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in found.items() if name.partition(".")[0] not in typed)


def _texts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The name and value of every text, including those within tables."""
    for name, value in values.items():
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{key}", each) for key, each in value.items() if isinstance(each, str))


def _is_elsewhere(name: str, value: str) -> bool:
    """Whether a text is an address, a Windows share, or a name on the Hugging Face Hub."""
    kind, _, rest = value.partition(":")
    if name == "dataset" and kind == "hf":
        return True
    if name in _NETWORKS and kind == "timm" and ":" in rest:  # hf-hub:SOMEBODY/NETWORK
        return True
    return re.search(r"://", value) is not None or re.match(r"([A-Za-z]+:)?(\\\\|//)", value) is not None


def _is_code(name: str, value: object) -> bool:
    if name in _WEIGHTS:
        return isinstance(value, str) and value.endswith(PICKLED)
    if not isinstance(value, str) or ":" not in value:
        return False
    prefix = value.partition(":")[0]
    if name in _OURS:  # anything but a listed name or a file of tensors is imported
        return prefix not in _OURS[name] and not value.endswith(SUFFIX)
    return is_own(value)
