"""Patterns of files, as options give them: one that no file fits is refused."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Callable, Sequence
from pathlib import Path

#: Folders, and of the sparse engine the files that change masks.
PACKAGES = (
    "lthfunc/sparsify", "lthfunc/training", "lthfunc/experiments", "lthfunc/energy", "lthfunc/sparse/new_masks.py",
    "lthfunc/sparse/exchange.py", "lthfunc/sparse/growth_gradients.py", "lthfunc/sparse/largest_gradients.py",
)  # fmt: skip


def library_files(root: Path) -> list[str]:
    """Those whose mutants are tried, as the option --only has them."""
    paths = (
        path for each in PACKAGES for path in ((root / each).rglob("*.py") if (root / each).is_dir() else [root / each])
    )
    return sorted(str(path.relative_to(root)) for path in paths)


def test_files(root: Path) -> list[str]:
    """As the option --tests has them: by their names in the folder."""
    return sorted(path.name for path in (root / "tests").glob("test_*.py"))


def pattern_among(files: Sequence[str], example: str) -> Callable[[str], str]:
    """An option's type: without a file nothing would be tried, and without a test every mutant would survive."""

    def checked(pattern: str) -> str:
        if not fnmatch.filter(files, pattern):
            raise argparse.ArgumentTypeError(f"invalid value {pattern!r} (expected a pattern that fits {example})")
        return pattern

    return checked
