"""Networks: plain nn.Modules, and the catalogue that fits them to a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lthfunc.lazy import table_of_contents

if TYPE_CHECKING:
    from lthfunc.models.factory import (
        alexnet as alexnet,
        build as build,
        build_for as build_for,
        char_transformer as char_transformer,
        conv2 as conv2,
        conv4 as conv4,
        conv6 as conv6,
        densenet121 as densenet121,
        lenet5 as lenet5,
        lenet5_wide as lenet5_wide,
        lenet300 as lenet300,
        resnet18 as resnet18,
        resnet20 as resnet20,
        resnet32 as resnet32,
        resnet34 as resnet34,
        resnet50 as resnet50,
        resnet56 as resnet56,
        vgg11 as vgg11,
        vgg13 as vgg13,
        vgg16 as vgg16,
        vgg19 as vgg19,
        vit_tiny as vit_tiny,
        wrn_22_2 as wrn_22_2,
        wrn_28_10 as wrn_28_10,
    )

__getattr__, __all__, __dir__ = table_of_contents(
    __name__,
    {
        "lthfunc.models.factory": (
            "build",
            "build_for",
            "lenet300",
            "lenet5",
            "lenet5_wide",
            "conv2",
            "conv4",
            "conv6",
            "alexnet",
            "vgg11",
            "vgg13",
            "vgg16",
            "vgg19",
            "resnet20",
            "resnet32",
            "resnet56",
            "resnet18",
            "resnet34",
            "resnet50",
            "wrn_22_2",
            "wrn_28_10",
            "densenet121",
            "vit_tiny",
            "char_transformer",
        )
    },
)
