"""Which trackers there are, by the setting that asks for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lthfunc.catalog.deployment import TRACKERS
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config, to_mapping
from lthfunc.runs import safe_files
from lthfunc.tracking.interface import Sink, Tracker


def check_trackers(config: Config) -> None:
    """Raise UserError where a tracker's package is missing."""
    for name in TRACKERS:
        if getattr(config, name) and importlib.util.find_spec(name) is None:
            raise UserError(f"--{name}: needs the package {name} (pip install 'lthfunc[{name}]')")


@contextmanager
def tracking(config: Config, folder: Path) -> Iterator[list[Tracker]]:
    """Those that the settings ask for, as long as this lasts. Raises UserError where one cannot be had."""
    with ExitStack() as stack:
        found = []
        for name, entry in TRACKERS.items():
            if getattr(config, name):
                safe_files.check_tree(folder, folder / entry.place)
                sink: Sink = TRACKERS.load(name)(folder, to_mapping(config))
                stack.callback(sink.close)
                found.append(Tracker(sink))
        yield found
