"""Chains of optimiser parts on every engine: what the eager step gives, and the same bits after a pause."""

from __future__ import annotations

import pytest
from conftest import NormedNet
from test_engines import OTHERS, same_numbers, trainer

import lthfunc as lf
from lthfunc.training.loop import fit, take_steps
from lthfunc.trees.ops import clone
from lthfunc.trees.types import Dataset, TrainState

#: What the sparse engine's machine computes, and what Python does for it.
MACHINE = lf.chain(
    lf.accumulate(2), lf.clip_by_value(0.1), lf.clip_by_global_norm(0.2),
    lf.adamw(lf.cosine(1e-2, 40), weight_decay=0.3, decays=lf.is_matrix), lf.ema(0.9),
)  # fmt: skip
PYTHON = lf.chain(
    lf.accumulate(2), lf.sam(0.1), lf.clip_by_global_norm(0.2), lf.sgd(1e-2, 0.9), lf.scale_rates({"fc*": 0.5}),
    lf.decay_weights(0.1, 1e-2, lf.is_matrix), lf.lookahead(3), lf.swa(5, 2),
)  # fmt: skip
CHAINS = {
    "machine": MACHINE,
    "python": PYTHON,
    "momentum": lf.chain(lf.clip_by_global_norm(0.2), lf.sgd(1e-2, 0.9), lf.ema(0.9, debias=False)),
}


def ticket() -> tuple[lf.Model, TrainState]:
    model = lf.from_module(NormedNet())
    return model, lf.prune(fraction=0.5)(lf.init(model))


#: Compiling takes most of the time, so one chain has to do.
CASES = [
    pytest.param(*name.values, chain, marks=name.marks)
    for name in OTHERS for chain in CHAINS if name.values != ("compile",) or chain == "machine"
]  # fmt: skip


@pytest.mark.parametrize(("name", "chain"), CASES)
def test_engines_equal_the_eager_step(few_digits: Dataset, name: str, chain: str) -> None:
    model, start = ticket()
    before, fits = clone(start), {}
    for engine in ("eager", name):
        work = trainer(model, few_digits, engine, CHAINS[chain], batch_size=20)
        fits[engine] = fit(work, start, seed=0, until=12, eval_every=4)
        part, _ = take_steps(work, start, seed=0, until=5)
        whole, _ = take_steps(work, part, seed=0, until=12)
        assert lf.same_bits(whole, fits[engine].state)
        assert lf.same_bits(start, before)
    ours, reference = fits[name], fits["eager"]
    same_numbers(ours.state, reference.state)
    for point, expected in zip(ours.curve, reference.curve, strict=True):
        assert point == pytest.approx(expected, rel=1e-3, abs=1e-3, nan_ok=True)
    average = lf.averaged(ours.state)
    for key, mask in average.masks.items():
        assert not average.params[key][~mask].any()
