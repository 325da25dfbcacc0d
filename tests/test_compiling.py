"""Compiled steps against eager ones, and life without a compiler."""

from __future__ import annotations

import pytest
import torch
from conftest import NormedNet

import lthfunc as lf
from lthfunc.training import compiling
from lthfunc.training.loop import make_trainer, take_steps
from lthfunc.trees import ops
from lthfunc.trees.types import Dataset

needs_compiler = pytest.mark.skipif(compiling.why_not("cpu") is not None, reason=f"{compiling.why_not('cpu')}")

#: Stated tolerance: Inductor contracts multiplications and additions, so results differ in the last bits, and
#: training carries such differences on. After 30 steps at a rate of 1e-3 they stay below this.
RELATIVE, ABSOLUTE = 1e-3, 1e-4


@needs_compiler
@pytest.mark.slow
def test_compiled_training_agrees_with_eager_and_repeats_its_bits(few_digits: Dataset) -> None:
    model = lf.from_module(NormedNet())
    start = lf.prune(fraction=0.5)(lf.init(model))
    before = ops.clone(start)
    results = {}
    for compile in (False, True):
        trainer = make_trainer(model, few_digits, optimizer=lf.adam(1e-3), batch_size=40, compile=compile)
        results[compile], _ = take_steps(trainer, start, seed=0, until=30)
        if compile:
            again, _ = take_steps(trainer, start, seed=0, until=30)
    assert lf.same_bits(again, results[True])
    assert lf.same_bits(start, before), "the compiled step is pure"
    eager, compiled = results[False], results[True]
    assert int(compiled.step) == 30
    for tree in ("params", "buffers"):
        for key, value in getattr(eager, tree).items():
            torch.testing.assert_close(getattr(compiled, tree)[key], value, rtol=RELATIVE, atol=ABSOLUTE)
    assert float(compiled.opt.beta1_power) == float(eager.opt.beta1_power)
    assert float(compiled.opt.beta2_power) == float(eager.opt.beta2_power)
    for key, mask in compiled.masks.items():
        assert lf.same_bits(mask, start.masks[key])
        assert not compiled.params[key][~mask].any()


@needs_compiler
@pytest.mark.slow
def test_two_compiled_models_in_one_process_stay_apart(few_digits: Dataset) -> None:
    """The skipped guards must not let one program run another one's step."""
    for hidden in ((1, 8, 8), 10), ((1, 8, 8), 11):
        model = lf.models.lenet300(*hidden)
        compiled = make_trainer(model, few_digits, optimizer=lf.sgd(0.01), batch_size=40, compile=True)
        eager = make_trainer(model, few_digits, optimizer=lf.sgd(0.01), batch_size=40)
        first, _ = take_steps(compiled, lf.init(model), seed=0, until=5)
        second, _ = take_steps(eager, lf.init(model), seed=0, until=5)
        for key, value in second.params.items():
            torch.testing.assert_close(first.params[key], value, rtol=RELATIVE, atol=ABSOLUTE)


def test_a_missing_compiler_is_said_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    compiling._why_no_host_compiler.cache_clear()
    try:
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert compiling.why_not("cpu") == "no C++ compiler was found (no-such-compiler)"
        compiling._why_no_host_compiler.cache_clear()
        monkeypatch.delenv("CXX")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert compiling.why_not("cpu") == "no C++ compiler was found (g++)"
    finally:
        compiling._why_no_host_compiler.cache_clear()
