"""All names as a page: ``python -m lthfunc.catalog > docs/reference/names.md``."""

from __future__ import annotations

from lthfunc.catalog import REGISTRIES

_HEAD = """# Names

Made from the tables in `lthfunc/catalog/`, by `python -m lthfunc.catalog`. Installed packages add names by entry points
of the group `lthfunc.KIND`, KIND being a heading below.
"""


def page() -> str:
    """The page, in Markdown."""
    parts = [_HEAD]
    for kind, names in REGISTRIES.items():
        own = ", `package.module:function` or `path/to/file.py:name`" if names.own else ""
        auto = f", `auto` ({names.auto})" if names.auto else ""
        rows = [_row(name, entry.about, entry.source) for name, entry in names.items()]
        parts.append("\n".join([f"## {kind}\n", f"`{names.option}` takes one of these{auto}{own}.\n",
                                "| name | what it is | from |", "|---|---|---|", *rows, ""]))  # fmt: skip
    return "\n".join(parts)


def _row(name: str, about: str, source: str) -> str:
    return f"| `{name}` | " + " | ".join(cell.replace("|", "\\|") for cell in (about, source)) + " |"


if __name__ == "__main__":
    print(page(), end="")
