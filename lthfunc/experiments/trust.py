"""Code that settings name: imported where its user typed it, and from a file only where that file is trusted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lthfunc.data.catalog import KINDS, SUFFIX
from lthfunc.errors import UserError
from lthfunc.experiments.config import is_own

#: Settings that may name a user's own function, to be imported.
_NAMES = ("arch", "dataset", "score", "allocate", "structure", "rewind", "densities", "optimizer", "loss", "metric")
#: Prefixes of names that no code of a user stands behind.
_OURS = {"arch": ("torchvision", "timm"), "dataset": tuple(KINDS)}


def code_in(values: Mapping[str, Any]) -> dict[str, str]:
    """The settings that name code to import, by name."""
    return {name: values[name] for name in _NAMES if _is_code(name, values.get(name))}


def check_trust(values: Mapping[str, Any], where: object, *, trusted: bool, typed: Collection[str] = ()) -> None:
    """Raise UserError where settings out of a file name code, unless it is trusted, or they were typed as well."""
    found = {name: value for name, value in code_in(values).items() if name not in typed}
    if found and not trusted:
        named = ", ".join(f"{name} = {value!r}" for name, value in found.items())
        raise UserError(
            f"{where}: names code that would be imported, {named}; look at it, and with --trust it is imported"
        )


def _is_code(name: str, value: object) -> bool:
    if not isinstance(value, str) or ":" not in value:
        return False
    prefix = value.partition(":")[0]
    if name in _OURS:  # whatever is neither ours nor a file of tensors is imported
        return prefix not in _OURS[name] and not value.endswith(SUFFIX)
    return is_own(value)
