"""The lowerings by operation. An operation that is missing here has none, and its network uses another engine."""

from __future__ import annotations

import importlib
import pkgutil

from lthfunc.sparse import lowerings
from lthfunc.sparse.lowerings.interface import LOWERINGS as LOWERINGS

for _module in pkgutil.iter_modules(lowerings.__path__):
    importlib.import_module(f"{lowerings.__name__}.{_module.name}")
