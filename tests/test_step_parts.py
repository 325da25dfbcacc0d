"""What a step and an evaluation are made of, a user's own functions, and networks of other weights."""

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
    Carry,
    LossOf,
    boolean_masks,
    floating_masks,
    forward_of,
    make_loop_body,
    make_train_step,
    masked,
    on_stored,
)
from lthfunc.training.trainer import make_trainer, seeded_if_random
from lthfunc.training.user_functions import checked_loss, checked_optimizer
from lthfunc.trees.model import run_training
from lthfunc.trees.rng import counter_key, fold_in, key
from lthfunc.trees.side_effects import SideEffects
from lthfunc.trees.types import Scale, TrainState

CPU = torch.device("cpu")


def test_a_loss_knows_temperatures_and_running_statistics() -> None:
    model, state = state_of()
    batch = (torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))
    loss = lf.loss_of(model, state.buffers)
    outputs = torch.func.functional_call(NET, state.params, (batch[0],))
    for temperature in (1.0, 4.0):
        found = loss.at_temperature(temperature)(state.params, batch)
        torch.testing.assert_close(found, nn.functional.cross_entropy(outputs / temperature, batch[1]))
    assert loss.by_example() is loss
    normed = lf.from_module(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)))
    _, buffers = normed.init(0)
    single: LossOf = lf.loss_of(normed, buffers).by_example()
    modes = [part.training for part in single.model.training.modules()]
    assert modes == [True, True, False, True, True]
    assert normed.training.training
    assert all(part.training for part in normed.training.modules())


def test_a_forward_pass_is_as_wide_as_its_inputs() -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))
    params, buffers = model.init(0)
    wide = {name: leaf.double() for name, leaf in params.items()}
    out = forward_of(model, buffers)(wide, torch.ones(2, 6, dtype=torch.float64))
    assert out.dtype == torch.float64
    with pytest.raises(UserError, match=r"^--score: synflow requires a network with real inputs, but net reads to"):
        forward_of(model._replace(tokens=5, name="net"), buffers)  # type: ignore[arg-type]


class Narrow(nn.Module):
    """Runs in float32 alone, and on its own words where it is told to."""

    def __init__(self, words: str = "") -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.words = words

    def forward(self, x: Tensor) -> Tensor:
        if self.words:
            raise UserError(self.words)
        out: Tensor = self.fc(x) @ torch.ones(3, 3)
        return out


def test_a_forward_pass_that_fails_is_told_with_its_precision() -> None:
    model = lf.from_module(Narrow())
    params, buffers = model.init(0)
    wide = {name: leaf.double() for name, leaf in params.items()}
    assert forward_of(model, buffers)(params, torch.ones(2, 6)).shape == (2, 3)
    with pytest.raises(UserError, match=r"^Narrow cannot be run in float64, as synflow does"):
        forward_of(model, buffers)(wide, torch.ones(2, 6, dtype=torch.float64))
    own = model._replace(evaluating=Narrow("my own words"))
    with pytest.raises(UserError, match=r"^my own words$"):
        forward_of(own, buffers)(params, torch.ones(2, 6))


class Wide(nn.Module):
    """A user's own in float64, with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(6).double(), nn.Linear(6, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(x))
        return out


def test_states_may_be_of_the_inputs_precision_instead_of_the_modules() -> None:
    model = lf.from_module(Wide())
    trainer = lf.make_trainer(model, data(), optimizer=lf.sgd(0.1), batch_size=5)
    state = lf.init(model)
    narrow = state._replace(
        params={name: leaf.float() for name, leaf in state.params.items()},
        buffers={name: leaf.float() if leaf.is_floating_point() else leaf for name, leaf in state.buffers.items()},
    )
    after = lf.take_steps(trainer, narrow, seed=0, until=2)[0]
    assert all(leaf.dtype == torch.float32 for leaf in after.params.values())


class Detached(nn.Module):
    """Outputs that depend on no parameter; or targets that the loss would, if it took them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x).detach()
        return out


def test_a_loss_of_no_parameter_is_told_before_training() -> None:
    with pytest.raises(UserError, match="the outputs of Detached depend on no parameter"):
        lf.make_trainer(lf.from_module(Detached()), data(), optimizer=lf.sgd(0.1), batch_size=5)

    def constant(outputs: Tensor, targets: Tensor) -> Tensor:
        return targets.double().mean()

    def of_outputs(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean().double()

    with pytest.raises(UserError, match="depend on no parameter"):
        lf.make_trainer(
            lf.from_module(NET), data(), optimizer=lf.sgd(0.1), batch_size=5, loss=constant, metric=of_outputs
        )
    lf.make_trainer(lf.from_module(NET), data(), optimizer=lf.sgd(0.1), batch_size=5, loss=of_outputs, metric=constant)


def test_what_a_loop_adds_to_a_step() -> None:
    seen: list[Any] = []

    def step(state: Any, batch: Any, *rest: Any) -> Any:
        seen.append((batch, rest))
        return state._replace(step=state.step + 1), {"loss": torch.tensor(2.0)}

    drawn: list[Any] = []

    def augment(inputs: Tensor, key: Tensor, *place: int) -> Tensor:
        drawn.append((int(key), place))
        return inputs + 1

    _, state = state_of()
    state = state._replace(step=torch.tensor(3))
    run = counter_key(0, "step")
    carry = Carry(state, run, torch.tensor([5.0], dtype=torch.float64), torch.tensor([1]))
    stored, y, scale = torch.tensor([2, 4], dtype=torch.uint8), torch.tensor([0, 1]), Scale(2, (0.5,), (0.25,))
    scaled = (torch.tensor([1.0, 2.0]) - 0.5) / 0.25
    after = make_loop_body(step)(carry, (scaled, y))
    assert (float(after.loss), int(after.state.step)) == (7.0, 4)
    assert after.key is run
    make_loop_body(step, scale)(carry, (stored, y))
    make_loop_body(step, scale, augment)(carry, (stored, y))
    make_loop_body(step, scale, augment, Collectives(1, 2, lambda vector: vector))(carry, (stored, y))
    make_loop_body(step, scale, augment, Collectives(2, 3, lambda vector: vector))(carry, (stored, y))
    number = int(fold_in(run, torch.tensor(3)))
    assert drawn == [(number, ()), (number, (2,)), (number, (4,))]  # of two inputs on each rank
    expected = [scaled, scaled, *[scaled + 1] * 3]
    assert [len(rest) for _, rest in seen] == [0, 0, 0, 1, 1]
    for ((inputs, targets), _), wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(inputs, wanted)
        assert targets is y
    assert seen[-1][1][0] is carry.travels
    told = on_stored(lambda params, buffers, batch: {"loss": batch[0].sum(), "accuracy": batch[1]}, scale)(
        {}, {}, (stored, y)
    )
    torch.testing.assert_close(told["loss"], scaled.sum())
    assert told["accuracy"] is y


def test_masks_are_floats_in_a_loop_and_bools_outside() -> None:
    _, state = state_of()
    floats = floating_masks(state)
    for name, mask in floats.masks.items():
        assert mask.dtype == torch.float32
        assert torch.equal(mask.bool(), state.masks[name])
    assert lf.same_bits(boolean_masks(floats), state)
    grads = {name: torch.randn_like(leaf) for name, leaf in state.params.items()}
    for masks in (state.masks, floats.masks):
        found = masked(grads, masks)
        assert list(found) == list(grads)
        for name, leaf in grads.items():
            assert torch.equal(found[name], torch.where(state.masks[name], leaf, 0) if name in state.masks else leaf)


def test_a_step_after_mixing_masks_the_weights() -> None:
    model, state = state_of()
    moves = Optimizer(
        lambda params: (), lambda g, s, p, t: ({name: leaf + 1 for name, leaf in p.items()}, s), mixes=True
    )
    start = state._replace(opt=None)
    batch = (torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))
    after, metrics = make_train_step(model, cross_entropy, moves)(start, batch)
    for name, mask in state.masks.items():
        assert torch.equal(after.params[name], torch.where(mask, state.params[name] + 1, 0))
    assert int(after.step) == 1
    assert sorted(metrics) == ["accuracy", "loss"]
    assert metrics["accuracy"].dtype == torch.float64


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
    assert float(checked_loss("loss", tidy)(*given)) == 5.0  # type: ignore[arg-type]
    for function in (writes, writes_targets):
        with pytest.raises(UserError, match=f"^--metric: '{function.__name__}' changes its arguments in place; return"):
            checked_loss("metric", function)(*given)  # type: ignore[arg-type]
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
    words = rf"^--{kind}: 'several' returned a tensor of shape \(2,\), not a scalar$"
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
        (({**PARAMS, "b": 3.0}, ()), r"returned a float for b, not torch.float32 \(3,\)$"),
        (({**PARAMS, "b": torch.zeros(2)}, ()), r"returned torch.float32 \(2,\) for b, not torch.float32 \(3,\)$"),
        (
            ({**PARAMS, "a": torch.zeros(2).double()}, ()),
            r"returned torch.float64 \(2,\) for a, not torch.float32 \(2,\)$",
        ),
    ],
)
def test_optimisers_give_params_like_those_they_were_given(result: Any, words: str | None) -> None:
    def init(params: Any) -> Any:
        return 1 / 0 if "b" not in params else "state"

    given: list[Any] = []

    def update(*arguments: Any) -> Any:
        given.append(arguments)
        return result

    optimizer = checked_optimizer(Optimizer(init, update))
    assert optimizer.init(PARAMS) == "state"
    with pytest.raises(UserError, match=r"^--optimizer: 'init' fails .*division by zero"):
        optimizer.init({})
    if words is None:
        assert optimizer.update("grads", "state", PARAMS, "step") == result  # type: ignore[arg-type]
        assert given == [("grads", "state", PARAMS, "step")]
    else:
        with pytest.raises(UserError, match=f"^--optimizer: 'update' {words}"):
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
