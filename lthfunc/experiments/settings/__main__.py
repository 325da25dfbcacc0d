"""All settings as a page: ``python -m lthfunc.experiments.settings > docs/reference/settings.md``."""

from __future__ import annotations

from collections.abc import Callable

from lthfunc.experiments.config import SETTINGS
from lthfunc.experiments.schema import accepted
from lthfunc.experiments.settings.setting import Setting, in_help_order

_HEAD = """# Settings

Made from the declarations in `lthfunc/experiments/settings/`, by `python -m lthfunc.experiments.settings`.

A setting is an option of the command line (`--batch-size`), a key of a configuration file (`batch_size`) and a field of
`Config`, with the same range and default in all of them. `lthfunc config --schema` prints them as a JSON Schema.
"""

#: Sentences about groups of settings, and which settings each is about.
_GROUPS: dict[str, Callable[[Setting], bool]] = {
    "These change no result, so `lthfunc resume` takes them, and they may change when a run is resumed": lambda each: (
        not each.changes_results
    ),
    "These are not reported as differences between runs": lambda each: not each.is_difference,
    "These may name a function of your own, `package.module:function` or `path/to/file.py:name`": lambda each: each.own,
    "If these are left open, a run decides them at its start and keeps them": lambda each: each.decided,
    "These belong to a data set, so `lthfunc transfer` starts from their defaults": lambda each: each.follows_data,
}


def page() -> str:
    """The page, in Markdown."""
    parts = [_HEAD]
    for panel in dict.fromkeys(each.panel for each in SETTINGS.values()):
        rows = [_row(each) for each in in_help_order(SETTINGS) if each.panel == panel]
        parts.append("\n".join([f"## {panel}\n", "| setting | takes | default | what it is | commands |",
                                "|---|---|---|---|---|", *rows, ""]))  # fmt: skip
    parts.append("## Together\n")
    for words, belongs in _GROUPS.items():
        names = ", ".join(f"`{name}`" for name, each in SETTINGS.items() if belongs(each))
        parts.append(f"- {words}: {names}.")
    return "\n".join(parts) + "\n"


def _row(setting: Setting) -> str:
    takes = ", ".join(setting.choices) or accepted(setting)
    default = str(setting.value).lower() if isinstance(setting.value, bool) else setting.shown_default or "–"
    formerly = "".join(f" (formerly `{name}`)" for name in setting.former_names)
    commands = [*setting.commands, *([] if setting.changes_results else ["resume"])]
    cells = (f"`{setting.name}`{formerly}", takes, default, setting.help, ", ".join(commands))
    return "| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |"


if __name__ == "__main__":
    print(page(), end="")
