"""Losses that see more than outputs and targets, against loops by hand, on every engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import data
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparse.kernels.build import why_no_kernels
from lthfunc.training.batches import batches
from lthfunc.training.engines.toolchain import why_not
from lthfunc.training.evaluation import averaged
from lthfunc.training.loop import fit_together
from lthfunc.training.losses import Loss
from lthfunc.trees.ops import clone, same_bits
from lthfunc.trees.types import TrainState

DATA, BATCH, STEPS = data(count=90), 10, 12
NET = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
MODEL = lf.from_module(NET)
OPTIMIZER = lf.sgd(0.2, momentum=0.9)


def teacher() -> nn.Sequential:
    """Statistics, dropout: its outputs are others in training mode, and so are its hidden units in number."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    net(torch.randn(50, 6) * 2 + 1)
    return net


def start(seed: int = 0) -> TrainState:
    return lf.prune(density=0.6)(lf.init(MODEL, seed))


def trained(loss: Loss, engine: Any = "eager", **more: Any) -> TrainState:
    train = lf.train(
        MODEL, DATA, optimizer=OPTIMIZER, steps=STEPS, batch_size=BATCH, seed=3, loss=loss, engine=engine, **more
    )
    return train(start())


def by_hand(loss: Any) -> dict[str, Tensor]:
    """The parameters after the same steps of PyTorch. loss: (module, hidden units, outputs, x, y) -> scalar."""
    state = start()
    net = lf.to_module(lf.ticket(state), MODEL).train()
    assert isinstance(net, nn.Sequential)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    for x, y in batches(DATA.train, BATCH, 3, 0, STEPS):
        optimizer.zero_grad()
        hidden = net[0](x)
        loss(net, hidden, net[1:](hidden), x, y).backward()
        for name, mask in state.masks.items():
            net.get_parameter(name).grad.mul_(mask)  # type: ignore[union-attr]
        optimizer.step()
    return dict(net.named_parameters())


def assert_equal(state: TrainState, params: dict[str, Tensor]) -> None:
    for name, leaf in params.items():
        torch.testing.assert_close(state.params[name], leaf.detach(), rtol=1e-4, atol=1e-5)


def divergence(outputs: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """In float64, from the definition."""
    p, q = (torch.softmax(each.double() / temperature, 1) for each in (taught, outputs))
    return (p * (p.log() - q.log())).sum(1).mean() * temperature**2


@pytest.mark.parametrize("engine", ["eager", "sparse"])
def test_a_network_learns_from_its_teacher(engine: str) -> None:
    if engine == "sparse" and why_no_kernels() is not None:
        pytest.skip(str(why_no_kernels()))
    master = teacher()
    before = clone(dict(master.state_dict()))
    found = trained(
        lf.distillation(master, weight=0.7, temperature=3.0), lf.sparse_engine if engine == "sparse" else engine
    )
    assert same_bits(before, dict(master.state_dict()))
    assert master.training
    master.eval()

    def loss(net: nn.Module, hidden: Tensor, outputs: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return 0.3 * F.cross_entropy(outputs, y) + 0.7 * divergence(outputs, master(x).detach(), 3.0)

    assert_equal(found, by_hand(loss))


def test_the_divergence_of_tokens_and_pixels_is_that_of_each_place() -> None:
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(2, 3, 5, 4, generator=draw) for _ in range(2))
    term = lf.with_context(lf.teacher_divergence(2.0), teacher=nn.Identity())
    of_places = [each.permute(0, 2, 3, 1).flatten(0, 2) for each in (ours, theirs)]
    wanted = float(divergence(of_places[0], of_places[1], 2.0))
    assert float(term(ours, torch.zeros(2, 5, 4).long(), lf.LossContext(theirs))) == pytest.approx(wanted, rel=1e-5)
    tokens = [each.permute(0, 2, 3, 1).flatten(1, 2) for each in (ours, theirs)]
    assert float(term(tokens[0], torch.zeros(2, 20), lf.LossContext(tokens[1]))) == pytest.approx(wanted, rel=1e-5)


def everything(outputs: Any, targets: Tensor, context: lf.LossContext) -> Tensor:
    """Each part of the context but features counts, so that an engine that gets one wrong ends elsewhere."""
    assert context.teacher is not None
    weight = 1.0 if context.step is None else context.step / STEPS
    kept = 1.0 if context.masks is None else sum(mask.sum() for mask in context.masks.values()) / 100
    size = sum(leaf.square().sum() for leaf in context.params.values())
    hidden = context.features["0"] if context.features else torch.zeros(1)
    taught = F.mse_loss(outputs, context.teacher.outputs) + (context.inputs[:, :3] * outputs).mean()
    loss: Tensor = F.cross_entropy(outputs, targets) + weight * taught + kept * 1e-2 * size + hidden.square().mean()
    return loss


@pytest.mark.parametrize("engine", ["eager", pytest.param("compile", marks=pytest.mark.long)])
def test_what_a_loss_sees(engine: str) -> None:
    if (missing := why_not("cpu")) is not None and engine == "compile":
        pytest.skip(missing)
    master = teacher()
    loss = lf.with_context(everything, features=["0"], teacher=master)
    found = trained(loss, engine)
    master.eval()
    masks, steps = start().masks, iter(range(STEPS))
    kept = sum(int(mask.sum()) for mask in masks.values()) / 100

    def the_same(net: nn.Module, hidden: Tensor, outputs: Tensor, x: Tensor, y: Tensor) -> Tensor:
        taught = F.mse_loss(outputs, master(x).detach()) + (x[:, :3] * outputs).mean()
        size = sum((leaf.square().sum() for leaf in net.parameters()), torch.zeros(()))
        part = next(steps) / STEPS * taught
        return F.cross_entropy(outputs, y) + part + kept * 1e-2 * size + hidden.square().mean()

    assert_equal(found, by_hand(the_same))
    if engine == "compile":  # its other programs take as long to make, and are of the same functions
        return
    trainer = lf.make_trainer(MODEL, DATA, optimizer=OPTIMIZER, batch_size=BATCH, loss=loss, engine=engine)
    together = fit_together(trainer, [start(), start(1)], seeds=[3, 4], until=STEPS, eval_every=STEPS)
    torch.testing.assert_close(together[0].state.params, found.params, rtol=1e-4, atol=1e-5)
    alone = lf.fit(trainer, start(1), seed=4, until=STEPS, eval_every=STEPS)
    assert together[1].curve[-1] == pytest.approx(alone.curve[-1], rel=1e-4)
    # An evaluation is the same loss in the other mode, without masks and a step.
    net = lf.to_module(lf.ticket(alone.state), MODEL)
    assert isinstance(net, nn.Sequential)
    x, y = DATA.val
    taught = F.mse_loss(net(x), master(x)) + (x[:, :3] * net(x)).mean()
    size = sum(float(leaf.detach().square().sum()) for leaf in net.parameters())
    wanted = F.cross_entropy(net(x), y) + taught + 1e-2 * size + net[0](x).square().mean()
    assert alone.curve[-1].val_loss == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.skipif(why_no_kernels() is not None, reason="no compiler for the sparse engine")
def test_the_sparse_engine_gives_what_it_has_and_says_what_it_has_not() -> None:
    master, seen, kept = teacher(), list[int](), list[float]()

    def late(outputs: Tensor, targets: Tensor, context: lf.LossContext) -> Tensor:
        assert context.teacher is not None
        if context.step is not None and context.masks is not None:
            seen.append(int(context.step))
            kept.append(lf.density(context.masks))
        taught = F.mse_loss(outputs, context.teacher.outputs)
        return taught if context.step is None else F.cross_entropy(outputs, targets) + context.step * taught

    loss = lf.with_context(late, teacher=master)
    halved = data(count=90)._replace(scale=lf.Scale(2.0, (0.5,), (1.5,)))
    ends = []
    for engine in (lf.sparse_engine, "eager"):
        trainer = lf.make_trainer(MODEL, halved, optimizer=lf.sgd(0.01), batch_size=BATCH, loss=loss, engine=engine)
        ends.append(lf.fit(trainer, start(), seed=3, until=STEPS, eval_every=5))
    torch.testing.assert_close(ends[0].state.params, ends[1].state.params, rtol=1e-4, atol=1e-5)
    assert [each.val_loss for each in ends[0].curve] == pytest.approx(
        [each.val_loss for each in ends[1].curve], rel=1e-4
    )
    assert set(range(STEPS)) <= set(seen)
    assert set(kept) == {1.0, lf.density(start().masks)}  # of a dense network in the trial step
    with pytest.raises(UserError, match=r"^engine: sparse gives a loss no features of layers \(0\)"):
        trained(lf.with_context(everything, features=["0"], teacher=master), lf.sparse_engine)
    with pytest.raises(UserError, match=r"^engine: sparse gives a loss no context.params, by which .*use eager or c"):
        trained(lf.with_context(everything, teacher=master), lf.sparse_engine)


def test_hints_and_attention_maps_of_the_teacher() -> None:
    def images(net: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), net, nn.Flatten(), nn.LazyLinear(3))

    torch.manual_seed(0)
    student, master = images(nn.Conv2d(1, 4, 2)), images(nn.Conv2d(1, 9, 2))
    x, y = DATA.train.x[:20], DATA.train.y[:20]
    student(x), master(x)
    model = lf.from_module(student, init=lf.as_built)
    params = lf.init(model).params
    looks = lf.with_context(lf.attention_transfer({"1": "1"}), teacher=master)
    maps = []
    for net in (student, master):
        squared = net[:2](x).detach().double().pow(2).mean(1).reshape(20, -1)
        maps.append(squared / squared.norm(dim=1, keepdim=True))
    assert float(lf.loss_of(model, {}, looks)(params, (x, y))) == pytest.approx(
        float((maps[0] - maps[1]).pow(2).mean())
    )
    # FitNets' regressor is a layer of the network, which learns to say what the teacher's says.
    hinted = nn.Sequential(student[0], student[1], nn.Conv2d(4, 9, 1), nn.Flatten(), nn.Linear(18, 3))
    loss = lf.with_context(
        lf.sum_of_losses((1.0, lf.cross_entropy), (2.0, lf.feature_matching({"2": "1"}))), teacher=master
    )
    model = lf.from_module(hinted)
    train = lf.train(model, DATA, optimizer=lf.adam(1e-2), steps=60, batch_size=20, loss=loss)
    before, after = lf.init(model), train(lf.init(model))
    total = lf.loss_of(model, {}, loss)
    gaps = []
    for state in (before, after):
        found = lf.to_module(lf.ticket(state), model)
        assert isinstance(found, nn.Sequential)
        gaps.append(F.mse_loss(found[:3](x), master[:2](x)))
        wanted = F.cross_entropy(found(x), y) + 2 * gaps[-1]
        assert float(total(state.params, (x, y))) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert gaps[1] < 0.5 * gaps[0]


class Auxiliary(nn.Module):
    """A second head in training mode alone, as GoogLeNet has it."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.body, self.head, self.aux, self.named = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 3), named

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x).tanh()
        if not self.training:
            return self.head(hidden)
        both = self.head(hidden), self.aux(hidden)
        return dict(zip(("logits", "aux"), both, strict=True)) if self.named else both


@pytest.mark.parametrize("name", ["aux", 1])
def test_auxiliary_heads(name: str | int) -> None:
    net = Auxiliary(isinstance(name, str))
    model = lf.from_module(net, init=lf.as_built)
    side = lf.on_output(name, lf.label_smoothed_cross_entropy(0.1), training_only=True)
    loss = lf.sum_of_losses((1.0, lf.cross_entropy), (0.3, side))
    trainer = lf.make_trainer(model, DATA, optimizer=lf.sgd(0.2), batch_size=BATCH, loss=loss)
    found = lf.fit(trainer, lf.init(model), seed=3, until=STEPS, eval_every=STEPS)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    for x, y in batches(DATA.train, BATCH, 3, 0, STEPS):
        optimizer.zero_grad()
        hidden = net.body(x).tanh()
        smoothed = F.cross_entropy(net.aux(hidden), y, label_smoothing=0.1)
        (F.cross_entropy(net.head(hidden), y) + 0.3 * smoothed).backward()
        optimizer.step()
    torch.testing.assert_close(found.state.params, {k: v.detach() for k, v in net.named_parameters()})
    x, y = DATA.val
    assert found.curve[-1].val_loss == pytest.approx(float(F.cross_entropy(net.eval()(x), y)))
    outputs = {"logits": torch.eye(2), "aux": torch.zeros(2, 2)}
    assert lf.on_output("logits", lf.accuracy)(outputs, torch.tensor([0, 1])) == 1
    told = lf.on_output("aux", lf.perplexity)
    of_tokens: Any = {"aux": torch.randn(3, 4, 5), "logits": torch.zeros(1)}, torch.arange(12).view(3, 4) % 5
    assert float(averaged(told)(*of_tokens).exp()) == pytest.approx(float(told(*of_tokens)))


def odd(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return outputs.sum()


def writes(outputs: Tensor, targets: Tensor, context: lf.LossContext) -> Tensor:
    return (context.inputs.mul_(2).mean() * outputs).sum()


def calls(net: nn.Module, **more: Any) -> Loss:
    return lf.with_context(lf.teacher_divergence(), teacher=net, **more)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda: odd, "^loss: 'odd' needs an argument 'weights' .expected outputs, targets and, where it sees"),
        (lambda: writes, "^loss: 'writes' changes its arguments in place"),
        (lambda: calls(nn.Linear(6, 4)), r"teacher: its outputs are float32 of shape \(8, 4\), the network's .*\(8, 3"),
        (lambda: calls(nn.Linear(7, 3)), r"teacher: Linear cannot take inputs of shape \(6,\)"),
        (lambda: calls(nn.Linear(6, 3), features=["one"]), "^loss: features: unknown name 'one' .expected one of 0"),
        (lambda: calls(NET, of_teacher=["4"]), "of_teacher: unknown name '4'"),
        (lambda: lf.teacher_divergence(), "teacher_divergence: requires a teacher; lf.with_context"),
        (lambda: calls(NET, features=["idle"]), "features: the layer 'idle' is not called in forward"),
        (lambda: lf.on_output("aux", lf.cross_entropy), "on_output: the network has no output 'aux'; it gives a Te"),
        (lambda: lf.with_context(lf.feature_matching({"0": "0"}), teacher=nn.Sequential(nn.Linear(6, 3))),
         r"feature_matching: '0' gives float32 of shape \(8, 8\), the teacher's layer float32 of shape \(8, 3\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_is_told_before_training(loss: Any, words: str) -> None:
    net = nn.Sequential(*NET)
    net.idle, net.forward = nn.Linear(1, 1), NET.forward  # type: ignore[method-assign]
    with pytest.raises(UserError, match=f"^{words}"):
        lf.make_trainer(lf.from_module(net), DATA, optimizer=OPTIMIZER, batch_size=BATCH, loss=loss())


def test_a_loss_that_needs_a_context_says_so_when_it_is_called_without() -> None:
    loss = lf.distillation(NET)
    x = torch.zeros(2, 6)
    assert float(loss(NET(x), torch.tensor([0, 1]), lf.LossContext(x)).isfinite())
    with pytest.raises(lf.ArgumentError, match=r"^loss: context must be an lf.LossContext\(inputs, …\)"):
        loss(NET(x), torch.tensor([0, 1]))
