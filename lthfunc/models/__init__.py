"""Networks: plain nn.Modules, and the catalogue that fits them to a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lthfunc.lazy import table_of_contents

if TYPE_CHECKING:
    from lthfunc.models.factory import build, conv2, conv4, conv6, lenet5, lenet300, resnet18, resnet20

__getattr__, __all__ = table_of_contents(
    __name__,
    {
        "lthfunc.models.factory": (
            "build",
            "lenet300",
            "lenet5",
            "conv2",
            "conv4",
            "conv6",
            "resnet20",
            "resnet18",
        )
    },
)
