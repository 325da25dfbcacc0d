"""What a call in Python means is done, or told in one line: rates, buffers, masks, trees and tables that don't fit."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lthfunc
from lthfunc.errors import UserError

lf: Any = lthfunc  # What is passed is wrong on purpose.

X = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
DATA = lf.data.from_tensors("mine", (X[:60], Y[:60]), (X[60:], Y[60:]), val=20)
NET = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
MODEL = lf.from_module(NET)
START = lf.init(MODEL, 0)
MASKS = START.masks
SCORES = lf.magnitude(START.params, MASKS)
KEEP = lf.globally(SCORES, MASKS, 0.3)
LOSS = lf.loss_of(MODEL, START.buffers)
BATCHES = lf.sample_batches(DATA, 10, count=2)
MOMENTS = lf.input_moments(MODEL, START, [X[:10]])
NAN, INF = float("nan"), float("inf")


def trained(optimizer: lf.Optimizer, steps: int) -> Any:
    return lf.train(MODEL, DATA, optimizer=optimizer, steps=steps, batch_size=10)


def test_a_training_goes_on_at_its_own_rates() -> None:
    """And with the moments of the one before: what torch.optim.SGD does when its lr is set."""
    first = trained(lf.sgd(0.1, momentum=0.9), 3)(START)
    still = trained(lf.sgd(1e-12, momentum=0.9), 6)(first)
    assert max(float((still.params[name] - leaf).abs().max()) for name, leaf in first.params.items()) < 1e-9
    same = trained(lf.sgd(0.1, momentum=0.9), 6)(first)
    assert lf.same_bits(same, trained(lf.sgd(0.1, momentum=0.9), 6)(START))
    lower = trained(lf.sgd(0.01, momentum=0.9), 4)(first)
    trainer = lf.make_trainer(MODEL, DATA, optimizer=lf.sgd(0.01, momentum=0.9), batch_size=10)
    table = first.opt._replace(schedule=torch.tensor([0.01]))
    direct, _ = lf.take_steps(trainer, first._replace(opt=table), seed=0, until=4)
    assert lf.same_bits(lower.params, direct.params)


def test_the_rates_of_what_is_no_matrix_follow_too() -> None:
    muon = lf.muon(0.1, others=0.5)
    after = trained(lf.muon(1e-12, others=0.5), 4)(trained(muon, 2)(START))
    assert float(after.opt.schedule.max()) == pytest.approx(1e-12)
    assert float(after.opt.others.schedule.max()) == pytest.approx(5e-13)


@pytest.mark.parametrize("other", [lf.adam(0.1), lf.sgd(0.1), lf.lion(0.1)])
def test_the_state_of_another_optimiser_is_refused(other: lf.Optimizer) -> None:
    first = trained(lf.sgd(0.1, momentum=0.9), 2)(START)
    with pytest.raises(UserError, match=r"another optimiser or .*state\._replace\(opt=\(\)\) starts with a fresh one"):
        trained(other, 4)(first)
    trainer = lf.make_trainer(MODEL, DATA, optimizer=other, batch_size=10)
    with pytest.raises(UserError, match="another optimiser"):
        lf.fit(trainer, first, seed=0, until=4, eval_every=1)
    assert int(trained(other, 4)(first._replace(opt=())).step) == 4


def test_replicates_may_have_rates_of_their_own() -> None:
    trainer = lf.make_trainer(MODEL, DATA, optimizer=lf.sgd(0.1), batch_size=10)
    states = [lf.with_optimizer(START, lf.sgd(rate)) for rate in (0.1, 0.01)]
    both = lf.fit_together(trainer, states, seeds=[0, 0], until=3, eval_every=3)
    for fit, rate in zip(both, (0.1, 0.01), strict=True):
        alone = trained(lf.sgd(rate), 3)(START)
        for name, leaf in alone.params.items():
            torch.testing.assert_close(fit.state.params[name], leaf)


def test_a_label_for_each_row_of_outputs() -> None:
    """A column of labels would be held to every row, and give the mean over all pairs."""
    outputs = torch.randn(80, 2, generator=torch.Generator().manual_seed(1))
    for metric in (lf.accuracy, lf.top_k(1), lf.cross_entropy, lf.label_smoothed_cross_entropy(0.1)):
        metric(outputs, Y)
        with pytest.raises(UserError, match=r"one class per row of outputs.*\(80, 2\), targets .*\(80, 1\)"):
            metric(outputs, Y[:, None])


def one_step(**how: Any) -> Any:
    return lf.train(MODEL, DATA, optimizer=lf.sgd(0.1), steps=1, batch_size=9, **how)


def replaced(**parts: Any) -> lf.TrainState:
    return START._replace(**parts)


def cut(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: leaf for key, leaf in tree.items() if key != name}


def gives(value: Any) -> Callable[..., Any]:
    return lambda params, masks: value


_PRUNE = lf.prune(fraction=0.3)
_NARROW = {**MASKS, "0.weight": MASKS["0.weight"][:2]}
_FLOAT = {name: mask.float() for name, mask in MASKS.items()}
_MORE = {**MASKS, "head.weight": MASKS["0.weight"]}
_PLAN = {
    "model": MODEL,
    "trainer": lf.make_trainer(MODEL, DATA, optimizer=lf.sgd(0.1), batch_size=10),
    "steps": 2,
    "eval_every": 1,
}

#: What is typed, and what the line says.
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    # States and tickets that don't hold together.
    "buffers left out": (lambda: lf.accuracy_on(MODEL, replaced(buffers={}), DATA), "'1.running_mean' of Sequential i"),
    "a loss without them": (lambda: lf.loss_of(MODEL, {}), "buffers: the buffer '1.running_mean'"),
    "a ticket without them": (lambda: lf.to_module(lf.ticket(START)._replace(buffers={}), MODEL), "is missing"),
    "buffers None": (lambda: _PRUNE(replaced(buffers=None)), "state.buffers must be a dict of tensors, one for each b"),
    "masks of floats": (lambda: lf.ticket(replaced(masks=_FLOAT)), "state.masks must be a dict of bool tensors"),
    "masks of another shape": (lambda: _PRUNE(replaced(masks=_NARROW)), "'0.weight' is of shape (2, 6), the parameter"),
    "a mask too many": (lambda: lf.finetuned(replaced(masks=_MORE)), "state.masks: 'head.weight' is not a parameter"),
    "a step as int": (lambda: lf.ticket(replaced(step=3)), "state.step must be an integer tensor, such as"),
    "half a step": (lambda: lf.ticket(replaced(step=torch.tensor(2.5))), "state.step must be an integer tensor"),
    "a step back": (lambda: trained(lf.sgd(0.1), 3)(replaced(step=torch.tensor(-1))), "(expected a step of at least 0"),
    "arrays of NumPy": (lambda: lf.ticket(replaced(params={"0.weight": np.ones(3)})), "state.params must be a dict of"),
    "a ticket's masks": (lambda: lf.save_ticket("x", lf.ticket(START)._replace(masks=_FLOAT)), "ticket.masks must be"),
    "a mask too many costs": (lambda: lf.cost(MODEL, START.params, _MORE, (6,)), "'head.weight' is not a pa"),
    "masked by a state": (lambda: lf.apply_masks(START.params, START), "masks must be a dict of bool tensors, not a T"),
    "masked by another's": (lambda: lf.apply_masks(START.params, _MORE), "masks: 'head.weight' is not a parameter"),
    "scores too few": (lambda: lf.globally(cut(SCORES, "3.weight"), MASKS, 0.5), "scores: '3.weight', which has a m"),
    "scores of other shapes": (lambda: lf.unstructured({k: s.T for k, s in SCORES.items()}, MASKS, KEEP), "its mask ("),
    "counts too few": (lambda: lf.unstructured(SCORES, MASKS, cut(KEEP, "3.weight")), "keep: '3.weight', which has"),
    "counts as floats": (lambda: lf.fixed_counts({"0.weight": 0.5}), "keep must be a dict of whole numbers"),
    "a count too few": (lambda: lf.prune(fraction=0.3, allocate=lf.fixed_counts({"0.weight": 5}))(START), "no count"),
    "an anchor's leaf missing": (
        lambda: lf.prune(fraction=0.3, score=lf.large_init(cut(START.params, "0.weight")))(START), "'0.weight', of sha",
    ),
    "moments of another layer": (
        lambda: lf.prune(fraction=0.3, score=lf.wanda({"0.weight": torch.eye(3)}))(START), "its layer reads 6 inputs",
    ),
    "SparseGPT's too": (lambda: lf.sparsegpt(SCORES, 0.5)(START), "lf.input_moments(model, state, inputs) gives them"),
    "a line between unlike dtypes": (
        lambda: lf.line(MODEL, START, replaced(params={k: p.half() for k, p in START.params.items()}), DATA.test),
        "first and second have different params: 0.weight is",
    ),
    "no optimiser state": (
        lambda: lf.make_train_step(MODEL, lf.cross_entropy, lf.sgd(0.1))(START, BATCHES[0]), "lf.with_optimizer(state,",
    ),
    # Functions in the place of others, and what they return.
    "an allocation to select": (lambda: lf.prune(fraction=0.3, select=lf.erk()), "a function of (scores, masks, keep)"),
    "a selection to allocate": (lambda: lf.prune(fraction=0.3, allocate=lf.n_of_m(2, 4)), "of (scores, masks, fractio"),
    "a score of None": (lambda: lf.prune(fraction=0.3, score=gives(None))(START), "returns one leaf for each of 0.wei"),
    "inverted, of None": (lambda: lf.prune(fraction=0.3, score=lf.inverted_score(gives(None)))(START), "one leaf for"),
    "an initialiser of None": (lambda: lf.init(lf.from_module(NET, init=lambda m, p, s: None)), "init: '<lambda>' ret"),
    "an initialiser of params": (lambda: lf.from_module(NET, init=lambda p: p), "init must be a function of (module,"),
    "an augmentation of one": (lambda: one_step(augment=nn.Dropout()), "(inputs,"),
    "an augmentation that cuts": (
        lambda: one_step(augment=lambda x, key: x[:, :3])(START),
        "augment: '<lambda>' returned float32 of shape (9, 3) for inputs of float32 of shape (9, 6)",
    ),
    "an engine of None": (
        lambda: one_step(engine=lambda work: None), "returned None, not an En",
    ),
    "an observer of one": (lambda: one_step(observe=lambda s: s), "(step, point)"),
    "a plan's tidying": (
        lambda: list(lf.iterative(lf.Plan(**_PLAN, rounds=1, tidy=lambda state: None))), "tidy returned None",
    ),
    "a plan's start": (
        lambda: list(lf.iterative(lf.Plan(**_PLAN, rounds=1, rewind=lf.Start(lambda pruned, now: None, True)))),
        "rewind returned None",
    ),
    "a data set for batches": (
        lambda: lf.fisher(LOSS, torch.utils.data.TensorDataset(X, Y)), "batches must be a list of batches (inputs, tar",
    ),
    # Numbers.
    "a rate that isn't": (lambda: lf.adam(NAN), "adam: lr must be a number or a table of rates"),
    "an endless rate": (lambda: lf.cosine(INF, 5), "cosine: lr must be a number, not inf"),
    "a table of rates below 0": (lambda: lf.sgd(torch.tensor([0.1, -0.1])), "a rate in the table is negative or not f"),
    "a table of NaN": (lambda: lf.warmup(torch.tensor([0.1, NAN]), 2), "schedule: a rate in the table is negative"),
    "a table of whole numbers": (lambda: lf.sgd(torch.arange(4)), "one row of floats"),
    "a rate as a tensor": (lambda: lf.sgd(torch.tensor(0.1)), "a table of rates is one row of floats"),
    "eps below 0": (lambda: lf.adamw(0.1, eps=-1.0), "eps: invalid value -1.0 (expected a number of at least 0"),
    "one beta": (lambda: lf.adam(0.1, betas=0.9), "betas must be two numbers, not 0.9"),
    "gamma below 0": (lambda: lf.stepwise(0.1, [5], gamma=-0.1), "gamma: invalid value -0.1"),
    "milestones below 0": (lambda: lf.stepwise(0.1, [-5]), "milestones: invalid value -5"),
    "a start below 0": (lambda: lf.one_cycle(0.1, 5, start=-1), "start: invalid value -1"),
    "smoothing past 1": (lambda: lf.label_smoothed_cross_entropy(1.5), "label_smoothing: invalid value 1.5"),
    "an output's rate below 0": (lambda: lf.layerwise(output_rate=-1), "output_rate: invalid value -1"),
    "an output's rate past all": (
        lambda: lf.prune(fraction=0.5, allocate=lf.layerwise(output_rate=3))(START), "(expected a number below 2, 1"
    ),
    "an initial density below": (lambda: lf.cubic(0.5, 0, 10, 2, initial=0.1), "(expected a density from 0.5 to 1"),
    "a share before the start": (lambda: lf.cosine_drop_fraction(0.3, -1, 10), "step: invalid value -1"),
    "rates from before": (lambda: lf.learning_rate_rewound(START, -1), "step: invalid value -1"),
    "a descent upwards": (lambda: lf.movement(LOSS, BATCHES, lr=-1.0), "lr: invalid value -1.0"),
    "no columns": (lambda: lf.sparsegpt(MOMENTS, 0.5, block=0), "block: invalid value 0"),
    "a shape without sides": (lambda: lf.synflow(lf.forward_of(MODEL, START.buffers), (-1,)), "shape: invalid value ("),
    "a shape of another network": (lambda: lf.cost(MODEL, START.params, MASKS, (5,)), "Sequential cannot take inputs"),
    "units of another shape": (lambda: lf.dependencies(MODEL, (5,)), "Sequential cannot take inputs of shape (5,)"),
    "a sample of another": (lambda: lf.specialize(START, MODEL, X[:4, :5]), "Sequential cannot take inputs of shape ("),
    "no such device": (lambda: lf.init(MODEL, 0, "gpu"), "device: 'gpu' cannot be used here"),
    "a device that isn't here": (lambda: lf.init(MODEL, 0, "cuda:99"), "device: 'cuda:99' cannot be used here"),
    "a switch as text": (lambda: lf.from_module(NET, tokens="no"), "tokens must be True or False, not 'no'"),
    "means without deviations": (
        lambda: lf.accuracy_on(MODEL, START, DATA._replace(scale=lf.Scale(1.0, (0.0,), (1.0, 2.0)))), "std",
    ),
    "a scale of channels": (
        lambda: lf.line(MODEL, START, START, DATA.test, lf.Scale(1.0, (0.0,) * 3, (1.0,) * 3)), "a number for each of",
    ),
    # Files.
    "metadata of tensors": (lambda: lf.save_tree("x", {}, {"a": X}), "metadata: invalid value (expected JSON"),
    "a tree of arrays": (lambda: lf.save_tree("x", {"a": {"b": np.ones(3)}}), "tree: 'a/b' must be a tensor or a dict"),
    "a folder for a file": (lambda: lf.save_ticket(".", lf.ticket(START)), "is a folder; name a file in it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_one_line(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed, words = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(words)) as told:
        typed()
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 320
    assert not list(tmp_path.iterdir())


def test_whole_numbers_of_others_are_whole_numbers() -> None:
    for steps in (np.int64(3), torch.tensor(3)):
        ready = lf.train(MODEL, DATA, optimizer=lf.sgd(0.1), steps=steps, batch_size=steps * 2)
        assert int(ready(START).step) == 3
    assert torch.equal(lf.cyclic(0.1, torch.tensor(6), 2), lf.cyclic(0.1, 6, 2))


def test_a_damaged_file_of_measurements_is_measured_again(tmp_path: Any) -> None:
    from lthfunc.deployment.tuning_cache import TuningCache

    for content in (b"\xc8\x00", b"[1]", b'{"a": "x", "b": [NaN, 1.0], "c": [-1, 1], "d": [0.5, 0.6]}', b"[" * 100_000):
        (tmp_path / "tunings.json").write_bytes(content)
        known = TuningCache(tmp_path / "tunings.json")
        assert [known.get(key) for key in "abc"] == [None] * 3
        assert known.get("d") == ([0.5, 0.6] if b"d" in content else None)


def test_values_that_fill_a_page_are_not_printed() -> None:
    with pytest.raises(UserError, match=r"sparse\.fixed: invalid value: a dict"):
        lf.break_even(lf.Costs({"weight": torch.zeros(40, 40)}, [1.0]), lf.Costs([1.0], [1.0]))


def test_what_cannot_be_kept_is_measured_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a home that takes no files; one that was asked for is another thing."""
    from lthfunc.deployment.tuning_cache import TuningCache, tunings_file

    (tmp_path / "file").touch()
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path / "file" / "folder"))
    TuningCache(tunings_file()).put({"a": [0.5, 0.6]})
    with pytest.raises(OSError, match="file"):
        TuningCache(tmp_path / "file" / "mine.json").put({"a": [0.5, 0.6]})


def test_what_was_measured_is_shown_where_it_cannot_be_kept(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A run on a disk that takes no more files, say."""
    from lthfunc_cli.main import main

    from lthfunc.runs import measurements

    def full(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "measured.jsonl")

    run = str(tmp_path / "run")
    assert main(["prune", "--rounds", "1", "--steps", "2", "--eval-every", "1", "--out", run]) == 0
    monkeypatch.setattr(measurements, "keep_measurement", full)
    assert main(["specialize", run, "--format", "dense"]) == 3
    told = capsys.readouterr()
    assert "dense: test accuracy" in told.out
    assert "measured.jsonl: Read-only file system" in told.err
