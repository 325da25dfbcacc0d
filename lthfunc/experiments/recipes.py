"""The settings of recipes. Free of torch; options and files take precedence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lthfunc.catalog.recipes import RECIPES
from lthfunc.errors import unknown
from lthfunc.experiments.config import SETTINGS, replaced_by


def settings_of(name: str) -> dict[str, Any]:
    """The settings that a recipe fills in. Raises UserError for an unknown name."""
    found = dict(RECIPES[name].settings if name in RECIPES else RECIPES.make(name, {}))
    for each in found:
        if each not in SETTINGS:
            raise unknown(f"--recipe: {name}", each, SETTINGS)
    return found


def left_of(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings, without those that are given or replaced: its length by another one, its rates by densities.

    Raises UserError for an unknown name.
    """
    found = settings_of(name)
    other_optimizer = "optimizer" in given and given["optimizer"] != found.get("optimizer")
    gone = replaced_by(given) | {
        each
        for each in found
        if not given.keys().isdisjoint(SETTINGS[each].gives_way_to) or (other_optimizer and SETTINGS[each].of_optimizer)
    }
    return {each: value for each, value in found.items() if each not in gone}
