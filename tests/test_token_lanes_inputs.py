"""Few sequences with numbers beside each token, as a mask of padding that is an input of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sparse_programs import kernels  # noqa: F401
from test_token_lanes_masks import Padded, causal
from test_token_lanes_training import assert_alike
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse import training_programs
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import OPCODES
from lthfunc.sparse.program import Epilogue, Lowered, Stored
from lthfunc.sparse.sequence_inputs import length_of
from lthfunc.sparse.token_lanes import training_on_lanes
from lthfunc.training.loop import take_steps
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.model import apply_evaluating
from lthfunc.trees.multi_input import InputSpec
from lthfunc.trees.types import Dataset, Scale, TrainState

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

LENGTH, WORDS = 20, 7


class Beside(nn.Module):
    """Tokens, and what is beside them: truths, whole numbers or floats, of which a mask is made."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inner = kind, Padded(lambda net, x, mask: self.attended(x, mask), words=WORDS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.inner.table(input_ids)
        found: Tensor = self.inner.head(x + self.attended(x, attention_mask))
        return found

    def attended(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.kind == "multihead":
            found: Tensor = self.inner.multihead(x, x, x, key_padding_mask=mask == 0, need_weights=False)[0]
            return found
        if self.kind == "added":
            return self.inner.attended(x, mask[:, None, None, :])
        keys = mask[:, None, None, :].bool()
        return self.inner.attended(x, keys & causal(x.shape[1]) if self.kind == "causal" else keys)


KINDS = {"truths": torch.bool, "causal": torch.int64, "multihead": torch.int64, "added": torch.float32}


def data_of(kind: str, draw: torch.Generator) -> Dataset:
    tokens, targets = torch.randint(0, WORDS, (2, 24, LENGTH), generator=draw)
    mask = torch.rand(24, LENGTH, generator=draw)
    mask = mask if kind == "added" else (mask < 0.7).to(KINDS[kind])
    given = {"input_ids": tokens, "attention_mask": mask}
    return lf.data.from_tensors("text", (given, targets), (given, targets), val=8)


def model_of(kind: str, data: Dataset) -> lf.Model:
    torch.manual_seed(0)
    return lf.from_module(Beside(kind), parts=data.parts, init=lf.as_built, warn=False)


@pytest.mark.parametrize("kind", KINDS)
def test_trainings_equal_the_eager_engine(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stated: 1e-3 relative and absolute."""
    data, made = data_of(kind, torch.Generator().manual_seed(0)), list[Lowered | None]()

    def remembered(*given: Any) -> Lowered | None:
        made.append(training_on_lanes(*given))
        return made[-1]

    monkeypatch.setattr(training_programs, "training_on_lanes", remembered)
    model = model_of(kind, data)
    start, found = lf.prune(density=0.6)(lf.init(model)), list[TrainState]()
    for engine in (lf.sparse_engine, "eager"):
        trainer = make_trainer(
            model, data, optimizer=lf.sgd(0.1, momentum=0.9), loss=lf.next_token, batch_size=4, engine=engine
        )
        found.append(take_steps(trainer, start, seed=0, until=6)[0])
    assert_alike(*found)
    (lowered,) = made
    assert lowered is not None
    assert lowered.program.tokens == LENGTH
    assert OPCODES["token_attention_gradient"] in lowered.program.code.rows[:, 0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_inference_is_that_of_the_network(kind: str) -> None:
    data = data_of(kind, torch.Generator().manual_seed(1))
    model = model_of(kind, data)
    state, x = lf.prune(density=0.6)(lf.init(model)), data.test.x[:5]
    run = lf.sparse_program(model, state)
    torch.testing.assert_close(run(x), apply_evaluating(model, state.params, state.buffers, x), rtol=1e-5, atol=1e-5)
    (made,) = run._lanes.values()
    assert made.workspace.program.tokens == LENGTH


def test_inputs_of_other_lengths_keep_lanes_of_examples() -> None:
    model = model_of("truths", data_of("truths", torch.Generator().manual_seed(0)))
    both = Stored((2 * LENGTH,), torch.float32)
    assert length_of(model, both) == LENGTH
    assert length_of(model, both._replace(scale=Scale(1.0, (0.0,), (1.0,)))) is None
    assert length_of(model, Stored((LENGTH,), torch.float32)) is None
    for shape in ((), (3,), (LENGTH, 2)):
        parts = (InputSpec("input_ids", (LENGTH,), torch.int64), InputSpec("attention_mask", shape, torch.float32))
        other = lf.from_module(Beside("truths"), parts=parts, warn=False)
        assert length_of(other, Stored((LENGTH + torch.Size(shape).numel(),), torch.float32)) is None
    assert training_on_lanes(model, lf.init(model), 4, LENGTH, Epilogue()) is not None
