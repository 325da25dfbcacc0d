"""Chains of optimiser parts on every engine: what the eager step gives, and the same bits after a pause."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import NormedNet, run
from test_engines import EVERY_QUICK, INTERPRETED, same_numbers, trainer
from test_runs import metrics, same_files

import lthfunc as lf
from lthfunc.scheduling.checkpointing import _CheckpointWriter
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


CASES = [
    pytest.param(*name.values, chain, marks=name.marks)
    for name in (*EVERY_QUICK, INTERPRETED) for chain in CHAINS
    if name.values != ("eager",) and (name.values != ("compile",) or chain == "machine")
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


class Killed(BaseException):
    """Ends a command in this process as a signal would."""


@pytest.mark.parametrize("engine", ["sparse", pytest.param("compile", marks=pytest.mark.long)])
def test_a_chain_of_options_goes_on_to_the_same_bits(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed once a checkpoint is written, and resumed by command."""
    words = (
        "prune --clip-norm 0.5 --accumulate 2 --ema 0.9 --method magnitude-init --density 0.3 --steps 4 --batch-size 30"
    )
    command = [*words.split(), "--checkpoint-every", 3, "--eval-every", 4, "--threads", 1, "--engine", engine]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(*command, "--out", whole) == 0
    write, seen = _CheckpointWriter.write, list[int]()

    def killing(self: Any, progress: Sequence[Any]) -> None:
        write(self, progress)
        seen.append(int(progress[0].fit.state.step))
        if seen == [3]:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(_CheckpointWriter, "write", killing)
        with pytest.raises(Killed):
            run(*command, "--out", cut)
    assert [*cut.glob("seed0/round01/checkpoint-*")]
    assert run("resume", cut) == 0
    assert metrics(cut) == metrics(whole)
    same_files(cut, whole)
