"""What cannot be compacted, or run on the sparse engine, is told in one line with the user's own; the rest goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lthfunc_cli.main import main
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.catalog.deployment import EXPORTS
from lthfunc.deployment.compaction.compact import compact_training
from lthfunc.deployment.export.exportable import exportable_of
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.functions import structure_of
from lthfunc.experiments.plan import prepare
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.schema import from_mapping
from lthfunc.sparse.kernels import build as kernels
from lthfunc.trees.model import apply_evaluating

built = pytest.mark.skipif(kernels.why_no_kernels() is not None, reason=str(kernels.why_no_kernels()))


class Given(nn.Module):
    """Two layers and a forward of somebody's own."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(32, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.given = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.given(self, x)


@torch.library.custom_op("lthfunc_tests::unlucky", mutates_args=())
def unlucky(x: Tensor) -> Tensor:
    """Fails, but only with values."""
    raise RuntimeError("no luck\ntoday")


@unlucky.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def fails(net: Any, x: Tensor) -> Tensor:
    out: Tensor = unlucky(net.fc(net.conv(x).flatten(1)))
    return out


def clamps(net: Any, x: Tensor) -> Tensor:
    net.fc.weight.data.clamp_(-1, 1)
    out: Tensor = net.fc(net.conv(x).flatten(1))
    return out


def scales(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        net.fc.weight.mul_(0.5)
    out: Tensor = net.fc(net.conv(x).flatten(1))
    return out


def by_values(net: Any, x: Tensor) -> Tensor:
    y = net.fc(net.conv(x).flatten(1))
    out: Tensor = -y if float(y.sum()) > 0 else y
    return out


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (fails, r"unlucky fails \(no luck\) \(line \d+ of .*test_refusing_code\.py: return self.given"),
        (clamps, r"works on a tensor that the graph does not know"),
        (scales, r"mul changes the parameter fc\.weight"),
        (by_values, r" \(line \d+ of .*test_refusing_code\.py: out: Tensor = -y if float"),
    ],
)
def test_what_cannot_be_compacted_is_one_line(forward: Any, words: str) -> None:
    model = lf.from_module(Given(forward))
    for make in (lf.compact, compact_training):
        with pytest.raises(UserError, match=f"^compact: Given cannot be compacted.*{words}") as caught:
            make(model, lf.init(model), (1, 4, 4))
        assert "\n" not in str(caught.value)


def test_forms_and_exports_that_need_no_compaction_are_there(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda graph, *given, **settings: graph)
    model = lf.from_module(Given(by_values))
    ticket = lf.ticket(lf.prune(density=0.5)(lf.init(model)))
    x = torch.randn(6, 1, 4, 4)
    wanted = apply_evaluating(model, ticket.params, ticket.buffers, x)
    program = lf.specialize(ticket, model, x, format="dense")
    torch.testing.assert_close(program(x), wanted)
    assert "cannot be compacted" in program.report.left_out["compact"]
    assert "cannot be compiled (line" in program.report.left_out["compiled code"]
    with pytest.raises(UserError, match=r"^format: invalid value 'compact' .* cannot be compacted"):
        lf.specialize(ticket, model, x, format="compact")
    subject = exportable_of(model, ticket, (1, 4, 4))
    EXPORTS.load("state-dict")(subject, tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"^export: Given cannot be exported"):
        EXPORTS.load("torch-export")(subject, tmp_path / "net.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_buffer_that_is_replaced_in_training_is_not_lost() -> None:
    def counts(net: Any, x: Tensor) -> Tensor:
        net.seen = net.seen + len(x)
        out: Tensor = net.fc(net.conv(x).flatten(1))
        return out

    model = lf.from_module(Given(counts))
    with pytest.raises(UserError, match="cannot be compacted: it puts another tensor in the place of the buffer seen"):
        compact_training(model, lf.init(model), (1, 4, 4))


def shared_memory(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    flat = y.flatten(1)
    flat.relu_()
    out: Tensor = net.fc(y.flatten(1)) + net.fc(flat)
    return out


@built
@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (shared_memory, r"relu in place, of memory that another tensor sees, in Given \(line"),
        (lambda net, x: (net.fc(net.conv(x).flatten(1)), net.fc.weight), "numbers of each example .* gives others"),
    ],
)  # fmt: skip
def test_the_sparse_engine_refuses_what_it_would_get_wrong(forward: Any, words: str) -> None:
    model = lf.from_module(Given(forward))
    with pytest.raises(UserError, match=f"^engine: sparse .*{words}"):
        lf.sparse_program(model, lf.init(model))(torch.randn(4, 1, 4, 4))


def unknown_in_evaluation(net: Any, x: Tensor) -> Tensor:
    h = net.fc(net.conv(x).flatten(1))
    return h if net.training else torch.cumsum(h, 1)


def by_gradients(net: Any, x: Tensor) -> Tensor:
    h = net.fc(net.conv(x).flatten(1))
    out: Tensor = h if torch.is_grad_enabled() else h * 2
    return out


OWN = """
from test_refusing_code import Given, by_gradients, unknown_in_evaluation

grads, modes = (lambda forward=forward: Given(forward) for forward in (by_gradients, unknown_in_evaluation))
"""


@built
@pytest.mark.parametrize(
    ("name", "forward", "words"),
    [
        ("grads", by_gradients, r"cannot trace .*: its outputs are not those of the operations in it"),
        ("modes", unknown_in_evaluation, r"has no rule for cumsum in .* \(line \d+ of .*test_refusing_code\.py: "),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str, forward: Any, words: str
) -> None:
    x, y = torch.rand(40, 1, 4, 4), torch.arange(40) % 3
    data = lf.data.from_tensors("d", (x, y), (x, y), val=8)
    model = lf.from_module(Given(forward))
    steps: list[int] = []
    trainer = lf.make_trainer(model, data, optimizer=lf.sgd(0.1), batch_size=8, engine=lf.sparse_engine)
    with pytest.raises(UserError, match=words):
        lf.take_steps(trainer, lf.init(model), seed=0, until=3, observe=lambda step, point: steps.append(step))
    assert not steps
    monkeypatch.chdir(tmp_path)
    lf.data.save_mapped("data.safetensors", data)
    Path("mine.py").write_text(OWN)
    settings = {"arch": f"mine.py:{name}", "dataset": "data.safetensors", "rounds": 1, "steps": 3000, "batch_size": 8}
    assert prepare(resolved(from_mapping(settings))).config.engine in ("compile", "eager")
    command = f"train --arch mine.py:{name} --dataset data.safetensors --steps 2 --batch-size 8 --engine sparse --out r"
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lthfunc: --engine: sparse ")
    assert not Path("r").exists()


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x) if x.sum() > 0 else x
        return found


def test_what_cannot_be_followed_is_told_by_its_name() -> None:
    """The same as `compact` says under its own."""
    branching, linear = lf.from_module(Branching()), lf.from_module(nn.Linear(4, 2))
    for model, shape, why in (
        (linear, (5,), ": a and b must have same reduction dim"),
        (branching, (4,), r" \(line \d+ of .*\): Python's control flow depends on numbers of a tensor$"),
    ):
        with pytest.raises(UserError, match=f"^dependency_groups: {model.name} cannot be followed{why}"):
            lf.dependency_groups(model, shape)
        with pytest.raises(UserError, match=f"^compact: {model.name} cannot be compacted{why}"):
            lf.compact(model, lf.init(model), shape)
    for structure in ("heads", "groups"):
        with pytest.raises(UserError, match=r"^--structure: dependency_groups: Branching cannot be followed"):
            structure_of(Config(structure=structure), branching, (4,))
