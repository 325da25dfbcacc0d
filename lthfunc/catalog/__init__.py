"""All names that can be chosen, by kind, with the locations of their functions. Free of torch.

To add a name, write the function and add its line here.
"""

from __future__ import annotations

from typing import Any

from lthfunc.catalog import data_sets, deployment, methods, networks, pruning, recipes, training
from lthfunc.registry import Registry

_MODULES = (pruning, recipes, training, methods, networks, data_sets, deployment)
#: All registries, by kind.
REGISTRIES: dict[str, Registry[Any]] = {
    each.kind: each for module in _MODULES for each in vars(module).values() if isinstance(each, Registry)
}
