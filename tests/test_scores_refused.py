"""Modules without a gradient, inputs of other shapes and types, and several networks at once: told by every score."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import with_splits
from test_scores_of_any_module import BATCHES, SCORES, Net, X, Y
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError

DATA = lf.Dataset("d", lf.Split(X, Y), lf.Split(X, Y), lf.Split(X, Y), 3)


class Dead(Net):
    """`how`: why nothing flows back."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Any:
        if self.how == "no_grad":
            with torch.no_grad():
                return super().forward(x)
        out = super().forward(x)
        if self.how == "detach":
            return out.detach()
        if self.how == "inputs alone":
            return x[:, :3]
        if self.how == "inference":
            with torch.inference_mode():
                return super().forward(x)
        if self.how == "in place":
            return torch.exp(out).add_(1)  # exp's gradient is its result
        return out.argmax(1) if self.how == "classes" else out.round().long()


WORDS = {
    "no_grad": "depend on no parameter",
    "detach": "depend on no parameter",
    "inputs alone": "depend on no parameter",
    "inference": r"torch\.inference_mode\(\)",
    "in place": "something is changed in place that its gradient needs",
    "classes": "outputs are int64|depend on no parameter|no real numbers",
    "whole numbers": "Dead (has no gradient|cannot be trained)|depend on no parameter|no real numbers",
}


@pytest.mark.parametrize("how", WORDS)
def test_modules_without_a_gradient_are_told_in_one_line(how: str) -> None:
    model = lf.from_module(Dead(how), init=lf.as_built)
    state = lf.init(model)

    def scored(name: str) -> Any:
        return SCORES[name](model, state, BATCHES)(state.params, state.masks)

    sgd = lf.sgd(0.1, weight_decay=0.1)
    calls: list[Callable[[], Any]] = [partial(lf.train, model, DATA, optimizer=sgd, steps=1, batch_size=8)]
    scores = [name for name in SCORES if name != "wanda"]  # which takes none
    calls += [partial(scored, name) for name in scores]
    for call in calls:
        with pytest.raises(UserError, match=WORDS[how]) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert "functorch" not in str(caught.value)


def test_inputs_of_another_shape_are_told_by_every_score() -> None:
    model = lf.from_module(nn.Linear(7, 3))
    state = lf.init(model)
    for name in SCORES:
        with pytest.raises(UserError, match=r"^Linear .*: mat1 and mat2 shapes cannot be multiplied"):
            SCORES[name](model, state, BATCHES)(state.params, state.masks)


def test_a_network_of_which_all_is_pruned_is_none_of_those() -> None:
    model = lf.from_module(Net())
    state = lf.init(model)
    masks = {name: torch.zeros_like(mask) for name, mask in state.masks.items()}
    for name in [*SCORES][:-1]:  # Wanda's are magnitudes, pruned or not
        assert not any(leaf.any() for leaf in SCORES[name](model, state, BATCHES)(state.params, masks).values()), name


TYPES = [(torch.float32, torch.float64), (torch.float64, torch.float32)]


@pytest.mark.parametrize(("ours", "theirs"), TYPES, ids=str)
def test_parameters_and_inputs_of_unlike_types_are_told(ours: torch.dtype, theirs: torch.dtype) -> None:
    model = lf.from_module(Net().to(ours))
    state = lf.init(model)
    data = with_splits(DATA, lambda split: lf.Split(X.to(theirs), Y))
    batches = [(data.train.x, Y)]
    words = [str(dtype).removeprefix("torch.") for dtype in (ours, theirs)]
    calls: list[Any] = [
        lambda name=name: SCORES[name](model, state, batches)(state.params, state.masks)
        for name in SCORES
        if name != "synflow"  # in float64 whatever comes
    ]
    for engine in ("eager", "compile"):
        trainer = lf.make_trainer(model, data, optimizer=lf.sgd(0.1), batch_size=8, engine=engine)
        calls += [
            lambda trainer=trainer: lf.take_steps(trainer, state, seed=0, until=1),
            lambda trainer=trainer: lf.fit(trainer, state, seed=0, until=1, eval_every=1),
        ]
        alike = state._replace(params={name: leaf.to(theirs) for name, leaf in state.params.items()})
        if engine == "eager":
            assert lf.take_steps(trainer, alike, seed=0, until=1)[0].params["a.weight"].dtype == theirs
    calls.append(lambda: lf.accuracy_on(model, state, data))
    for call in calls:
        with pytest.raises(
            UserError, match=f"its parameters are {words[0]} and its inputs {words[1]}; convert one of them"
        ):
            call()
    assert SCORES["synflow"](model, state, batches)(state.params, state.masks)["a.weight"].dtype == torch.float64


def test_a_module_that_converts_its_inputs_takes_any() -> None:
    class Converting(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.to(self.a.weight.dtype))

    model = lf.from_module(Converting().double())
    state = lf.init(model)
    assert (
        lf.train(model, DATA, optimizer=lf.sgd(0.1), steps=1, batch_size=8)(state).params["a.weight"].dtype.itemsize
        == 8
    )
    assert all(SCORES[name](model, state, BATCHES)(state.params, state.masks) for name in SCORES)


def test_scores_of_several_networks_at_once_are_those_of_each() -> None:
    """Under vmap no number can be looked at, so nothing is refused there."""
    model = lf.from_module(Net(), init=lf.as_built)
    score = SCORES["snip"](model, lf.init(model), BATCHES)
    state = lf.init(model)
    several = [{name: leaf * scale for name, leaf in state.params.items()} for scale in (1.0, 0.5)]
    wide = {name: torch.stack([params[name] for params in several]) for name in state.params}
    found = torch.vmap(lambda params: score(params, state.masks))(wide)
    for number, params in enumerate(several):
        for name, leaf in score(params, state.masks).items():
            torch.testing.assert_close(found[name][number], leaf)


def test_a_loss_at_a_temperature_divides_all_that_it_could_follow() -> None:
    module = Net(lambda h, out: {"logits": torch.complex(out, 2 * out), "count": torch.arange(3)})
    seen: list[Any] = []

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        seen.append(outputs)
        value: Tensor = outputs["logits"].abs().mean()
        return value

    model = lf.from_module(module, init=lf.as_built)
    state = lf.init(model)
    plain = lf.loss_of(model, state.buffers, loss)
    plain(state.params, BATCHES[0])
    plain.at_temperature(4.0)(state.params, BATCHES[0])
    torch.testing.assert_close(seen[1]["logits"], seen[0]["logits"] / 4)
    assert seen[1]["count"].tolist() == [0, 1, 2]
