"""Settings that go together, and gaps that are filled."""

from __future__ import annotations

from typing import Any

import pytest
from test_settings_edges import OWN

from lthfunc.catalog.training import SCHEDULES
from lthfunc.errors import UserError
from lthfunc.experiments.config import (
    Config,
)
from lthfunc.experiments.resolve import resolved

# ---- what goes together ----

#: (settings that don't go together, what is said, changes of which each makes them go together).
TOGETHER: list[Any] = [
    ({"epochs": 2, "steps": 9}, "--epochs and --steps: give one of them", [{"epochs": None}, {"steps": None}]),
    *(({"optimizer": name, "momentum": 0.5}, f"--momentum: requires --optimizer sgd or muon, not {name}",
       [{"momentum": 0.0}, {"optimizer": "sgd"}, {"optimizer": "muon"}, {"optimizer": OWN}])
      for name in ("adam", "adamw", "lion")),
    ({"optimizer": "sgd", "momentum": 0.0, "nesterov": True}, "--nesterov: requires a --momentum above 0",
     [{"momentum": 0.5}, {"nesterov": False}]),
    ({"weight_decay": 0.0, "no_decay": True}, "--no-decay: requires a --weight-decay above 0",
     [{"weight_decay": 0.5}, {"no_decay": False}]),
    ({"label_smoothing": 0.1, "loss": "mse"}, "--label-smoothing: requires --loss cross-entropy or next-token, not mse",
     [{"label_smoothing": 0.0}, {"loss": "auto"}, {"loss": "cross-entropy"}]),
    ({"density": 0.5, "densities": "0.5"}, "--density and --densities: give one",
     [{"density": None}, {"densities": None}]),
    ({"compact": True, "device": "cuda", "jobs": 2}, "--jobs: invalid value 2 .*1 with --compact",
     [{"compact": False}, {"device": "cpu"}, {"jobs": 1}, {"jobs": None}]),
    ({"executor": "slurm"}, "--executor: invalid value 'slurm' .*local, ray, or the address",
     [{"executor": "local"}, {"executor": "ray"}, {"executor": "ray://head-1.example:10001"}, {"executor": "ray://h:1"}]),
    ({"executor": "ray://h:123456"}, "--executor: ", [{"executor": "ray://h:12345"}]),
    ({"executor": "ray://h"}, "--executor: ", []),
    ({"energy": True, "executor": "ray"}, "--executor: invalid value 'ray' .*local with --energy",
     [{"energy": False}, {"executor": "local"}]),
    ({"country": "FRA"}, "--country: requires --energy", [{"country": None}, {"energy": True}]),
    ({"country": "FR", "energy": True}, "--country: invalid value 'FR' .*three letters",
     [{"country": "FRA"}, {"country": None}]),
    ({"country": "FRAN", "energy": True}, "--country: invalid value 'FRAN'", []),
    ({"country": "fra", "energy": True}, "--country: invalid value 'fra'", []),
    ({"energy": True, "jobs": 2}, "--jobs: invalid value 2 .*1 with --energy",
     [{"energy": False}, {"jobs": 1}, {"jobs": None}, {"device": "cuda"}]),
    ({"milestone": (3,)}, "--milestone: requires --schedule step", [{"milestone": ()}, {"schedule": "step"}]),
    ({"lr_final": 1e-9}, "--lr-final: requires --schedule step, cosine, .*, not constant",
     [{"lr_final": None}, *({"schedule": name} for name in SCHEDULES if name != "constant")]),
    ({"lr_final": 0.2, "lr": 0.1, "schedule": "cosine"}, "--lr-final: invalid value 0.2 .*from 0 to the --lr, 0.1",
     [{"lr_final": 0.1}, {"lr": 0.2}, {"lr_final": None}]),
    ({"layer_rate": {"a": 0.5}, "allocate": "uniform"}, "--layer-rate: requires --allocate layerwise",
     [{"layer_rate": {}}, {"allocate": "layerwise"}]),
    *(({"min_layer_weights": 1, "allocate": name},
       "--min-layer-weights: requires --allocate global, uniform, er, erk or balanced, not",
       [{"min_layer_weights": 0}, {"allocate": "global"}, {"allocate": "erk"}])
      for name in ("layerwise", "lamp", OWN)),
    *(({"allocate": "lamp", "score": name}, "--allocate: invalid value 'lamp' .*scores of at least 0",
       [{"allocate": "global"}, {"score": "magnitude"}, {"score": "snip"}, {"score": OWN}])
      for name in ("magnitude-increase", "movement", "grasp")),
    ({"exempt": ("fc1*",)},
     "--exempt: requires --structure per-output, units, heads, residual, groups, N:M or RxC, not unstr",
     [{"exempt": ()}, {"structure": "units"}, {"structure": "2:4"}]),
    ({"exempt": ("fc1*",), "structure": OWN}, "--exempt: requires --structure per-output, .*, not module:function",
     [{"exempt": ()}]),
    ({"group_multiple": 16}, "--group-multiple: requires --structure heads, residual or groups, not unstructured",
     [{"group_multiple": 1}, {"structure": "groups"}, {"structure": "residual"}]),
    ({"control": ("reinit", "random-mask", "reinit")}, "--control: invalid value 'reinit, .*each control once",
     [{"control": ("reinit", "random-mask")}, {"control": ()}]),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "words", "changes"), TOGETHER, ids=[each[1][:30] for each in TOGETHER])
def test_settings_go_together_or_are_refused(
    settings: dict[str, Any], words: str, changes: list[dict[str, Any]]
) -> None:
    with pytest.raises(UserError, match=f"^{words}"):
        resolved(Config(**settings))
    for change in changes:
        resolved(Config(**{**settings, **change}))


def test_gaps_are_filled_by_the_catalogue() -> None:
    """For what is not in it: Adam at 1.2e-3 on batches of 60 for ten epochs; for another optimiser its own rate."""
    plain = resolved(Config(arch=OWN, dataset="data.module:load"))
    assert (plain.arch, plain.dataset, plain.augment) == (OWN, "data.module:load", "none")
    assert (plain.optimizer, plain.lr, plain.batch_size, plain.epochs) == ("adam", 1.2e-3, 60, 10)
    assert (plain.momentum, plain.weight_decay, plain.steps) == (0.0, 0.0, None)
    rates = {
        "sgd": (0.05, 0.0),
        "adam": (1.2e-3, 0.0),
        "adamw": (1.2e-3, 0.0),
        "lion": (2e-4, 0.0),
        "muon": (0.02, 0.95),
    }
    rates |= {OWN: (1.2e-3, 0.0)}
    for name, (lr, momentum) in rates.items():
        found = resolved(Config(arch="resnet20" if name != "sgd" else "lenet5", dataset="cifar10", optimizer=name))
        assert (found.optimizer, found.lr, found.momentum, found.weight_decay) == (name, lr, momentum, 0.0)
        assert found.batch_size == (128 if name != "sgd" else 60)
    deep = resolved(Config(arch="resnet-20", dataset="CIFAR10"))
    assert (deep.arch, deep.dataset, deep.augment, deep.epochs) == ("resnet20", "cifar10", "flip-crop", 30)
    assert (deep.optimizer, deep.lr, deep.momentum, deep.weight_decay, deep.batch_size) == ("sgd", 0.01, 0.9, 1e-4, 128)
    own = resolved(
        Config(arch="resnet20", dataset="cifar10", optimizer="sgd", lr=0.5, momentum=0.25, weight_decay=0.125,
               batch_size=7, augment="none", steps=11)
    )  # fmt: skip
    assert (own.lr, own.momentum, own.weight_decay, own.batch_size, own.augment) == (0.5, 0.25, 0.125, 7, "none")
    assert (own.steps, own.epochs) == (11, None)
    assert resolved(Config(dataset="mnist")).augment == "none"
    assert resolved(Config(epochs=3)).epochs == 3
    with pytest.raises(UserError, match=r"^--arch: unknown name"):
        resolved(Config(arch="no-such-net"))


def test_a_density_is_reached_in_as_many_rounds() -> None:
    assert (1 - resolved(Config(density=0.1, rounds=4)).rate) ** 4 == pytest.approx(0.1)
    assert resolved(Config(density=0.1, rounds=0, rate=0.3)).rate == 0.3
    assert resolved(Config(rounds=3, rate=0.3)).rate == 0.3
    assert resolved(Config(densities=OWN, rounds=7)).rounds == 7
