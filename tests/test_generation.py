"""Text from a ticket: which tokens are drawn, against draws by hand from logits in float64."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from documentation import blocks
from sparse_programs import kernels  # noqa: F401
from test_decoding import made
from torch import Tensor

import lthfunc as lf
from lthfunc.models.transformers import CharTransformer
from lthfunc.sparse.kernels import build
from lthfunc.trees import rng

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

LENGTH, VOCABULARY = 12, 9


def drawn(
    network: Callable[[Tensor], Tensor], prompt: list[int], count: int, temperature: float, top_k: int, seed: int
) -> list[int]:
    """The tokens that follow, each from a network that reads all tokens of its sequence anew."""
    tokens, begin = list(prompt), 0
    for draw in torch.rand(count, dtype=torch.float64, generator=rng.generator(seed, "generated tokens")):
        if len(tokens) - begin > LENGTH:
            begin = len(tokens) - LENGTH // 2
        logits = network(torch.tensor(tokens[begin:]))[-1]
        if temperature == 0:
            tokens.append(int(logits.argmax()))
            continue
        likeliest = logits.argsort(descending=True)[: top_k or VOCABULARY]
        shares = torch.zeros(VOCABULARY, dtype=torch.float64)
        shares[likeliest] = torch.softmax(logits[likeliest] / temperature, 0)
        tokens.append(int((shares.cumsum(0) <= draw).sum()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, 0), (1.0, 0), (0.3, 0), (2.0, 3), (1.0, 20)])
@pytest.mark.parametrize("given", [1, LENGTH, 2 * LENGTH])
def test_tokens_are_drawn_from_the_network_s_outputs(temperature: float, top_k: int, given: int) -> None:
    """Also beyond the length of a sequence, whose last half then begins a new one."""
    torch.manual_seed(1)
    program, network = made(CharTransformer((LENGTH,), VOCABULARY, layers=2, heads=2, width=16), LENGTH, 0.5)
    prompt = torch.randint(0, VOCABULARY, (given,))
    before = prompt.clone()
    found = lf.generate(program, prompt, 40, temperature=temperature, top_k=top_k, seed=3)
    assert found.tolist() == drawn(network, prompt.tolist(), 40, temperature, top_k, 3)
    assert torch.equal(prompt, before)
    if temperature and top_k != 1:
        assert len(set(found.tolist())) > 1


def test_the_seed_alone_decides() -> None:
    model = lf.models.char_transformer((LENGTH,), VOCABULARY, layers=1, heads=2, width=16)
    state, prompt = lf.init(model), torch.tensor([4])
    program = lf.decoding_program(model, state, LENGTH)
    first = lf.generate(program, prompt, 60, seed=7)
    torch.rand(5)
    program(torch.tensor([1, 2, 3]))
    assert torch.equal(lf.generate(program, prompt, 60, seed=7), first)
    assert torch.equal(lf.generate(lf.decoding_program(model, state, LENGTH), prompt, 25, seed=7), first[:25])
    assert not torch.equal(lf.generate(program, prompt, 60, seed=8), first)


def test_threads_that_share_a_program_have_what_each_has_alone() -> None:
    model = lf.models.char_transformer((64,), VOCABULARY, layers=2, heads=2, width=16)
    program, prompt = lf.decoding_program(model, lf.init(model), 64), torch.tensor([4])

    def text(seed: int) -> list[int]:
        drawn = lf.generate(program, prompt, 400, seed=seed)
        logits: Tensor = program(drawn[:64])
        return [*drawn.tolist(), int(logits.sum(0).argmax())]

    alone = [text(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert [*threads.map(text, range(4))] == alone


@pytest.mark.parametrize("value", [3e38, torch.nan])
def test_outputs_that_are_not_numbers_are_no_text(value: float) -> None:
    """One of them is infinite, or none."""
    model = lf.models.char_transformer((LENGTH,), VOCABULARY, layers=1, heads=2, width=16)
    state = lf.init(model)
    params = {name: leaf.clone() for name, leaf in state.params.items()}
    params["norm.weight"][0], params["norm.bias"][0] = 0.0, 5.0
    params["head.weight"][2] = torch.zeros(16).index_fill(0, torch.tensor([0]), value)
    program = lf.decoding_program(model, lf.Ticket(params, state.buffers, state.masks), LENGTH)
    with pytest.raises(lf.UserError, match="generate: the network's outputs are not numbers"):
        lf.generate(program, torch.tensor([1]), 3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"count": -1}, "generate: count: invalid value -1 "),
        ({"top_k": -2}, "generate: top_k: invalid value -2 "),
        ({"temperature": -0.5}, "generate: temperature: invalid value -0.5 "),
    ],
)
def test_settings_that_cannot_be_are_one_line(given: dict[str, float], words: str) -> None:
    model = lf.models.char_transformer((4,), VOCABULARY, layers=1, heads=2, width=16)
    program = lf.decoding_program(model, lf.init(model), 4)
    with pytest.raises(lf.UserError, match=words):
        lf.generate(program, torch.tensor([1]), **({"count": 3} | given))  # type: ignore[arg-type]


def test_the_page_writes_text() -> None:
    names: dict[str, Any] = {}
    for code in blocks("docs/how-to/generate.md", "python"):
        exec(compile(code, "generate.md", "exec"), names)
    assert names["logits"].shape == (5, 65)
    assert names["text"].shape == (100,)
    assert 0 <= names["text"].min() <= names["text"].max() < 65
