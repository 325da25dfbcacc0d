"""Which files of tests are most about a file of the library."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

#: What the library's tables have: file of a function -> names (or an example of a family) that choose it.
_TABLES = """
import json
from lthfunc.catalog import REGISTRIES
found = {}
for registry in REGISTRIES.values():
    for name, entry in registry.items():
        place = entry.target.partition(":")[0]
        place = f"lthfunc{place}" if place.startswith(".") else place
        found.setdefault(place.replace(".", "/") + ".py", []).append(entry.example or name)
print(json.dumps(found))
"""


def nearest(root: Path, files: Iterable[str], tests: Sequence[Path], count: int) -> list[Path]:
    """For each file the `count` of these files of tests that use most of its names, rare ones counting for more.

    Its names: what it defines, its own, and those that choose its functions in the library's tables.
    """
    chosen = json.loads(subprocess.check_output([sys.executable, "-c", _TABLES], cwd=root, text=True))
    words = {path: frozenset(_words_of(path.read_text(encoding="utf-8"))) for path in tests}
    common = Counter(word for each in words.values() for word in each)
    found: dict[Path, None] = {}
    for file in files:
        mine = {*_defined(root / file), Path(file).stem, *(f'"{name}"' for name in chosen.get(file, ()))}
        worth = {path: sum(1 / common[word] for word in mine & each) for path, each in words.items()}
        found |= dict.fromkeys(sorted(filter(worth.get, worth), key=worth.__getitem__, reverse=True)[:count])
    return list(found)


def _words_of(text: str) -> Iterator[str]:
    """Its words, and with their quotes its strings of one word."""
    yield from re.findall(r"\w+", text)
    yield from re.findall(r'"[^"\s]+"', text)


def _defined(file: Path) -> Iterator[str]:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name))
