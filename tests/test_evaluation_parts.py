"""Evaluations, a user's own losses, optimisers' params, networks of other weights, and normalisation over ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import NET, data, state_of
from threads_as_ranks import Ranks
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.distributed.collectives import Collectives
from lthfunc.distributed.sync_batchnorm import with_sync_batchnorm
from lthfunc.errors import UserError
from lthfunc.training.batches import batches
from lthfunc.training.loop import accuracy_on, take_steps
from lthfunc.training.losses import cross_entropy
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.parametrize import buffers_part, parametrized, straight_through, top_k_mask, trained_part
from lthfunc.training.results import Point
from lthfunc.training.steps import (
    make_train_step,
)
from lthfunc.training.trainer import make_trainer, seeded_if_random
from lthfunc.training.user_functions import checked_loss, checked_optimizer
from lthfunc.trees.model import run_training
from lthfunc.trees.rng import key
from lthfunc.trees.side_effects import SideEffects
from lthfunc.trees.types import TrainState

CPU = torch.device("cpu")


def test_accuracies_are_of_a_split() -> None:
    model, state = state_of()
    numbers = data()
    for name in ("train", "val", "test"):
        part = getattr(numbers, name)
        outputs = torch.func.functional_call(NET, state.params, (part.x,))
        expected = float((outputs.argmax(1) == part.y).double().mean())
        assert accuracy_on(model, state, numbers, name) == pytest.approx(expected)
    assert accuracy_on(model, state, numbers) == accuracy_on(model, state, numbers, "test")
    by_metric = accuracy_on(model, state, numbers, metric=lf.top_k(3))
    assert by_metric == 1.0
    with pytest.raises(UserError, match=r"^metric: accuracy requires classes"):
        accuracy_on(model, state, data(numbers=True))


def test_the_largest_outputs_are_counted_for_every_token() -> None:
    outputs = torch.tensor([[[3.0, 2, 1, 0], [0, 1, 2, 3]], [[3, 2, 1, 0], [0, 1, 2, 3]]])
    targets = torch.tensor([[0, 0], [2, 1]])  # the best, the fourth, the third and the third
    assert [float(lf.top_k(count)(outputs, targets)) for count in (1, 2, 3, 4, 9)] == [0.25, 0.25, 0.75, 1.0, 1.0]
    assert float(lf.accuracy(outputs, targets)) == 0.25


def test_evaluations_that_draw_draw_the_same() -> None:
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with seeded_if_random(SideEffects(evaluates_randomly=True), CPU):
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded_if_random(SideEffects(), CPU):
        torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_loss_of_a_tree_that_writes_into_it_is_refused() -> None:
    def tidy(outputs: Any, targets: Any) -> Tensor:
        out: Tensor = outputs["logits"].sum() + targets[0].sum()
        return out

    def writes(outputs: Any, targets: Any) -> Tensor:
        out: Tensor = outputs["logits"].mul_(2).sum()
        return out

    def writes_targets(outputs: Any, targets: Any) -> Tensor:
        out: Tensor = targets[0].mul_(2).sum()
        return out

    given = {"logits": torch.ones(2), "name": "x"}, (torch.ones(3), 5)
    assert float(checked_loss("loss", tidy)(*given)) == 5.0
    for function in (writes, writes_targets):
        with pytest.raises(UserError, match=f"^metric: '{function.__name__}' changes its arguments in place; return"):
            checked_loss("metric", function)(*given)
    assert checked_loss("loss", cross_entropy) is cross_entropy
    once = checked_loss("loss", tidy)
    assert checked_loss("loss", once) is once
    assert once.__name__ == "tidy"


@pytest.mark.parametrize("kind", ["loss", "metric"])
def test_a_loss_or_metric_of_several_numbers_is_told_wherever_it_is_taken(kind: str) -> None:
    def several(outputs: Any, targets: Any) -> Tensor:
        return torch.ones(2)

    model, split = lf.from_module(NET), data().val
    state, batch = lf.init(model), (split.x[:4], split.y[:4])
    given: Any = {kind: several}
    words = rf"^{kind}: 'several' returned a tensor of shape \(2,\), not a scalar$"
    with pytest.raises(UserError, match=words):
        lf.make_eval_step(model, **given)(state.params, state.buffers, batch)
    with pytest.raises(UserError, match=words):
        make_trainer(model, data(), optimizer=lf.sgd(0.1), batch_size=4, **given)
    if kind == "loss":
        with pytest.raises(UserError, match=words):
            lf.loss_of(model, state.buffers, several)(state.params, batch)


PARAMS = {"a": torch.ones(2), "b": torch.zeros(3)}


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ((PARAMS, ()), None),
        ([PARAMS, ()], "returned a list, not .params, state.$"),
        ((PARAMS, (), ()), "returned a tuple, not .params, state.$"),
        ((PARAMS,), "returned a tuple, not"),
        (({"a": PARAMS["a"]}, ()), "returned params without b$"),
        (({"b": PARAMS["b"]}, ()), "returned params without a$"),
        (({}, ()), "returned params without a$"),
        (({**PARAMS, "c": PARAMS["a"]}, ()), "returned a dict that is not like the params$"),
        (([PARAMS["a"], PARAMS["b"]], ()), "returned a list that is not like the params$"),
        (({**PARAMS, "b": 3.0}, ()), r"returned a float for b, not float32 of shape \(3,\)$"),
        (
            ({**PARAMS, "b": torch.zeros(2)}, ()),
            r"returned float32 of shape \(2,\) for b, not float32",
        ),
        (
            ({**PARAMS, "a": torch.zeros(2).double()}, ()),
            r"returned float64 of shape \(2,\) for a, not float32 of shape \(2,\)$",
        ),
    ],
)
def test_optimisers_give_params_like_those_they_were_given(result: Any, words: str | None) -> None:
    def init(params: Any) -> Any:
        return 1 / 0 if "b" not in params else PARAMS["a"]

    given: list[Any] = []

    def update(*arguments: Any) -> Any:
        given.append(arguments)
        return result

    optimizer = checked_optimizer(Optimizer(init, update))
    assert optimizer.init(PARAMS) is PARAMS["a"]
    with pytest.raises(UserError, match=r"^optimizer: 'init' fails .*division by zero"):
        optimizer.init({})
    if words is None:
        assert optimizer.update("grads", "state", PARAMS, "step") == result
        assert given == [("grads", "state", PARAMS, "step")]
    else:
        with pytest.raises(UserError, match=f"^optimizer: 'update' {words}"):
            optimizer.update({}, (), PARAMS, torch.tensor(0))
    ours = lf.sgd(0.1)
    assert checked_optimizer(ours) is ours


def test_the_largest_scores_compute_and_the_soft_ones_learn() -> None:
    scores = torch.tensor([[0.5, 3.0], [2.0, 2.0]], requires_grad=True)
    assert [top_k_mask(scores, keep).tolist() for keep in (0, 1, 2, 4)] == [
        [[0, 0], [0, 0]], [[0, 1], [0, 0]], [[0, 1], [1, 1]], [[1, 1], [1, 1]],
    ]  # fmt: skip
    assert not top_k_mask(scores, 2).requires_grad
    mask = straight_through(top_k_mask(scores, 1), scores)
    assert mask.tolist() == [[0, 1], [0, 0]]
    (mask * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[1, 2], [3, 4]]


def test_a_reparametrised_network_computes_with_other_weights() -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))

    def draw(seed: int) -> Any:
        params, buffers = model.init(seed)
        return (
            {name: leaf for name, leaf in params.items() if "weight" in name},
            {name: leaf for name, leaf in params.items() if "bias" in name},
            buffers,
        )

    def doubled(trained: Any, fixed: Any) -> Any:
        return {**{name: 2 * leaf for name, leaf in trained.items()}, **fixed}

    def plain(trained: Any, fixed: Any) -> Any:
        return {**trained, **fixed}

    other = parametrized(model, "other", draw, doubled, plain)
    assert (other.name, other.prunable, other.output) == (
        "other",
        ("trained_0:weight", "trained_2:weight"),
        "trained_2:weight",
    )
    params, buffers = other.init(5)
    trained, fixed, stats = draw(5)
    assert set(params) == {"trained_0:weight", "trained_1:weight", "trained_2:weight"}
    assert {name for name in buffers if name.startswith("fixed_")} == {"fixed_0:bias", "fixed_1:bias", "fixed_2:bias"}
    assert {name for name in buffers if name.startswith("buffers_")} == {
        f"buffers_{name}".replace(".", ":") for name in stats
    }
    assert len(buffers) == len(stats) + 3
    x = torch.randn(7, 6)
    for net, weights, module in (
        (other.training, doubled, model.training),
        (other.evaluating, plain, model.evaluating),
    ):
        found = torch.func.functional_call(net, (params, buffers), (x,))
        expected = torch.func.functional_call(module, (weights(trained, fixed), stats), (x,))
        torch.testing.assert_close(found, expected)
    assert other.training.training
    assert not other.evaluating.training
    assert not any(leaf.requires_grad for leaf in other.training.parameters())
    assert lf.same_bits(trained_part(params, trained), trained)
    assert lf.same_bits(buffers_part(buffers, stats), stats)
    assert set(dict(other.training.named_parameters())) == set(params)
    assert set(dict(other.training.named_buffers())) == set(buffers)


def test_points_and_keys() -> None:
    """What a fit draws layers' noise from: the first seed, at the step it starts at."""
    net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    model, optimizer = lf.from_module(net), lf.sgd(0.1)
    trainer = make_trainer(model, data(), optimizer=optimizer, batch_size=5)
    state: TrainState = lf.with_optimizer(lf.init(model), optimizer)
    step = make_train_step(model, cross_entropy, optimizer)
    by_hand = state
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(3, "layers", 0))
        for batch in batches(trainer.data.train, 5, 3, 0, 4):
            by_hand, _ = step(by_hand, batch)
    found, _ = take_steps(trainer, state, seed=3, until=4)
    assert lf.same_bits(found.params, by_hand.params)
    assert Point(1, 2.0, 3.0, 4.0)._fields == ("step", "train_loss", "val_loss", "val_accuracy")


# ---- normalisation over ranks ----


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    "layer",
    [
        {}, {"affine": False}, {"momentum": None}, {"momentum": 0.3, "eps": 0.1}, {"track_running_stats": False},
        {"track_running_stats": False, "eval": True}, {"eval": True}, {"images": True},
    ],
    ids=str,
)  # fmt: skip
def test_ranks_normalise_as_one_batch(ranks: int, layer: dict[str, Any]) -> None:
    """Outputs, running statistics and gradients of every rank's part, against PyTorch's layer on the whole batch."""
    given = dict(layer)
    frozen, images = given.pop("eval", False), given.pop("images", False)
    kind = nn.BatchNorm2d if images else nn.BatchNorm1d
    model = lf.from_module(nn.Sequential(nn.Conv2d(3, 3, 1) if images else nn.Linear(3, 3), kind(3, **given)))
    training: Any = model.training
    if frozen:
        training[1].eval()
    random = torch.Generator().manual_seed(0)
    shape = (4 * ranks, 3, 2, 2) if images else (4 * ranks, 3)
    x = torch.randn(shape, generator=random, dtype=torch.float64) * 3 + 5
    params = {name: leaf.double() for name, leaf in model.init(1)[0].items()}
    buffers = {n: leaf.double() if leaf.is_floating_point() else leaf for n, leaf in model.init(1)[1].items()}

    def loss(net: nn.Module, params: Any, x: Tensor) -> tuple[Tensor, Any]:
        outputs, after = run_training(model._replace(training=net), params, buffers, x)
        return (outputs.flatten(1) ** 3).sum(1).mean(), (outputs, after)

    grads, (outputs, after) = torch.func.grad(lambda p: loss(training, p, x), has_aux=True)(params)

    def work(rank: int, collectives: Collectives) -> Any:
        mine = with_sync_batchnorm(model, collectives)
        assert mine.training is not training
        part = x[rank * 4 : (rank + 1) * 4]
        return torch.func.grad(lambda p: loss(mine.training, p, part), has_aux=True)(params)

    found = Ranks(ranks).run(work)
    torch.testing.assert_close(torch.cat([each[1][0] for each in found]), outputs, rtol=1e-9, atol=1e-9)
    for name, leaf in grads.items():
        mean = torch.stack([each[0][name] for each in found]).mean(0)
        torch.testing.assert_close(mean, leaf, rtol=1e-7, atol=1e-9)
    for _, (_, kept) in found:
        torch.testing.assert_close(kept, after, rtol=1e-9, atol=1e-9)
    assert with_sync_batchnorm(model, Collectives(0, 1, lambda vector: vector)) is model
