"""Which network, and which of its parameters are pruned."""

from dataclasses import dataclass

from lthfunc.catalog.networks import ALIASES, NETWORKS, ZOOS
from lthfunc.experiments.settings.setting import FIRST, PRUNING, TRAINERS, WHAT, setting


@dataclass(frozen=True)
class Network:
    """Settings of the network."""

    arch: str = setting(
        "lenet300", "Network: one of `lthfunc archs`, torchvision:NAME, timm:NAME, module:function or "
        "path/to/file.py:name.",
        FIRST, TRAINERS, own=True, offers=(*NETWORKS.offers, *ALIASES, *ZOOS.offers),
    )  # fmt: skip
    arch_option: dict[str, str] = setting(
        {}, "Argument for the network, such as width=2; repeatable.", WHAT, (*TRAINERS, "archs"), "NAME=VALUE"
    )
    weights: str | None = setting(
        None, "Start from these weights instead of random ones: a state dict (.pth, .safetensors, …) or, for "
        "torchvision: and timm:, the name of downloaded weights, such as DEFAULT. An output layer of another size "
        "is initialised randomly.",
        WHAT, TRAINERS, path=True,
    )  # fmt: skip
    from_trained: bool = setting(
        False,
        "--weights are those of the trained network: round 0 only measures it; pruning and retraining follow, with "
        "--rewind lr by default.",
        WHAT, ("prune",), negated=False,
    )  # fmt: skip
    prune_only: tuple[str, ...] = setting(
        (), "Prune only the parameters whose names match, such as '*conv*'; repeatable.",
        PRUNING, ("prune", "methods"), "PATTERN", after="exempt",
        default="weights of linear, convolution, embedding and attention layers",
    )  # fmt: skip
    never_prune: tuple[str, ...] = setting(
        (), "Never prune the parameters whose names match, such as 'fc*'; repeatable.",
        PRUNING, ("prune", "methods"), "PATTERN", after="prune_only", former_names=("keep",),
    )  # fmt: skip
