"""Modules as users write them compute and train the same in every form, or are refused in one line.

``LTHFUNC_USER_CODE=1000 pytest tests/test_user_code.py`` draws as many.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from test_compact import broken
from torch import Tensor, nn
from user_blocks import CLASSES, WIDTH
from user_code import BLOCKS, drawn

import lthfunc as lf
from lthfunc.catalog.deployment import EXPORTS
from lthfunc.deployment.compaction.compact import compact_training
from lthfunc.deployment.export.exportable import exportable_of
from lthfunc.errors import UserError
from lthfunc.trees.model import apply_evaluating
from lthfunc.trees.ops import clone
from lthfunc.trees.outputs import outputs_of, prediction
from lthfunc.trees.types import Dataset, Split

COUNT = int(os.environ.get("LTHFUNC_USER_CODE", "30"))
_RATE, _STEPS = 0.05, 3


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code as its trace, which is ours; the compiler is PyTorch's and takes seconds."""
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda graph, *given, **settings: graph)


def same(got: Any, wanted: Any, what: str) -> None:
    """The same numbers but for rounding, in the same order."""
    ours, theirs = outputs_of(got), outputs_of(wanted)
    assert len(ours.tensors) == len(theirs.tensors), what
    for one, other in zip(ours.tensors, theirs.tensors, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, equal_nan=True, msg=lambda text: f"{what}: {text}")


def ticket_of(model: lf.Model, module: nn.Module, seed: int) -> lf.Ticket:
    """Random values and masks with dead units, but nothing that no module comes to: a direction of length zero, other
    values in a buffer that is made with the module."""
    ticket, built = broken(model, 0.5, seed, dtype=torch.float32), lf.init(model, seed)
    masks = {name: torch.ones_like(mask) if "parametrizations" in name else mask for name, mask in ticket.masks.items()}
    params = {name: built.params[name] if "parametrizations" in name else leaf for name, leaf in ticket.params.items()}
    saved = module.state_dict()
    buffers = {name: leaf if name in saved else built.buffers[name] for name, leaf in ticket.buffers.items()}
    return lf.Ticket(params, buffers, masks)


def masked(module: nn.Module, ticket: lf.Ticket) -> nn.Module:
    """Plain PyTorch: the ticket's values written into the module, name by name."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for name, leaf in (*module.named_parameters(), *module.named_buffers()):
            value = {**ticket.params, **ticket.buffers}[name]
            leaf.copy_(value * ticket.masks[name] if name in ticket.masks else value)
    return module


def trained_plainly(module: nn.Module, state: lf.TrainState, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """SGD by hand, with every pruned weight zeroed after each step."""
    module = masked(module, lf.Ticket(state.params, state.buffers, state.masks)).train()
    leaves = {name: leaf for name, leaf in module.named_parameters() if leaf.requires_grad}
    for _ in range(_STEPS):
        loss = F.cross_entropy(prediction(module(x.clone())), y)
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        with torch.no_grad():
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
                if grad is not None:
                    leaf.sub_(_RATE * grad * state.masks.get(name, torch.tensor(1)))
    return {
        name: leaf.detach() for name, leaf in (*leaves.items(), *module.named_buffers()) if leaf.dtype.is_floating_point
    }


def compacted(make: Any, *given: Any) -> Any:
    """The network without dead units, or None where it is refused as it should be."""
    try:
        return make(*given)
    except UserError as error:
        words = str(error)
    if "compact: " not in words or len(words.splitlines()) != 1:
        pytest.fail(words)
    return None


@pytest.mark.parametrize("part", [0, 1, 2, *(pytest.param(part, marks=pytest.mark.long) for part in (3, 4, 5))])
def test_user_code(part: int, tmp_path: Path) -> None:
    refused, tried = list[str](), range(part, COUNT, 6)
    for seed in tried:
        module = drawn(seed)
        model = lf.from_module(module)
        ticket = ticket_of(model, module, seed)
        _runs_alike(module, model, ticket, seed, tmp_path, refused)
        _trains_alike(module, model, ticket, seed, refused)
    assert len(refused) <= 0.1 * len(tried) + 1, refused


def _runs_alike(
    module: nn.Module, model: lf.Model, ticket: lf.Ticket, seed: int, folder: Path, refused: list[str]
) -> None:
    kept = clone(ticket)
    reference = masked(module, ticket).eval()
    small = compacted(lf.compact, model, ticket, (WIDTH,))
    program = lf.specialize(ticket, model, torch.randn(5, WIDTH), format="dense")
    subject = exportable_of(model, ticket, (WIDTH,))
    forms: dict[str, Any] = {
        "functions": lambda x: apply_evaluating(model, ticket.params, ticket.buffers, x),
        "dense": program,
    }
    if small is None:
        refused.append(f"{seed}")
    else:
        forms["compact"] = small.model.evaluating
        forms["module"] = _reloaded(subject, folder / f"net{seed}.py")
    loaded = copy.deepcopy(module)
    EXPORTS.load("state-dict")(subject, folder / "state.pt")
    loaded.load_state_dict(torch.load(folder / "state.pt", weights_only=True), strict=True)
    forms["state-dict"] = loaded.eval()
    for examples in (1, 5):
        x = torch.randn(examples, WIDTH, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            wanted = reference(x.clone())
            for name, form in forms.items():
                given = x.clone()
                got = form(given)
                assert name == "module" or type(got) is type(wanted)
                same(got, wanted, f"seed {seed}, {name}, {examples}: {module}")
                if name in ("dense", "compact"):
                    assert torch.equal(given, x), f"seed {seed}: {name} changed its input"
    assert lf.same_bits(kept, ticket), f"seed {seed}: the ticket was changed"


def _trains_alike(module: nn.Module, model: lf.Model, ticket: lf.Ticket, seed: int, refused: list[str]) -> None:
    state = lf.init(model, 0)._replace(params=ticket.params, buffers=ticket.buffers, masks=ticket.masks)
    draw = torch.Generator().manual_seed(seed + 1)
    x, y = torch.randn(12, WIDTH, generator=draw), torch.randint(0, CLASSES, (12,), generator=draw)
    data = Dataset("d", Split(x, y), Split(x, y), Split(x, y), CLASSES)
    wanted = trained_plainly(module, state, x, y)
    engines: dict[str, Any] = {"eager": "eager"}
    if seed % 3 == 0:
        engines["compile"] = "compile"
    if compacted(compact_training, model, state, (WIDTH,)) is not None:
        engines["compact"] = lf.compact_engine("eager")
    else:
        refused.append(f"{seed} in training")
    for name, engine in engines.items():
        trainer = lf.make_trainer(model, data, optimizer=lf.sgd(_RATE), batch_size=12, engine=engine)
        try:
            after, _ = lf.take_steps(trainer, state, seed=0, until=_STEPS)
        except UserError as error:
            assert name == "compile" and "cannot be compiled" in str(error), error  # noqa: PT017, PT018
            refused.append(f"{seed} compiled")
            continue
        for key, leaf in {**after.params, **after.buffers}.items():
            if key in wanted and (name != "compact" or key in after.params):
                torch.testing.assert_close(
                    leaf, wanted[key], rtol=1e-3, atol=1e-5, equal_nan=True,
                    msg=partial("seed {}, {}, {}, {}: {}".format, seed, name, key, module),
                )  # fmt: skip


def _reloaded(subject: Any, path: Path) -> Any:
    EXPORTS.load("module")(subject, path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    network = source.Network().eval()
    network.load_state_dict(safetensors.torch.load_file(path.with_suffix(".safetensors")), strict=True)
    return network


def test_every_kind_of_code_is_drawn() -> None:
    assert len(BLOCKS) <= COUNT


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.flatten(1))
        return out


class Converting(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class Counting(Plain):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_states_may_be_of_the_datas_dtype_instead_of_the_modules(few_digits: Dataset) -> None:
    """float64 examples, modules made in float32: the trials before a training try both, and tell what was wrong."""
    data = few_digits._replace(**{name: getattr(few_digits, name)._replace(x=getattr(few_digits, name).x.double())
                                  for name in ("train", "val", "test")})  # fmt: skip

    def trained(module: nn.Module, dtype: torch.dtype) -> Tensor:
        model = lf.from_module(module)
        trainer = lf.make_trainer(model, data, optimizer=lf.sgd(0.1), batch_size=20)
        start = lf.init(model)
        start = start._replace(params={name: leaf.to(dtype) for name, leaf in start.params.items()})
        return lf.take_steps(trainer, start, seed=0, until=3)[0].params["fc.weight"]

    wide, narrow = trained(Plain(), torch.float64), trained(Converting(), torch.float32)
    assert (wide.dtype, narrow.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(narrow, wide.float(), rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="Counting keeps calls from call to call"):
        trained(Counting(), torch.float64)
