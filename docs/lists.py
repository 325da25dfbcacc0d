"""Pages of the reference that list all settings and all names: ``python docs/lists.py`` writes them again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lthfunc.catalog import REGISTRIES
from lthfunc.experiments.config import SETTINGS
from lthfunc.experiments.schema import accepted
from lthfunc.experiments.settings.setting import Setting, in_help_order

_NAMES = """# Names

Made from the tables in `lthfunc/catalog/`, by `python docs/lists.py`. Installed packages add names by entry points
of the group `lthfunc.KIND`, KIND being a heading below.
"""

_SETTINGS = """# Settings

Made from the declarations in `lthfunc/experiments/settings/`, by `python docs/lists.py`.

A setting is an option of the command line (`--batch-size`), a key of a configuration file (`batch_size`) and a field of
`Config`, with the same range and default in all of them. `lthfunc config --schema` prints them as a JSON Schema.
"""

#: Sentences about groups of settings, and which settings each is about.
_GROUPS: dict[str, Callable[[Setting], bool]] = {
    "These change no result, so `lthfunc resume` takes them, and they may change when a run is resumed": lambda each: (
        not each.changes_results
    ),
    "These are not reported as differences between runs": lambda each: not each.is_difference,
    "These may name a function of your own, `module:function` or `path/to/file.py:name`": lambda each: each.own,
    "If these are left open, a run decides them at its start and keeps them": lambda each: each.decided,
    "These belong to a data set, so `lthfunc transfer` starts from their defaults": lambda each: each.follows_data,
}


def names() -> str:
    """The page of names, in Markdown."""
    parts = [_NAMES]
    for kind, table in REGISTRIES.items():
        own = ", `module:function` or `path/to/file.py:name`" if table.own else ""
        auto = f", `auto` ({table.auto})" if table.auto else ""
        rows = [_name(name, entry.about, entry.source) for name, entry in table.items()]
        parts.append("\n".join([f"## {kind}\n", f"`{table.option}` takes one of these{auto}{own}.\n",
                                "| name | what it is | from |", "|---|---|---|", *rows, ""]))  # fmt: skip
    return "\n".join(parts)


def _name(name: str, about: str, source: str) -> str:
    return f"| `{name}` | " + " | ".join(cell.replace("|", "\\|") for cell in (about, source)) + " |"


def settings() -> str:
    """The page of settings, in Markdown."""
    parts = [_SETTINGS]
    for panel in dict.fromkeys(each.panel for each in SETTINGS.values()):
        rows = [_setting(each) for each in in_help_order(SETTINGS) if each.panel == panel]
        parts.append("\n".join([f"## {panel}\n", "| setting | takes | default | what it is | commands |",
                                "|---|---|---|---|---|", *rows, ""]))  # fmt: skip
    parts.append("## Together\n")
    for words, belongs in _GROUPS.items():
        names = ", ".join(f"`{name}`" for name, each in SETTINGS.items() if belongs(each))
        parts.append(f"- {words}: {names}.")
    return "\n".join(parts) + "\n"


def _setting(setting: Setting) -> str:
    takes = ", ".join(setting.choices) or accepted(setting)
    default = str(setting.value).lower() if isinstance(setting.value, bool) else setting.shown_default or "–"
    formerly = "".join(f" (formerly `{name}`)" for name in setting.former_names)
    commands = [*setting.commands, *([] if setting.changes_results else ["resume"])]
    cells = (f"`{setting.name}`{formerly}", takes, default, setting.help, ", ".join(commands))
    return "| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |"


if __name__ == "__main__":
    for name, page in {"names": names, "settings": settings}.items():
        Path(__file__).with_name("reference").joinpath(f"{name}.md").write_text(page(), encoding="utf-8")
