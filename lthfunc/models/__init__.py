"""Networks: plain nn.Modules, and what fits them to a data set. Each network of the catalogue is a function here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lthfunc.catalog.networks import NETWORKS
from lthfunc.lazy import lazy_exports

if TYPE_CHECKING:
    from collections.abc import Callable

    from lthfunc.models.factory import build as build, build_for as build_for
    from lthfunc.trees.model import Model

    def __getattr__(name: str) -> Callable[..., Model]: ...
else:
    __getattr__, __dir__ = lazy_exports(
        __name__, {"lthfunc.models.factory": [name.replace("-", "_") for name in NETWORKS]}
    )
