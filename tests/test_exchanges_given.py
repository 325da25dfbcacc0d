"""Exchanges that users give: growth of their own, and masks for a layer in which nothing remains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from method_plans import plan_for
from test_exchanges import MODEL, fits, images, same, ticket
from torch import Tensor

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments.trials import check_growth
from lthfunc.sparse.kernels import build
from lthfunc.training.mask_updates import MaskUpdates, UpdateContext
from lthfunc.training.session import TrainingSession

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

OWN = """
import torch


def waves(step):
    return lambda params, masks: {
        name: torch.sin(step + torch.arange(float(mask.numel()))).view(mask.shape) for name, mask in masks.items()
    }


def told(lr, step):
    print(lr, step)
    return waves(step)


def rewound(anchor):
    return lambda params, masks: anchor


def short(step):
    return lambda params, masks: {name: params[name][:-1] for name in masks}
"""


def test_growth_of_ones_own_has_the_bits_of_dense_trees(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    starts = [ticket(seed, MODEL) for seed in (0, 1)]

    def plan(growth: str) -> Any:
        given: dict[str, Any] = {
            "steps": 12,
            "eval_every": 6,
            "batch_size": 8,
            "engine": "sparse",
            "density": 0.4,
            "update_every": 2,
        }
        return plan_for("set", MODEL, images(), **given, growth=f"{tmp_path}/own.py:{growth}")

    waves = plan("waves")
    (updates,) = waves.updates
    theirs = fits(waves.trainer, updates._replace(exchange=None), starts=starts)
    for mine, other in zip(fits(waves.trainer, updates, starts=starts), theirs, strict=True):
        assert same(mine, other)
        assert mine.changes[0].exchanged
    with pytest.raises(UserError, match=r"^growth: .* \(expected a leaf of shape \(5, 2, 3, 3\)"):
        fits(waves.trainer, plan("short").updates[0], starts=starts)


@pytest.mark.parametrize("method", ["set", "granet", "mest", "srigl", "cht"])
def test_growth_of_ones_own_is_given_the_learning_rate_of_its_step(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    given: dict[str, Any] = {"steps": 8, "eval_every": 8, "batch_size": 8, "density": 0.4, "update_every": 2}
    rates: dict[str, Any] = {"lr": 0.5, "schedule": "cosine", "update_until": 0.9}
    plan = plan_for(method, MODEL, images(), **given, **rates, growth=f"{tmp_path}/own.py:told")
    start = ticket(0, MODEL) if method != "granet" else lf.init(MODEL, 0)
    plan.updates[0].change(start, UpdateContext(0, 4, last=False))
    assert capsys.readouterr().out == f"{float(lf.cosine(0.5, 8)[4])} 4\n"


def test_growth_of_ones_own_has_no_anchor_and_is_tried_before_a_training(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    plan = plan_for("set", MODEL, images(), steps=8, eval_every=8, batch_size=8, density=0.4)
    check_growth(f"{tmp_path}/own.py:waves", plan, lf.constant(0.1))
    made = r"\(expected a function of \(params, masks\), or what makes it of .* lr, .* step\)"
    for name, words in {"short": "^growth: ", "rewound": f"^--growth: .*rewound.*{made}"}.items():
        with pytest.raises(UserError, match=words):
            check_growth(f"{tmp_path}/own.py:{name}", plan, lf.constant(0.1))


def test_places_of_ones_own_have_the_bits_of_dense_trees() -> None:
    def first(name: str, taken: Tensor, size: int, count: int) -> Tensor:
        """The first free ones, but for as many as the name has letters."""
        free = torch.ones(size, dtype=torch.bool).index_fill(0, taken, False).nonzero().flatten()
        return free.roll(-len(name))[:count].sort().values

    def change(state: lf.TrainState, now: UpdateContext) -> lf.TrainState:
        return lf.drop_and_grow(state, first, 0.3)

    trainer = lf.make_trainer(MODEL, images(), optimizer=lf.adam(0.01), batch_size=8, engine=lf.sparse_engine)
    updates = MaskUpdates((2, 6), change, exchange=lambda network, now: (first, 0.3))
    (mine,), (theirs,) = (fits(trainer, each, (0,)) for each in (updates, updates._replace(exchange=None)))
    assert same(mine, theirs)
    assert mine.changes[0].exchanged


def test_masks_may_keep_more_weights_than_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """At zero, whatever values are said to stay: of pruned weights there are none. A layer had lost all of its own."""
    trainer = lf.make_trainer(MODEL, images(), optimizer=lf.sgd(1e-9), batch_size=8, engine=lf.sparse_engine)
    start, grown = ticket(0, MODEL), ticket(1, MODEL).masks
    empty = {**start.masks, "7.weight": torch.zeros_like(start.masks["7.weight"])}
    start = start._replace(masks=empty, params=lf.apply_masks(start.params, empty))

    def change(state: lf.TrainState, now: UpdateContext) -> lf.TrainState:
        return lf.under_new_masks(state, lf.NewMasks(grown, grown))

    updates = MaskUpdates((6,), change, exchange=lambda network, now: lf.NewMasks(grown, grown))
    (theirs,) = fits(trainer, updates._replace(exchange=None), (0,), [start])
    monkeypatch.setattr(TrainingSession, "change_to", lambda *given: pytest.fail("dense trees were made"))
    (mine,) = fits(trainer, updates, (0,), [start])
    assert same(mine, theirs)
    assert (mine.state.params["7.weight"].abs() < 1e-6).all()
    assert mine.changes[0].layers["7.weight"].grown == int(grown["7.weight"].sum())
    assert lf.count(mine.state.masks).kept > lf.count(start.masks).kept
