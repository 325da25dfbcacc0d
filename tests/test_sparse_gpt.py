"""The example of a weight-sparse GPT: what it reads, how its circuit is chosen and drawn, and all of it at once."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lthfunc as lf
from lthfunc.sparse.kernels import build
from lthfunc.trees.types import Dataset, Split

SCRIPT = Path(__file__).parents[1] / "examples" / "sparse_gpt.py"
needs_kernels = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))
TEXT = "f(a[b], c) = [x(y] (d[0]) [(z)] ) ]" * 3


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def windows(text: str, length: int) -> Dataset:
    labels = tuple(sorted(set(text)))
    row = torch.tensor([labels.index(each) for each in text])[: len(text) // length * length].view(-1, length)
    part = Split(row, row)
    return Dataset("text", part, part, part, classes=len(labels), labels=labels)


def test_brackets_to_close_are_found(script: dict[str, Any]) -> None:
    """By hand: a bracket of another kind closes nothing, and an opening one must be in the window."""
    length = 9
    data = windows(TEXT, length)
    texts, kinds = script["closings"](data, "train", 100)
    assert len(texts) == len(kinds)
    assert int((kinds == 0).sum()) == int((kinds == 1).sum()) > 2
    for text, kind in zip(texts, kinds, strict=True):
        read = "".join(data.labels[number] for number in text)
        assert len(read) == length
        assert f"{read}{')]'[kind]}" in TEXT
        depth, rest = 0, read[::-1]
        for place, each in enumerate(rest):  # backwards to the bracket that is open: only whole pairs lie between
            depth += (each in ")]") - (each in "([")
            if depth < 0:
                assert each == "(["[kind], (read, place)
                break
        assert depth < 0, f"nothing is open in {read!r}"
    few, _ = script["closings"](data, "train", 4)
    assert len(few) == 4


def state_of(model: lf.Model) -> lf.TrainState:
    return lf.init(model, 0)


@pytest.mark.parametrize("needed", [1, 2, 37, 64, 99, 100])
def test_the_circuit_is_the_smallest_that_works(needed: int, script: dict[str, Any]) -> None:
    state = state_of(lf.from_module(torch.nn.Linear(10, 10)))
    found = script["smallest"](state, lf.magnitude, lambda each: lf.count(each.masks).kept >= needed)
    assert lf.count(found.masks).kept == needed
    size = state.params["weight"].abs().flatten()
    assert set(size[found.masks["weight"].flatten()].tolist()) == set(size.topk(needed).values.tolist())


def test_a_circuit_may_work_after_larger_ones_that_failed(script: dict[str, Any]) -> None:
    state = state_of(lf.from_module(torch.nn.Linear(10, 10)))
    found = script["smallest"](state, lf.magnitude, lambda each: lf.count(each.masks).kept in {100, *range(5, 13)})
    assert lf.count(found.masks).kept == 5


@needs_kernels
def test_scores_are_those_of_taylor(script: dict[str, Any]) -> None:
    model = lf.models.char_transformer((5,), 3, width=32, layers=1, heads=1)
    state = lf.prune(density=0.5)(state_of(model))
    texts = torch.randint(3, (68, 5), generator=torch.Generator().manual_seed(0))
    data = lf.data.from_tensors("tiny", (texts, texts[:, 0]), (texts, texts[:, 0]), val=4)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[:, -1], targets)

    def right(outputs: Tensor, targets: Tensor) -> Tensor:
        return lf.accuracy(outputs[:, -1], targets)

    found = script["importance"](model, data, loss, right)(state.params, state.masks)
    expected = lf.taylor(lf.loss_of(model, {}, loss), [(data.train.x, data.train.y)])(state.params, state.masks)
    for name, leaf in expected.items():
        torch.testing.assert_close(found[name], leaf, rtol=1e-2, atol=1e-5 * float(leaf.max()))


def test_each_weight_is_an_edge_from_what_it_reads_to_what_it_writes(script: dict[str, Any]) -> None:
    """Each in a network of one weight alone, and the unit that it reads or writes as the forward pass has it."""
    width, layers, labels = 32, 2, tuple("abc")
    state = state_of(lf.models.char_transformer((5,), 3, width=width, layers=layers, heads=1))
    for name, place, start, to in (
        ("characters.weight", (2, 7), (0, "c"), (1, 7)),
        ("head.weight", (1, 9), (9, 9), (10, "b")),
        ("blocks.0.attention.qkv.weight", (width + 3, 4), (1, 4), (2, ("k", 3))),
        ("blocks.1.attention.qkv.weight", (2 * width, 31), (5, 31), (6, ("v", 0))),
        ("blocks.1.attention.out.weight", (6, 5), (6, ("v", 5)), (7, 6)),
        ("blocks.0.up.weight", (100, 8), (3, 8), (4, 100)),
        ("blocks.1.down.weight", (8, 100), (8, 100), (9, 8)),
    ):
        masks = {each: torch.zeros_like(mask) for each, mask in state.masks.items()}
        masks[name][place] = True
        (edge,) = script["edges"](state._replace(masks=masks), labels, layers)
        assert edge == (start, to, float(state.params[name][place])), name


@pytest.mark.parametrize(("options", "words"), [
    (["--out=nowhere/circuit.svg"], "nowhere/circuit.svg: there is no such folder"),
    (["--state=nowhere/state"], "nowhere/state: there is no such folder"),
    (["--out=circuit.txt"], "--out: circuit.txt is no .svg, .png or .pdf"),
    (["--width=16"], "--width: 16 is less than 32"),
    (["--lose=-0.1"], "--lose: -0.1 is less than 0"),
    (["--layers=0"], "sparse_gpt.py: arch_option: invalid value 'layers=0' (expected a whole number of at least 1)"),
    (["--width=100"], "sparse_gpt.py: arch_option: invalid value 'width=100' (expected a multiple of the 3 heads)"),
])  # fmt: skip
def test_mistakes_are_told_in_a_line_before_training(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After 25 minutes, a folder that wasn't there ended the script without its network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sparse_gpt.py", *options])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    told = capsys.readouterr()
    assert words in (told.err.splitlines()[-1] if told.err else str(caught.value))
    assert not told.out


@needs_kernels
def test_the_script_trains_prunes_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "circuit.png"
    given = {"width": 32, "layers": 1, "steps": 25, "length": 16, "most": 16, "out": picture}
    options = [f"--{name}={value}" for name, value in given.items()]
    monkeypatch.setattr(sys, "argv", ["sparse_gpt.py", "--quick", f"--state={tmp_path / 'state'}", *options])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    runpy.run_path(str(SCRIPT), run_name="__main__")  # from the state that was written
    assert "step 25" in printed
    assert printed.endswith(capsys.readouterr().out)
    found = {name: (int(count.replace(",", "")), float(right)) for name, count, right in re.findall(
        r"(\w+): ([\d,]+) weights choose between \) and \]: ([\d.]+)% right", printed
    )}  # fmt: skip
    assert found["circuit"][0] < found["network"][0]
    assert found["circuit"][1] >= found["network"][1] - 2
    assert picture.read_bytes().startswith(b"\x89PNG")
