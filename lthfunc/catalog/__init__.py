"""Every name that is chosen by, kind by kind, with where its function lies. Free of torch.

Adding to a kind takes the function and its line here.
"""

from typing import Any

from lthfunc.catalog.methods import METHODS
from lthfunc.catalog.pruning import ALLOCATIONS, CONTROLS, REWINDINGS, SCORES, STRUCTURES
from lthfunc.catalog.training import ENGINES, LOSSES, METRICS, OPTIMIZERS, SCHEDULES
from lthfunc.registry import Registry

_ALL = (SCORES, ALLOCATIONS, STRUCTURES, REWINDINGS, CONTROLS, OPTIMIZERS, SCHEDULES, LOSSES, METRICS, METHODS, ENGINES)
#: By kind.
REGISTRIES: dict[str, Registry[Any]] = {each.kind: each for each in _ALL}
