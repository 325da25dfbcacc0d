"""Published methods as `lthfunc methods` compares them."""

from __future__ import annotations

from dataclasses import dataclass

from lthfunc.registry import Entry, Registry


@dataclass(frozen=True)
class MethodEntry(Entry):
    """why_not: a target, context -> why the method is not meaningful there, or None."""

    why_not: str | None = None


def _method(target: str, about: str, source: str = "", why_not: str = "") -> MethodEntry:
    """target, why_not: "module:function" in `experiments/courses`."""
    below = ".experiments.courses."
    return MethodEntry(below + target, about, source, why_not=below + why_not if why_not else None)


def _at_init(name: str, about: str, source: str, inverted: str = "its best weights pruned") -> dict[str, MethodEntry]:
    """A score at initialisation, and the controls of Frankle et al. 2021, sec. 5."""
    controls = "Frankle et al. 2021, sec. 5"
    return {
        name: _method(f"at_init:{name}", about, source),
        f"{name}-shuffled": _method(f"at_init:{name}_shuffled", "its masks shuffled within layers", controls),
        f"{name}-reinit": _method(f"at_init:{name}_reinit", "its masks on new weights", controls),
        f"{name}-inverted": _method(f"at_init:{name}_inverted", inverted, controls),
    }


#: (context, seed) -> outcome.
COURSES = Registry("methods", "--method", {
    "dense": _method("iterative:dense", "the whole network"),
    "imp": _method(
        "iterative:imp", "iterative magnitude pruning, rewound to the initial weights", "Frankle & Carbin 2019",
    ),
    "imp-late": _method("iterative:imp_late", "the same, rewound to 5 % of the training", "Frankle et al. 2020"),
    "imp-lr": _method(
        "iterative:imp_lr", "the same, with the learning rate rewound and the weights kept",
        "Renda et al. 2020, sec. 2",
    ),
    "imp-tuned": _method(
        "iterative:imp_tuned", "the same, fine-tuned at the last learning rate", "Renda et al. 2020, sec. 2",
        why_not="iterative:why_not_tuned",
    ),
    "imp-cyclic": _method(
        "iterative:cyclic", "imp-lr, each training several cycles of the learning rate", "Gadhikar et al. 2024",
        why_not="iterative:why_not_cyclic",
    ),
    "one-shot": _method("iterative:one_shot", "magnitude pruning after one training, rewound"),
    "early-bird": _method(
        "while_training:early_bird", "pruned as soon as the mask settles, and trained on", "You et al. 2020",
    ),
    "gradual": _method(
        "while_training:gradual", "Zhu & Gupta: pruned along a cubic during one training", "Zhu & Gupta 2017",
    ),
    "set": _method("while_training:set_", "SET: drop the small, regrow at random", "Mocanu et al. 2018"),
    "rigl": _method(
        "while_training:rigl", "RigL: drop the small, regrow where the gradient is large", "Evci et al. 2020",
    ),
    "ste": _method("through_masks:straight", "straight-through: the largest weights compute, all learn"),
    "supermask": _method(
        "through_masks:supermask", "Zhou et al.: random weights, a Bernoulli mask trained", "Zhou et al. 2019, sec. 5",
    ),
    "edge-popup": _method(
        "through_masks:edge_popup", "Ramanujan et al.: random signs, scores trained", "Ramanujan et al. 2020",
    ),
    **_at_init("snip", "SNIP at initialisation", "Lee et al. 2019"),
    **_at_init("grasp", "GraSP at initialisation", "Wang et al. 2020"),
    **_at_init("synflow", "SynFlow at initialisation, in --synflow-rounds", "Tanaka et al. 2020",
               "its best weights pruned, at once"),
    "magnitude-init": _method("at_init:magnitude_at_init", "magnitude at initialisation", "Frankle et al. 2021"),
    "random-uniform": _method("at_init:random_uniform", "random masks, the same density in every layer"),
    "random-erk": _method("at_init:random_erk", "random masks, layers by ERK", "Liu et al. 2022"),
    "random-balanced": _method(
        "at_init:random_balanced", "random masks, the same number in every layer", "Gadhikar et al. 2023",
    ),
    "iterative-random-erk": _method(
        "iterative:random_erk", "iterative random pruning by ERK, the weights kept", "Gadhikar et al. 2024",
    ),
    "iterative-random-balanced": _method(
        "iterative:random_balanced", "iterative random pruning, balanced, the weights kept", "Gadhikar et al. 2024",
    ),
})  # fmt: skip
