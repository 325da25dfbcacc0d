"""Natural mistakes in Python get one line that says what to write; signatures print for people; privacy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import lthfunc
from lthfunc.errors import ArgumentError, UserError

lf: Any = lthfunc  # What is passed is wrong on purpose.


class Things(NamedTuple):
    """What a user has at hand."""

    data: lf.Dataset
    net: nn.Module
    model: lf.Model
    start: lf.TrainState
    ticket: lf.Ticket
    train: Callable[[Any], Any]
    trainer: lf.Trainer
    batches: list[Any]
    loss: Callable[..., Any]
    other: lf.Model
    others: lf.TrainState
    folder: Path


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


@pytest.fixture(scope="module")
def things(digits: lf.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Things:
    net = network(20)
    model, other = lf.from_module(net), lf.from_module(network(30))
    start = lf.init(model, 0)
    optimizer = lf.adam(1.2e-3)
    folder = tmp_path_factory.mktemp("files")
    lf.save_ticket(folder / "mine.safetensors", lf.ticket(start))
    return Things(
        digits, net, model, start, lf.ticket(start), lf.train(model, digits, optimizer=optimizer, steps=2),
        lf.make_trainer(model, digits, optimizer=optimizer), lf.sample_batches(digits, 10, count=2),
        lf.loss_of(model, start.buffers), other, lf.init(other, 0), folder,
    )  # fmt: skip


def trains(t: Things, **changed: Any) -> Any:
    return lf.train(t.model, t.data, **{"optimizer": lf.adam(1e-3), "steps": 2, **changed})


#: What is typed, and what the one line says.
MISTAKES: dict[str, tuple[Callable[[Things], Any], str]] = {
    # Optimisers and rates.
    "the class of torch": (lambda t: trains(t, optimizer=torch.optim.Adam), "not the class Adam; lf.adam(lr) takes"),
    "one of torch's": (
        lambda t: trains(t, optimizer=torch.optim.SGD(t.net.parameters(), lr=0.1)), "not a SGD; lf.sgd(lr) takes",
    ),
    "torch's, which is not here": (lambda t: trains(t, optimizer=torch.optim.Rprop), "not the class Rprop; lf.sgd(lr)"),
    "uncalled optimiser": (lambda t: trains(t, optimizer=lf.adam), "not the function adam; call it: lf.adam(lr)"),
    "optimiser by name": (lambda t: trains(t, optimizer="adam"), "not 'adam'; pass one: lf.adam(lr)"),
    "uncalled schedule": (lambda t: lf.adam(lf.cosine), "not the function cosine; call it: lf.cosine(…)"),
    "rate as text": (lambda t: lf.adam("1e-3"), "adam: lr must be a number or a table of rates"),
    "parameters as rate": (lambda t: lf.sgd(t.net.parameters()), "an optimiser here takes a rate, and no parameters"),
    "parameters and rate": (lambda t: lf.sgd(t.net.parameters(), lr=0.1), "sgd: multiple values for argument 'lr'"),
    "rates as list": (lambda t: lf.adam([1e-3] * 5), "a tensor holds the rates of all steps"),
    "warmup of a number": (lambda t: lf.warmup(0.1, 5), "warmup: schedule must be a table of rates"),
    "cosine of no steps": (lambda t: lf.cosine(0.1, 0), "cosine: steps: invalid value 0 (expected a whole number"),
    # States, tickets, models.
    "train a ticket": (lambda t: t.train(t.ticket), "not a Ticket; make one of it: ticket.to_state(step=0)"),
    "train masks": (lambda t: t.train(t.start.masks), "state must be a TrainState, not masks"),
    "train params": (lambda t: t.train(t.start.params), "not a dict of tensors; pass the whole state"),
    "train a module": (lambda t: t.train(t.net), "not an nn.Module (Sequential); make one: lf.init(lf.from_module(net"),
    "train a model": (lambda t: t.train(t.model), "not a Model; make one: lf.init(model, seed)"),
    "train another's state": (lambda t: t.train(t.others), "of different networks: 1.weight is (30, 64) and (20, 64)"),
    "train what take_steps gives": (
        lambda t: t.train(lf.take_steps(t.trainer, t.start, seed=0, until=1)), "returns (state, loss); pass the state",
    ),
    "train a fit": (
        lambda t: t.train(lf.fit(t.trainer, t.start, seed=0, until=1, eval_every=1)), "not a Fit; pass its .state",
    ),
    "a module for a model": (
        lambda t: lf.train(t.net, t.data, optimizer=lf.adam(1e-3), steps=2), "make one of it: lf.from_module(net)",
    ),
    "init a module": (lambda t: lf.init(t.net, 0), "init: model must be a Model, not an nn.Module (Sequential)"),
    "init a class": (lambda t: lf.init(nn.Linear, 0), "not the class Linear; make one: lf.from_module(Linear(…))"),
    "a class for a module": (lambda t: lf.from_module(nn.Linear), "not the class Linear; call it: Linear(…)"),
    "a model for a module": (lambda t: lf.from_module(t.model), "not a Model; it is a model already"),
    "one pattern": (lambda t: lf.from_module(t.net, never_prune="3.weight"), "must be a list of names or patterns"),
    "prune a ticket": (lambda t: lf.prune(fraction=0.2)(t.ticket), "prune(…): state must be a TrainState, not a Ticke"),
    "rewind to params": (lambda t: lf.rewind(to=t.start.params), "rewind: to must be a TrainState, not a dict of"),
    "rewind to a ticket": (lambda t: lf.rewind(to=t.ticket), "rewind: to must be a TrainState, not a Ticket"),
    "rewind by place": (lambda t: lf.rewind(t.start), "too many positional arguments (given by name: to)"),
    "rewind to another's": (lambda t: lf.rewind(to=t.others)(t.start), "of different networks: 1.weight is"),
    "the ticket of a ticket": (lambda t: lf.ticket(t.ticket), "ticket: state must be a TrainState, not a Ticket"),
    "masks of a state": (lambda t: lf.count(t.start), "not a TrainState; pass its .masks"),
    "count params": (lambda t: lf.count(t.start.params), "masks must be a dict of bool tensors, not a dict of tensors"),
    "density of a ticket": (lambda t: lf.density(t.ticket), "not a Ticket; pass its .masks"),
    "masks of two networks": (lambda t: lf.mask_distance(t.start.masks, t.others.masks), "of different networks"),
    "mask a state": (lambda t: lf.apply_masks(t.start, t.start.masks), "not a TrainState; pass its .params"),
    "mask by params": (lambda t: lf.apply_masks(t.start.params, t.start.params), "apply_masks: masks must be a dict"),
    "params of a state": (lambda t: lf.cost(t.model, t.start, t.start.masks, (1, 8, 8)), "pass its .params"),
    "shuffle a state": (lambda t: lf.shuffled_masks(t.start, 0), "not a TrainState; pass its .masks"),
    "arguments swapped": (lambda t: lf.to_module(t.model, t.ticket), "to_module: ticket must be a Ticket, not a Model"),
    "a state for a ticket": (lambda t: lf.to_module(t.start, t.model), "make one of it: lf.ticket(state)"),
    "what load_ticket gives": (
        lambda t: lf.to_module(lf.load_ticket(t.folder / "mine.safetensors"), t.model), "pass the ticket",
    ),
    "a ticket of another model": (lambda t: lf.to_module(t.ticket, t.other), "ticket and the model Sequential are of"),
    "another's state measured": (lambda t: lf.accuracy_on(t.other, t.start, t.data), "are of different networks"),
    "measure swapped": (lambda t: lf.accuracy_on(t.start, t.model, t.data), "model must be a Model, not a TrainState"),
    "a metric of each": (
        lambda t: lf.accuracy_on(t.model, t.start, t.data, metric=lambda o, y: (o.argmax(1) == y).float()),
        "metric: '<lambda>' returned a tensor of shape (360,), not a scalar",
    ),
    "a loss without gradient": (
        lambda t: trains(t, loss=lambda o, y: lf.cross_entropy(o.detach(), y)),
        "the outputs of Sequential depend on no parameter, so that there is no gradient: is forward under torch.no_grad"
        "(), or are its outputs, or the loss, detached",
    ),
    "no such split": (lambda t: lf.accuracy_on(t.model, t.start, t.data, "testing"), "(expected train, val or test"),
    "the split itself": (lambda t: lf.accuracy_on(t.model, t.start, t.data, t.data.test), "a string, not a Split"),
    "path and ticket swapped": (lambda t: lf.save_ticket(t.ticket, "x"), "path must be a string or a path, not a Tick"),
    "save a state": (lambda t: lf.save_ticket("x", t.start), "make one of it: lf.ticket(state)"),
    "load a folder": (lambda t: lf.load_ticket(t.folder), "name one of its .safetensors files (mine.safetensors)"),
    "specialise swapped": (lambda t: lf.specialize(t.model, t.ticket, t.data.test.x[:4]), "must be a Ticket or a"),
    "shape as a number": (lambda t: lf.compact(t.model, t.ticket, 64), "a tuple such as (1, 28, 28), not 64; (64,)"),
    # Pruning.
    "neither": (lambda t: lf.prune(), "prune: give either fraction or density"),
    "both": (lambda t: lf.prune(fraction=0.2, density=0.2), "prune: give either fraction or density"),
    "by place": (lambda t: lf.prune(0.2), "too many positional arguments (given by name: fraction, density"),
    "percent": (lambda t: lf.prune(fraction=20), "fraction: invalid value 20 (expected a number in [0, 1); 20 % is"),
    "density in percent": (lambda t: lf.prune(density=20), "a number in (0, 1]; 20 % is 0.2"),
    "nothing left": (lambda t: lf.prune(density=0), "prune: density: invalid value 0"),
    "fraction as text": (lambda t: lf.prune(fraction="0.2"), "prune: fraction must be a number, not '0.2'"),
    "uncalled allocation": (lambda t: lf.prune(fraction=0.2, allocate=lf.erk), "the function erk; call it: lf.erk(…)"),
    "uncalled layerwise": (lambda t: lf.prune(fraction=0.2, allocate=lf.layerwise), "call it: lf.layerwise(…)"),
    "allocation by name": (lambda t: lf.prune(fraction=0.2, allocate="erk"), "not 'erk'; pass the function: lf.erk(…)"),
    "uncalled random scores": (lambda t: lf.prune(fraction=0.2, score=lf.random_scores), "call it: lf.random_scores(…"),
    "uncalled score of data": (lambda t: lf.prune(fraction=0.2, score=lf.snip), "not the function snip; call it"),
    "score by name": (lambda t: lf.prune(fraction=0.2, score="magnitude"), "pass the function: lf.magnitude"),
    "score computed": (
        lambda t: lf.prune(fraction=0.2, score=lf.magnitude(t.start.params, t.start.masks)), "not a dict of tensors",
    ),
    "score of one argument": (lambda t: lf.prune(fraction=0.2, score=lambda w: w), "a function of (params, masks)"),
    "uncalled structure": (lambda t: lf.prune(fraction=0.2, select=lf.units), "call it: lf.units(…)"),
    "structure by name": (lambda t: lf.prune(fraction=0.2, select="2:4"), "a function of (scores, masks, keep), not '"),
    "allocation gives a number": (
        lambda t: lf.prune(fraction=0.2, allocate=lambda s, m, f: 5)(t.start), "a function that returns a count",
    ),
    "selection gives scores": (
        lambda t: lf.prune(fraction=0.2, select=lambda s, m, k: s)(t.start), "(expected a mask, bool of shape",
    ),
    "no densities": (lambda t: lf.prune_to_densities([]), "densities: invalid value []"),
    "one density": (lambda t: lf.prune_to_densities(0.1), "densities must be a list of numbers, not 0.1"),
    "densities in percent": (lambda t: lf.prune_to_densities([50, 20]), "50 % is 0.5"),
    "densities with steps": (lambda t: lf.prune_to_densities(lf.cubic(0.1, 0, 10, 2)), "must be a list of numbers"),
    "argument misspelt": (lambda t: lf.prune_to_densities([0.5], sccore=lf.magnitude), "did you mean 'score'?"),
    "a rate for layers": (lambda t: lf.layerwise(0.2), "the rate of all layers is prune's fraction"),
    "geometric in percent": (lambda t: lf.geometric(10, 3), "10 % is 0.1"),
    # Scores of data.
    "a model for a loss": (lambda t: lf.snip(t.model, t.batches), "lf.loss_of(model, buffers) makes one"),
    "a module for a loss": (lambda t: lf.snip(t.net, t.batches), "lf.loss_of(model, buffers) makes one"),
    "a loss of outputs": (lambda t: lf.snip(lf.cross_entropy, t.batches), "lf.loss_of(model, buffers) makes one"),
    "torch's loss": (lambda t: lf.snip(nn.functional.cross_entropy, t.batches), "lf.loss_of(model, buffers) makes one"),
    "one batch": (lambda t: lf.snip(t.loss, t.batches[0]), "a list of batches (inputs, targets), not a tuple of 2"),
    "data for batches": (lambda t: lf.snip(t.loss, t.data), "lf.sample_batches(data, batch_size, count) draws some"),
    "synflow of a model": (lambda t: lf.synflow(t.model, (64,)), "lf.forward_of(model, buffers) makes one"),
    "loss of a state": (lambda t: lf.loss_of(t.model, t.start), "pass its .buffers"),
    "moments of one tensor": (
        lambda t: lf.input_moments(t.model, t.start, t.data.train.x), "inputs must be a list of tensors, not a tensor",
    ),
    # Training.
    "no steps": (lambda t: trains(t, steps=0), "train: steps: invalid value 0 (expected a whole number of at least"),
    "steps back": (lambda t: trains(t, steps=-1), "steps: invalid value -1"),
    "half a step": (lambda t: trains(t, steps=1e3), "train: steps must be a whole number, not 1000.0"),
    "epochs": (lambda t: trains(t, epochs=3), "unknown argument 'epochs'"),
    "no batch": (lambda t: trains(t, batch_size=0), "batch_size: invalid value 0"),
    "seed of a half": (lambda t: lf.init(t.model, 0.5), "seed must be a whole number, not 0.5"),
    "seeds": (lambda t: trains(t, seed=[0, 1]), "seed must be a whole number, not a list of 2 (int)"),
    "a generator for a seed": (lambda t: lf.random_scores(torch.Generator()), "seed must be a whole number, not a"),
    "loss by name": (lambda t: trains(t, loss="cross-entropy"), "pass the function: lf.cross_entropy"),
    "the class of a loss": (lambda t: trains(t, loss=nn.CrossEntropyLoss), "call it: CrossEntropyLoss(…)"),
    "uncalled loss": (lambda t: trains(t, loss=lf.label_smoothed_cross_entropy), "call it: lf.label_"),
    "a loss of params": (lambda t: trains(t, loss=t.loss), "loss must be a function of (outputs, targets)"),
    "uncalled metric": (lambda t: trains(t, metric=lf.top_k), "call it: lf.top_k(…)"),
    "precision of elsewhere": (lambda t: trains(t, precision="fp16"), "precision must be fp32 or tf32 or bf16, not 'f"),
    "engine switched on": (lambda t: trains(t, engine=True), "engine must be an engine's name, or a"),
    "augmentation switched on": (lambda t: trains(t, augment=True), "augment must be a function of (inputs, key), not"),
    "seeds too few": (
        lambda t: lf.fit_together(t.trainer, [t.start] * 2, seeds=[0], until=2, eval_every=1), "one for each of 2 stat",
    ),
    "one state": (lambda t: lf.fit_together(t.trainer, t.start, seeds=[0], until=2, eval_every=1), "a list of TrainSt"),
    "fit a model": (lambda t: lf.fit(t.model, t.start, seed=0, until=2, eval_every=1), "must be a Trainer (lf.make_tr"),
    # Folds and plans.
    "uncalled pruning": (lambda t: lf.compose(t.train, lf.prune), "call it: lf.prune(…)"),
    "composed with a state": (lambda t: lf.compose(t.train, t.start), "apply the transformation to it"),
    "composed from a list": (lambda t: lf.compose([t.train]), "give them one by one: lf.compose(*transformations)"),
    "iterate swapped": (lambda t: lf.iterate(3, t.train), "transformation must be a function of (state), not 3"),
    "iterate backwards": (lambda t: lf.iterate(t.train, -1), "rounds: invalid value -1"),
    "a model for a plan": (lambda t: list(lf.iterative(t.model, 0)), "plan must be a Plan, not a Model"),
    "a plan of a module": (lambda t: list(lf.iterative(lf.Plan(t.net, t.trainer, 2, 1))), "Plan: model must be a Mode"),
    "a plan of an optimiser": (lambda t: list(lf.iterative(lf.Plan(t.model, lf.adam(1e-3), 2, 1))), "trainer must be"),
    "a plan's score": (
        lambda t: list(lf.iterative(lf.Plan(t.model, t.trainer, 2, 1, score=lf.magnitude))), "lambda trained, now: lf.",
    ),
    "a plan's rewinding": (
        lambda t: list(lf.iterative(lf.Plan(t.model, t.trainer, 2, 1, rewind=lf.rewind(to=t.start)))), "must be a Star",
    ),
    "data for a split": (lambda t: lf.line(t.model, t.start, t.start, t.data), "a Split, such as data.test, not a Dat"),
    "costs as numbers": (lambda t: lf.break_even(1.0, 2.0), "break_even: sparse must be Costs, not 1.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_natural_mistake_is_told_in_one_line(name: str, things: Things) -> None:
    typed, words = MISTAKES[name]
    with pytest.raises(UserError, match=re.escape(words)) as told:
        typed(things)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 300
    if " must be " in str(told.value) and " returned " not in str(told.value) and "one for each" not in str(told.value):
        assert isinstance(told.value, ArgumentError)
        assert isinstance(told.value, TypeError)


def test_what_is_right_stays_right(things: Things) -> None:
    """Modules as losses, numbers and lists of NumPy, counts as plain numbers, keyword and positional arguments."""
    import numpy as np

    t = things
    one = trains(t, loss=nn.CrossEntropyLoss(), seed=np.int64(3))(t.start)
    other = trains(t, loss=nn.functional.cross_entropy, seed=3)(t.start)
    assert lf.same_bits(one.params, other.params)
    dense = lf.prune_to_densities(np.array([0.5, 0.25]))(t.start)
    assert lf.count(dense.masks).kept == round(0.25 * lf.count(t.start.masks).total)
    some = lf.prune(fraction=0.2, allocate=lambda scores, masks, fraction: dict.fromkeys(masks, 5))(t.start)
    assert [each.kept for each in lf.layer_counts(some.masks).values()] == [5, 5]
    assert lf.prune(fraction=np.float32(0.5))(t.start).masks.keys() == t.start.masks.keys()


def test_a_ticket_trains_from_the_step_that_it_was_rewound_to(things: Things) -> None:
    """As the state does that it was made of."""
    t = things
    later, _ = lf.take_steps(t.trainer, t.start, seed=0, until=3)
    state = lf.prune(fraction=0.3)(later)
    ticket = lf.ticket(state)
    for step in (0, 3):
        direct = trains(t, steps=6)(state._replace(step=state.step * 0 + step))
        assert lf.same_bits(trains(t, steps=6)(ticket.to_state(step)).params, direct.params)
    assert int(ticket.to_state().step) == 0


def test_no_warmup_at_all_is_a_warmup() -> None:
    assert torch.equal(lf.warmup(lf.constant(0.4), 0), lf.constant(0.4))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("prune --density 0.1 --rate 0.3", "--rate and --density: give one of them, not both"),
        ("prune --densities 0.5,0.1 --rate 0.3", "--rate and --densities: give one of them, not both"),
        (
            "prune --rewind step:ten",
            "--rewind: invalid value 'step:ten' (expected step:K, the weights of step K; K: a whole number",
        ),
        (
            "prune --rewind epoch:1.5",
            "--rewind: invalid value 'epoch:1.5' (expected epoch:K, the weights after epoch K; K: a whole",
        ),
    ],
)
def test_options_that_contradict_or_mislead_are_told(command: str, words: str, tmp_path: Path, capsys: Any) -> None:
    from lthfunc_cli.main import main

    assert main([*command.split(), "--out", str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
