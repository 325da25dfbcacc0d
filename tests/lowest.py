"""The lowest declared version of every dependency, as constraints for pip: ``python tests/lowest.py > lowest.txt``.

docs/development/testing.md has the line that installs them into an environment of their own and runs the tests there.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_BOUND = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*])?\s*>=\s*([^;,\s]+)\s*(;.*)?")


def constraints(pyproject: str) -> list[str]:
    """``name==version``, and the marker where there is one, of each ``name>=version`` in a pyproject.toml."""
    project = tomllib.loads(pyproject)["project"]
    declared = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    found: dict[str, str] = {}
    for each in declared:
        if each.startswith(f"{project['name']}["):
            continue  # the project's own extras
        bound = _BOUND.fullmatch(each)
        if bound is None:
            raise ValueError(f"{each!r} declares no lowest version")
        name, version, marker = bound.groups()
        found.setdefault(name, f"{name}=={version}{f' {marker}' if marker else ''}")
    return list(found.values())


if __name__ == "__main__":
    print("\n".join(constraints((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())))
