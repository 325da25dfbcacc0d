"""Networks of several inputs and outputs on the sparse engine: against the eager engine, and against the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from sparse_programs import kernels as kernels
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.loops import takes_whole_steps
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.python_losses import why_not_loss
from lthfunc.sparse.workspace import Workspace
from lthfunc.trees.model import apply_training

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

WORDS, LENGTH = 13, 5


class Pair(NamedTuple):
    logits: Tensor
    words: Tensor


class Encoder(nn.Module):
    """Tokens and numbers in; a kind of each example and a word for each place out."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.form = form
        self.embedding, self.reading = nn.Embedding(WORDS, 8), nn.Linear(3, 8)
        self.mixing, self.kind, self.word = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, WORDS)

    def forward(self, tokens: Tensor, numbers: Tensor) -> Any:
        hidden = self.embedding(tokens) + self.reading(numbers)[:, None]
        hidden = hidden + torch.relu(self.mixing(hidden))
        return self.form(self.kind(hidden.mean(1)), self.word(hidden))


Form = Callable[[Tensor, Tensor], Any]
FORMS: dict[str, Form] = {
    "dictionary": lambda kind, words: {"words": words, "logits": kind},
    "tuple": lambda kind, words: (kind, [words]),
    "class": Pair,
}


def pair_of(outputs: Any) -> tuple[Tensor, Tensor]:
    if isinstance(outputs, dict):
        return outputs["logits"], outputs["words"]
    kind, words = outputs
    return kind, words[0] if isinstance(words, list) else words


def of_both(outputs: Any, targets: Tensor) -> Tensor:
    kind, words = pair_of(outputs)
    return F.cross_entropy(kind, targets[:, 0]) + 0.5 * F.cross_entropy(words.mT, targets[:, 1:])


def right(outputs: Any, targets: Tensor) -> Tensor:
    kind, words = pair_of(outputs)
    return (kind.argmax(1) == targets[:, 0]).float().mean() / 2 + (words.argmax(2) == targets[:, 1:]).float().mean() / 2


def sentences(count: int, draw: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    tokens = torch.randint(0, WORDS, (count, LENGTH), generator=draw)
    numbers = torch.randn(count, 3, generator=draw)
    kind = tokens.sum(1) % 2 + 2 * (numbers[:, 0] > 0)
    return {"tokens": tokens, "numbers": numbers}, torch.cat([kind[:, None], (tokens + 1) % WORDS], 1)


@pytest.fixture(scope="module")
def texts() -> lf.Dataset:
    draw = torch.Generator().manual_seed(0)
    return lf.data.from_tensors("texts", sentences(70, draw), sentences(30, draw), val=20)


def after_training(engine: Any, model: lf.Model, data: lf.Dataset, steps: int = 6, **given: Any) -> Any:
    given = {"optimizer": lf.sgd(0.1, momentum=0.9), "batch_size": 20, **given}
    trainer = lf.make_trainer(model, data, engine=engine, **given)
    fitted = lf.fit(trainer, lf.prune(density=0.5)(lf.init(model)), seed=1, until=steps, eval_every=steps)
    return fitted.state, fitted.curve[-1]


def check_like_eager(model: lf.Model, data: lf.Dataset, **given: Any) -> lf.TrainState:
    (ours, mine), (theirs, other) = (after_training(each, model, data, **given) for each in (lf.sparse_engine, "eager"))
    wanted, found = theirs.params | theirs.buffers, ours.params | ours.buffers
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert mine == pytest.approx(other, rel=1e-4, abs=1e-5)
    state: lf.TrainState = ours
    return state


@pytest.mark.parametrize("form", FORMS)
def test_tokens_and_numbers_train_two_heads_as_on_the_eager_engine(texts: lf.Dataset, form: str) -> None:
    model = lf.from_module(Encoder(FORMS[form]), parts=texts.parts)
    state = check_like_eager(model, texts, loss=of_both, metric=right)
    start = lf.prune(density=0.5)(lf.init(model))
    for name in ("kind.weight", "word.weight", "embedding.weight", "reading.weight"):
        assert not torch.equal(state.params[name], start.params[name]), name


class Sided(nn.Module):
    """As GoogLeNet: a head beside the network, with a normalisation of its own, in training alone."""

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.always = always
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.side = nn.Sequential(nn.Conv2d(6, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10))
        self.head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 10))

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x)
        if self.training or self.always:
            return {"side": self.side(hidden), "logits": self.head(hidden)}
        return self.head(hidden)


@pytest.fixture(scope="module")
def digits() -> lf.Dataset:
    data = lf.data.load("digits")
    return data._replace(train=lf.Split(data.train.x[:80], data.train.y[:80]))


def test_heads_of_training_alone_train_with_a_loss_of_both(digits: lf.Dataset) -> None:
    side = lf.on_output("side", lf.cross_entropy, training_only=True)
    loss = lf.sum_of_losses((1.0, lf.cross_entropy), (0.3, side))
    model = lf.from_module(Sided())
    assert why_not_loss(lf.make_trainer(model, digits, optimizer=lf.sgd(0.1), loss=loss).work, digits.train) is None
    check_like_eager(model, digits, loss=loss)


@pytest.mark.parametrize("always", [False, True])
def test_cross_entropy_of_one_head_is_the_machines_and_leaves_the_other_alone(digits: lf.Dataset, always: bool) -> None:
    model = lf.from_module(Sided(always))
    assert takes_whole_steps(lf.make_trainer(model, digits, optimizer=lf.sgd(0.1)).work)
    state = check_like_eager(model, digits)
    start = lf.prune(density=0.5)(lf.init(model))
    assert torch.equal(state.params["side.4.weight"], start.params["side.4.weight"])
    assert not torch.equal(state.buffers["side.1.running_mean"], start.buffers["side.1.running_mean"])


class Overlapping(nn.Module):
    """Outputs that share memory: read by others, given twice, parts of one, seen in two shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(2, 4, 3), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Any:
        image = torch.relu(self.body(x))
        head = self.head(image.flatten(1))
        return {
            "head": head, "again": head, "part": head[:, 1:3], "image": image, "flat": image.flatten(1),
            "turned": image.transpose(1, 2), "x": x, "none": None,
        }  # fmt: skip


def test_outputs_that_overlap_have_the_gradients_of_float64() -> None:
    model, draw = lf.from_module(Overlapping()), torch.Generator().manual_seed(3)
    params, buffers = model.init(0)
    x, y = torch.randn(19, 2, 6, 6, generator=draw), torch.zeros(19, dtype=torch.int64)
    program = program_of(
        captured(model, (2, 6, 6), training=True), params, buffers, {}, batch=24,
        stored=Stored((2, 6, 6), torch.float32), epilogue=Epilogue(None),
    )  # fmt: skip
    workspace = Workspace(program, params, buffers)
    workspace.run(x[None], y[None], within=(0, program.forward))
    places = workspace.handed_out(len(x))
    given = program.rebuilt(places)
    wanted, _ = apply_training(model, params, buffers, x)
    torch.testing.assert_close(given, wanted)

    weights = {name: torch.randn(each.shape, generator=draw) for name, each in wanted.items() if each is not None}

    def total(outputs: dict[str, Tensor]) -> Tensor:
        return sum(((outputs[name] * weight).square().sum() for name, weight in weights.items()), torch.zeros(()))

    tensors = [place.clone().requires_grad_() for place in places]
    for place, gradient in zip(places, torch.autograd.grad(total(program.rebuilt(tensors)), tensors), strict=True):
        place.copy_(gradient)
    workspace.run(x[None], y[None], within=(program.forward, program.backward))
    ours = workspace.dense(workspace.gradients)
    wide = {name: leaf.double().requires_grad_() for name, leaf in params.items()}
    total(apply_training(model, wide, buffers, x.double())[0]).backward()
    for name, leaf in wide.items():
        assert leaf.grad is not None
        torch.testing.assert_close(ours[name].double(), leaf.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("examples", [1, 600])
def test_tickets_give_what_their_network_gives(texts: lf.Dataset, examples: int) -> None:
    model = lf.from_module(Encoder(Pair), parts=texts.parts)
    ticket = lf.prune(density=0.5)(lf.init(model))
    x = texts.train.x[:1].repeat(examples, 1)
    x[:, LENGTH:] += torch.linspace(-1, 1, examples)[:, None]
    given = lf.sparse_program(model, ticket)(x)
    assert type(given) is Pair
    torch.testing.assert_close(given, lf.to_module(lf.ticket(ticket), model)(x), rtol=1e-4, atol=1e-5)


class Given(nn.Module):
    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.form, self.head = form, nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Any:
        return self.form(self.head(x.flatten(1)))


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda logits: {"logits": logits, "class": logits.argmax(1)}, "no rule for argmax"),
        (lambda logits: {"logits": logits, "mean": logits.mean()}, "no rule for mean"),
        (lambda logits: {"logits": logits, "certain": logits > 0}, "numbers of each example"),
        (lambda logits: {"loss": logits.sum(1)[0]}, "numbers of each example|no rule for"),
        (lambda logits: {"loss": torch.zeros(())}, "numbers of each example"),
    ],
)
def test_outputs_that_are_no_numbers_of_each_example_are_refused(form: Callable[[Tensor], Any], words: str) -> None:
    model = lf.from_module(Given(form))
    graph = captured(model, (1, 8, 8), training=True)
    stored = Stored((1, 8, 8), torch.float32)
    for loss in ("cross_entropy", None):
        with pytest.raises(UserError, match=words):
            program_of(graph, *model.init(0), {}, batch=4, stored=stored, epilogue=Epilogue(loss))


def test_floats_become_whole_numbers_as_in_pytorch() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Linear(9, 9)

        def forward(self, x: Tensor) -> Tensor:
            whole: Tensor = self.scale(x.long().float())
            return whole + x.trunc()

    model = lf.from_module(Whole())
    ticket = lf.prune(density=0.5)(lf.init(model))
    row = torch.tensor([-3.0, -1.7, -0.2, 0.0, 0.9, 1.0, 2.999, 8388609.0, 16777216.0])
    for examples in (1, 20):
        x = row.repeat(examples, 1)
        found = lf.sparse_program(model, ticket)(x)
        torch.testing.assert_close(found, lf.to_module(lf.ticket(ticket), model)(x), rtol=1e-6, atol=1e-3)
