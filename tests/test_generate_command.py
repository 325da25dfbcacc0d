"""`lthfunc generate`: text of a run's ticket from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lthfunc_cli.main import main
from sparse_programs import kernels  # noqa: F401

import lthfunc as lf
from lthfunc.data.tokens import bytes_of_texts, vocabulary_of
from lthfunc.errors import UserError
from lthfunc.runs.tickets import tickets_of_run
from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a text that counts up and down, again and again."""
    place = tmp_path_factory.mktemp("text")
    (place / "counts.txt").write_text("".join("abcdefgh"[min(k % 14, 14 - k % 14)] for k in range(6000)))
    words = [
        "prune", "--arch", "char-transformer", "--dataset", f"text:{place / 'counts.txt'}", "--dataset-option",
        "length=16", "--arch-option", "width=32", "--arch-option", "layers=1", "--rounds", "1", "--rate", "0.5",
        "--steps", "60", "--lr", "0.01", "--engine", "eager", "--out", str(place / "RUN"),
    ]  # fmt: skip
    assert main(words) == 0
    return place / "RUN"


def test_a_trained_ticket_writes_what_pytorch_would(run: Path, capsys: Any) -> None:
    """The likeliest characters, by the module that reads all of a sequence anew; and it has learnt to count."""
    capsys.readouterr()
    words = ["generate", str(run), "--prompt", "cba", "--tokens", "13", "--temperature", "0"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (found,) = tickets_of_run(run, [None], None, None)
    module, labels = lf.to_module(found.ticket, found.model).eval(), found.data.labels
    tokens = [labels.index(each) for each in "cba"]
    with torch.no_grad():
        for _ in range(13):
            tokens.append(int(module(torch.tensor([tokens]))[0, -1].argmax()))
    assert told["tokens"] == tokens[3:]
    assert told["text"] == "".join(labels[each] for each in tokens[3:]) == "bcdefghgfedcb"
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("cba" + told["text"] + "\n")
    assert "tokens a second" in shown


def test_the_seed_decides_what_is_written(run: Path, capsys: Any) -> None:
    texts = []
    for seed, temperature in ((1, 3), (1, 3), (2, 3)):
        capsys.readouterr()
        options = ["--seed", str(seed), "--temperature", str(temperature), "--tokens", "40", "--json"]
        assert main(["generate", str(run), "--prompt", "a", *options]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--prompt: missing"),
        (["--prompt", "abx"], "--prompt: invalid value 'abx' (expected characters of the alphabet, which has no 'x')"),
        (["--prompt", "a", "--tokens", "0"], "--tokens: invalid value 0"),
        (["--prompt", "a", "--temperature", "-1"], "--temperature: invalid value -1.0 (expected a number of at least"),
        (["--prompt", "a", "--temperature", "nan"], "--temperature: invalid value nan"),
        (["--prompt", "a", "--top-k", "-1"], "--top-k: invalid value -1"),
        (["--prompt", "a", "--run-seed", "9"], "--run-seed: invalid value 9 (expected one of the run's seeds: 0)"),
    ],
)
def test_mistakes_are_one_line(run: Path, options: list[str], words: str, capsys: Any) -> None:
    assert main(["generate", str(run), *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_a_network_of_images_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    assert main(["train", "--steps", "2", "--out", str(tmp_path / "RUN")]) == 0
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "RUN"), "--prompt", "a"]) == 2
    assert "has no network of text" in capsys.readouterr().err


def test_texts_of_bytes_come_back() -> None:
    """Also in parts of a character, which no text has."""
    vocabulary = vocabulary_of(bytes_of_texts().labels, None)
    assert vocabulary.text(vocabulary.numbers_of("süß", "--prompt").tolist()) == "süß"
    assert vocabulary.text([0xC3]) == "\N{REPLACEMENT CHARACTER}"


def test_texts_of_a_tokenizer_come_back(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    vocabulary = vocabulary_of(("one", "two", "?"), str(tmp_path))
    assert vocabulary.numbers_of("two one", "--prompt").tolist() == [1, 0]
    assert vocabulary.text([1, 0]) == "two one"
    with pytest.raises(UserError, match="--prompt: invalid value ' ' "):
        vocabulary.numbers_of(" ", "--prompt")


def test_an_alphabet_keeps_its_order() -> None:
    vocabulary = vocabulary_of(("b", "a"), None)
    assert np.array_equal(vocabulary.numbers(["ab", ""])[0], [1, 0])
    assert vocabulary.text([0, 1, 1]) == "baa"
