"""Networks: plain nn.Modules, and the catalogue that fits them to a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lthfunc.lazy import table_of_contents

if TYPE_CHECKING:
    from lthfunc.models.factory import (
        build as build,
        conv2 as conv2,
        conv4 as conv4,
        conv6 as conv6,
        lenet5 as lenet5,
        lenet300 as lenet300,
        resnet18 as resnet18,
        resnet20 as resnet20,
    )

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
