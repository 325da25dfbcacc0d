"""Every name that is chosen by, kind by kind, with where its function lies. Free of torch.

Adding to a kind takes the function and its line here.
"""

from __future__ import annotations

from typing import Any

from lthfunc.catalog import data_sets, deployment, methods, networks, pruning, recipes, training
from lthfunc.registry import Registry

_MODULES = (pruning, recipes, training, methods, networks, data_sets, deployment, recipes)
#: By kind.
REGISTRIES: dict[str, Registry[Any]] = {
    each.kind: each for module in _MODULES for each in vars(module).values() if isinstance(each, Registry)
}
