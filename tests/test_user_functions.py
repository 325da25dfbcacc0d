"""Functions of a user's own that do what they must not, told in one line that names them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lthfunc_cli.main import main
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.trees.ops import clone, same_bits
from lthfunc.trees.types import Masks, Params

NET = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


def data() -> lf.Dataset:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 5, generator=draw), torch.randint(0, 3, (60,), generator=draw)
    return lf.data.from_tensors("d", (x, y), (x, y), val=12, classes=3)


def cuts(p: Params, m: Masks) -> Params:
    scores = {k: p[k].abs() for k in m}
    for k in m:
        p[k].mul_(0)
        m[k].fill_(True)
    return scores


def keeps_all(scores: Params, masks: Masks, fraction: float) -> dict[str, Tensor]:
    for k in masks:
        scores[k].zero_()
        masks[k].fill_(True)
    return {k: masks[k].sum() // 2 for k in masks}


def selects(scores: Params, masks: Masks, keep: dict[str, Tensor]) -> Masks:
    chosen = lf.unstructured(scores, masks, keep)
    for k in masks:
        masks[k].fill_(True)
    return chosen


def test_what_a_score_allocation_or_structure_writes_is_their_own() -> None:
    state = lf.prune(density=0.5)(lf.init(lf.from_module(NET)))
    before = clone(state)
    plain = lf.prune(fraction=0.2)(state)
    assert same_bits(lf.prune(fraction=0.2, score=cuts)(state), plain)
    assert same_bits(clone(state), before)
    assert same_bits(lf.prune(fraction=0.2, select=selects)(state), plain)
    kept = lf.prune(fraction=0.2, allocate=keeps_all)(state)
    assert same_bits(clone(state), before)
    assert all(not (kept.masks[k] & ~state.masks[k]).any() for k in state.masks)


def _numbers(**changed: Any) -> Any:
    return lambda params, masks: {k: changed.get("make", torch.Tensor.abs)(params[k]) for k in masks}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"score": lambda p, m: {k: p[k].abs() * float("nan") for k in m}}, "score.*NaN"),
        ({"score": lambda p, m: {k: p[k] > 0 for k in m}}, "score.*bool"),
        ({"score": lambda p, m: {k: p[k].to(torch.complex64) for k in m}}, "score.*complex"),
        ({"score": lambda p, m: {k: p[k].abs().sum() for k in m}}, r"score.*shape \(6, 5\)"),
        ({"score": lambda p, m: dict.fromkeys(m, 1.0)}, "score.*float"),
        ({"score": lambda p, m: {}}, "score.*one leaf for each"),
        ({"score": lambda p, m: sys.exit(3)}, "score.*SystemExit"),
        ({"allocate": lambda s, m, f: {}}, "allocate.*0.weight"),
        ({"allocate": lambda s, m, f: {k: torch.tensor(2.5) for k in m}}, "allocate.*2.5"),
        ({"allocate": lambda s, m, f: dict.fromkeys(m, -1)}, "allocate.*-1"),
        ({"allocate": lambda s, m, f: {k: float("nan") for k in m}}, "allocate.*nan"),
        ({"allocate": lambda s, m, f: dict.fromkeys(m, True)}, "allocate.*True"),
        ({"allocate": lambda s, m, f: {k: torch.tensor(True) for k in m}}, "allocate.*True"),
        ({"allocate": lambda s, m, f: {k: torch.ones(3) for k in m}}, "allocate"),
        ({"select": lambda s, m, keep: {k: s[k] for k in m}}, "select.*float32"),
        ({"select": lambda s, m, keep: {k: torch.ones_like(m[k]) for k in m}}, "select.*restores pruned weights"),
        ({"select": lambda s, m, keep: None}, "select.*NoneType"),
    ],
)
def test_what_prunings_functions_give_is_checked(given: Any, words: str) -> None:
    state = lf.prune(density=0.5)(lf.init(lf.from_module(NET)))
    with pytest.raises(UserError, match=words):
        lf.prune(fraction=0.2, **given)(state)


def whole_numbers(s: Params, m: Masks, f: float) -> dict[str, Any]:
    return {k: int(m[k].sum()) // 2 for k in m}


def test_counts_may_be_plain_numbers() -> None:
    state = lf.init(lf.from_module(NET))
    assert lf.count(lf.prune(fraction=0.2, allocate=whole_numbers)(state).masks).kept == 15 + 9


def clamps(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.clamp_(-1, 1), targets)


def shifts(outputs: Tensor, targets: Tensor) -> Tensor:
    targets.add_(0)
    return (outputs.argmax(1) == targets).double().mean()


def vector(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def plain_number(outputs: Tensor, targets: Tensor) -> Any:
    return 1.0


def truth(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).all()


def imaginary(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets).to(torch.complex64)


def leaves(outputs: Tensor, targets: Tensor) -> Tensor:
    sys.exit(7)


def undefined(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.mean().double() * float("nan")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (clamps, "'clamps' changes its arguments in place"),
        (shifts, "'shifts' changes its arguments in place"),
        (vector, r"'vector' returned a tensor of shape \(8,\), not a scalar"),
        (plain_number, "'plain_number' returned a float, not a scalar tensor"),
        (truth, "'truth' returned a number of type torch.bool"),
        (imaginary, "'imaginary' returned a number of type torch.complex64"),
        (leaves, r"'leaves' fails \(line \d+ of .*sys.exit\(7\)\): SystemExit: 7"),
    ],
)
@pytest.mark.parametrize("kind", ["loss", "metric"])
def test_losses_and_metrics_are_checked_before_training(kind: str, function: Any, words: str) -> None:
    model = lf.from_module(NET)
    given: Any = {kind: function}
    with pytest.raises(UserError, match=f"^{kind}: {words}"):
        lf.make_trainer(model, data(), optimizer=lf.sgd(0.1), batch_size=8, **given)


def test_the_line_is_the_users_own_and_not_a_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb, say, puts itself in the place of sys.exit."""
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "between.py").write_text("def call(function):\n    function()\n")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    between = importlib.import_module("between")

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        between.call(None)  # my line
        return outputs.mean()

    with pytest.raises(UserError, match=r"line \d+ of .*test_user_functions.py: between.call\(None\)  # my line\)"):
        lf.make_trainer(lf.from_module(NET), data(), optimizer=lf.sgd(0.1), batch_size=8, loss=loss)


def test_a_metric_that_is_no_number_is_told() -> None:
    trainer = lf.make_trainer(lf.from_module(NET), data(), optimizer=lf.sgd(0.1), batch_size=8, metric=undefined)
    with pytest.raises(UserError, match=r"^metric: 'undefined' returned NaN"):
        lf.fit(trainer, lf.init(lf.from_module(NET)), seed=0, until=2, eval_every=1)


@pytest.mark.parametrize(
    ("update", "words"),
    [
        (lambda g, s, p, t: ({k: p[k] for k in list(p)[1:]}, s), "returned params without 0"),
        (lambda g, s, p, t: ({k: p[k].sum() for k in p}, s), r"returned float32 of shape \(\) for 0"),
        (lambda g, s, p, t: ({k: p[k].double() for k in p}, s), "returned float64"),
        (lambda g, s, p, t: p, "not .params, state."),
        (lambda g, s, p, t: sys.exit("bye"), "SystemExit: bye"),
        (lambda g, s, p, t: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_optimisers_are_checked_before_training(update: Any, words: str) -> None:
    with pytest.raises(UserError, match=f"^optimizer: .*{words}"):
        lf.make_trainer(lf.from_module(NET), data(), optimizer=lf.Optimizer(lambda p: (), update), batch_size=8)


def test_an_optimiser_that_works_in_place_changes_no_argument() -> None:
    def update(grads: Params, state: Any, params: Params, step: Tensor) -> Any:
        for key in params:
            params[key].sub_(grads[key].mul_(0.1))
        return params, state

    model, own = lf.from_module(NET), lf.Optimizer(lambda p: (), update)
    state = lf.with_optimizer(lf.prune(density=0.5)(lf.init(model)), own)
    before, d = clone(state), data()
    done, _ = lf.make_train_step(model, lf.cross_entropy, own)(state, (d.train.x, d.train.y))
    theirs, _ = lf.make_train_step(model, lf.cross_entropy, lf.sgd(0.1))(
        lf.with_optimizer(state._replace(opt=()), lf.sgd(0.1)), (d.train.x, d.train.y)
    )
    assert same_bits(clone(state), before)
    for key, leaf in theirs.params.items():
        torch.testing.assert_close(done.params[key], leaf)


OWN = """
import sys, torch
def cuts(p, m):
    s = {k: p[k].abs() for k in m}
    for k in m:
        p[k].mul_(0); m[k].fill_(True)
    return s
def leaves(p, m):
    sys.exit(5)
def partly(p, m):
    return {k: p[k].abs() for k in list(m)[1:]}
def clamps(o, t):
    return torch.nn.functional.cross_entropy(o.clamp_(-1, 1), t)
def back(pruned, anchor):
    return anchor._replace(masks=pruned.masks)
def other(pruned, anchor):
    return anchor._replace(params={})
def schedule(rounds):
    sys.exit(1)
"""


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    base = "prune --arch lenet300 --dataset digits --rounds 1 --steps 6 --batch-size 20"
    assert main(f"{base} --out plain".split()) == 0
    assert main(f"{base} --score own.py:cuts --out own".split()) == 0
    assert main(f"{base} --rewind own.py:back --out back".split()) == 0  # all initial weights: the masks are applied
    for run in ("own", "back"):
        for file in ("round00/params.safetensors", "round01/masks.safetensors", "round01/params.safetensors"):
            one, other = (lf.load_tree(tmp_path / each / "seed0" / file)[0] for each in ("plain", run))
            assert same_bits(one, other), (run, file)
    for option, words in [
        ("--score own.py:leaves", "--score: 'own.py:leaves' fails (line 9 of"),
        ("--score own.py:partly", "one leaf for each of"),
        ("--loss own.py:clamps", "--loss: 'clamps' changes its arguments in place"),
        ("--densities own.py:schedule", "--densities: 'own.py:schedule' fails (line 19 of"),
        ("--rewind own.py:other", "--rewind: 'own.py:other' returned another network"),
    ]:
        assert main(f"{base} {option} --out refused".split()) == 2, option
        error = capsys.readouterr().err
        assert words in error
        assert "Traceback" not in error
        assert not Path("refused/seed0/round01").exists()
