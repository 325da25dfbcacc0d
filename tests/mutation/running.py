"""pytest, as mutants and their tests need it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from covering import Recorder

ROOT = Path(__file__).resolve().parent.parent.parent


@functools.cache
def source_of(file: str) -> bytes:
    """A file of the library as it was when this was first asked for: it may change while mutants are tried."""
    return (ROOT / file).read_bytes()


def run_pytest(arguments: Sequence[str], temporary: Path, plugin: object) -> int:
    """The exit status of pytest with a plugin; it ends with the first failure, but under a recorder."""
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(temporary) + "-hypothesis"
    # The project's own folder, which pytest puts first, has the library as it is, not the overlay's.
    places = f"pythonpath={os.environ['PYTHONPATH']} {ROOT}"
    return pytest.main(
        ["-o", places, "-q" if isinstance(plugin, Recorder) else "-qx", "--no-header", "-p", "no:cacheprovider",
         "-p", "no:xdist", "--hypothesis-seed=0", f"--basetemp={temporary}", *arguments],
        plugins=[plugin],
    )  # fmt: skip


class Ordered:
    """A plugin: tests in the order they are named in, and which one failed."""

    def __init__(self, names: list[str], known: Collection[str], out: Path) -> None:
        self._rank, self._known = {name: number for number, name in enumerate(names)}, known
        self._functions = {name.partition("[")[0] for name in names}
        self._out = out

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        mine = [item for item in items if item.nodeid in self._rank or self._is_new(item.nodeid)]
        items[:] = sorted(mine, key=lambda item: self._rank.get(item.nodeid, -1))

    def _is_new(self, name: str) -> bool:
        """Whether it is one of the tests named, of what the change has made its parameters."""
        return name not in self._known and name.partition("[")[0] in self._functions

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._out.write_text(report.nodeid)

    def pytest_sessionfinish(self, session: Any, exitstatus: int) -> None:
        sys.stdout.flush()
        os._exit(exitstatus)  # tests that close what pytest holds open would have it fail from here on


class Collected:
    """A plugin: do something else with the tests that were collected than to run them all."""

    def __init__(self, use: Callable[[dict[str, Any]], None]) -> None:
        self._use = use

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: Any) -> bool:
        self._use({item.nodeid: item for item in session.items})
        return True


def run_items(items: Sequence[Any], out: Path) -> int:
    """1 if one of some collected tests fails, of which the name is written to `out`, or 0. The first one ends them."""
    failed: list[str] = []

    class Noticing:
        def pytest_runtest_logreport(self, report: Any) -> None:
            failed.extend([report.nodeid] if report.failed else [])

    if items:
        items[0].config.pluginmanager.register(Noticing())
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if failed:
            out.write_text(failed[0])
            return 1
    return 0
