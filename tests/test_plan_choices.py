"""Plans out of settings: engines, threads and devices chosen by rules."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import data, settings

from lthfunc.distributed.collectives import Collectives
from lthfunc.errors import UserError
from lthfunc.experiments import devices, engine_choice
from lthfunc.experiments.config import applied
from lthfunc.training.losses import cross_entropy
from lthfunc.training.optimizers import adam


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"executor": "ray"}, "--executor: invalid value 'ray' .*local on several ranks"),
        ({"jobs": 2}, "--jobs: invalid value 2 .*1 on several ranks"),
        ({"energy": True}, "--energy: measures one process"),
        ({"compact": True}, "--compact: does not work on several ranks"),
        ({"engine": "sparse"}, "--engine: invalid value 'sparse' .*auto, eager or compile on several"),
        ({"engine": "sparse/eager"}, "--engine: invalid value 'sparse/eager'"),
        ({"device": "cuda:1"}, "--device: invalid value 'cuda:1' .*each of which takes its own GPU"),
        ({"batch_size": 7}, "batch_size: 7 examples don't divide among 2 ranks"),
    ],
)
def test_what_one_training_on_several_ranks_cannot_be(change: dict[str, Any], words: str) -> None:
    two = Collectives(0, 2, lambda vector: vector)
    devices._check_ranks(settings(batch_size=8, jobs=1), two)
    devices._check_ranks(settings(batch_size=8, engine="compile", device="cpu"), two)
    with pytest.raises(UserError, match=f"^{words}"):
        devices._check_ranks(settings(**{"batch_size": 8, **change}), two)


def _engine_chosen(
    monkeypatch: pytest.MonkeyPatch, *, compiler: bool = True, prebuilt: bool = False, sparse: bool = True, **given: Any
) -> Any:
    monkeypatch.setattr(engine_choice, "why_not", lambda device: None if compiler else "no compiler")
    monkeypatch.setattr(engine_choice, "why_no_kernels", lambda: None if compiler or prebuilt else "no compiler")
    monkeypatch.setattr(
        engine_choice, "why_not_sparse", lambda work, shape, kind: None if sparse else "dense is faster"
    )
    outside, ranks, steps = given.pop("outside", ()), given.pop("ranks", 1), given.pop("steps", 1000)
    work: Any = SimpleNamespace(
        side_effects=SimpleNamespace(global_rngs=outside),
        model=SimpleNamespace(name="net"),
        loss=cross_entropy,
        optimizer=adam(1e-3),
        collectives=SimpleNamespace(world_size=ranks),
    )
    config = settings(**given)
    config = replace(config, device=given.get("device", "cpu"))
    decisions = engine_choice.decide_engine(config, steps, work, data())
    notes = [each.reason for each in decisions if each.notable]
    return applied(config, decisions).engine, notes[0] if notes else None


def test_auto_counts_the_steps_of_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = partial(_engine_chosen, monkeypatch)
    assert chosen(rounds=2) == ("sparse/compile", None)
    assert chosen(rounds=2, sparse=False) == ("compile", None)
    assert chosen(rounds=2, ranks=2) == ("compile", None)
    for instructions, engine in ((True, "compile"), (False, "sparse/compile")):
        monkeypatch.setattr(engine_choice, "has_bf16_products", lambda instructions=instructions: instructions)
        assert chosen(rounds=2, precision="bf16") == (engine, None)
        assert chosen(engine="sparse", precision="bf16") == ("sparse", None)
    assert chosen(rounds=2, steps=999) == ("eager", None)
    assert chosen(rounds=1, control=("reinit",)) == ("sparse/compile", None)  # three trainings of 1,000 steps
    assert chosen(rounds=1, control=("reinit",), steps=999) == ("eager", None)
    assert chosen(rounds=0, replicates=3) == ("sparse/compile", None)
    assert chosen(rounds=0, replicates=3, control=("reinit",), steps=999) == ("eager", None)
    engine, note = chosen(rounds=2, compiler=False)
    assert engine == "eager"
    assert "not compiled: no compiler; running eagerly" in note
    assert chosen(rounds=2, compiler=False, prebuilt=True) == ("sparse/eager", None)
    assert chosen(rounds=2, outside=("numpy", "random")) == ("eager", "not compiled: net draws from numpy and random")
    for name in ("eager", "compile", "sparse", "sparse/eager"):
        assert chosen(engine=name, steps=1) == (name, None)
    assert chosen(engine="eager", compiler=False, steps=10**6) == ("eager", None)
    with pytest.raises(
        UserError, match=r"^--engine: invalid value 'compile' .*eager on this machine, since no compiler"
    ):
        chosen(engine="compile", compiler=False)
    with pytest.raises(UserError, match="dense is faster"):
        chosen(engine="sparse", sparse=False)
    with pytest.raises(UserError, match=r"^--engine: invalid value 'sparse' .*eager or compile with --device cuda"):
        chosen(engine="sparse", device="cuda")
    assert chosen(rounds=2, device="cuda") == ("compile", None)


def test_threads_are_for_large_networks_and_the_sparse_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(engine_choice, "usable_cores", lambda: 6)
    work: Any = SimpleNamespace(model=None)

    def threads(given: dict[str, Any]) -> Any:
        (decision,) = engine_choice.decide_threads(settings(**given), work, data())
        return decision.value

    for sparse, flops, given, expected in (
        (False, 1e9 - 1, {}, 1), (False, 1e9, {}, 6), (True, 0, {"replicates": 2}, 3), (True, 0, {"replicates": 9}, 1),
        (True, 0, {"replicates": 2, "control": ("reinit",)}, 1), (True, 0, {"replicates": 9, "jobs": 3}, 2),
    ):  # fmt: skip
        monkeypatch.setattr(engine_choice, "always_sparse", lambda engine, model, shape, sparse=sparse: sparse)
        monkeypatch.setattr(engine_choice, "flops_per_step", lambda model, shape, size, flops=flops: flops)
        assert threads(given) == expected, (sparse, flops, given)
    monkeypatch.setattr(engine_choice, "usable_cores", lambda: 20)
    monkeypatch.setattr(engine_choice, "flops_per_step", lambda model, shape, size: 1e12)
    monkeypatch.setattr(engine_choice, "always_sparse", lambda engine, model, shape: False)
    assert threads({}) == 8


def test_devices_are_there_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose_device("auto") == devices.choose_device("cpu") == "cpu"
    with pytest.raises(UserError, match=r"^--device: invalid value 'cuda' .*one of auto, cpu on this machine"):
        devices.choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert devices.choose_device("auto") == "cuda"
    assert current == []
    assert devices.choose_device("cuda:1") == "cuda:1"
    assert current == ["cuda:1"]
    with pytest.raises(
        UserError, match=r"^--device: invalid value 'cuda:2' .*one of auto, cpu, cuda, cuda:0, cuda:1 on"
    ):
        devices.choose_device("cuda:2")
