"""Texts of saved data sets as windows of a tokenizer's tokens, or of bytes; without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run

import lthfunc as lf
from lthfunc.errors import UserError

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs"]
#: Word i of text n.
TEXTS = [" ".join(WORDS[(3 * n + i * i) % len(WORDS)] for i in range(4 + n % 3)) for n in range(120)]
NUMBERS = {word: 2 + place for place, word in enumerate(sorted(WORDS))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `save_to_disk`, with splits of its own, and a tokenizer of whole words beside it."""
    place = tmp_path_factory.mktemp("saved")
    parts = {"train": TEXTS[:90], "validation": TEXTS[90:100], "test": TEXTS[100:]}
    whole = {
        part: datasets.Dataset.from_dict({"id": list(range(len(each))), "text": each}) for part, each in parts.items()
    }
    datasets.DatasetDict(whole).save_to_disk(place / "texts")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "<end>": 1, **NUMBERS}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_truncation(2)  # which is for a model's inputs, not for its data
    (place / "words").mkdir()
    made.save(str(place / "words" / "tokenizer.json"))
    config = {"eos_token": {"content": "<end>"}, "tokenizer_class": "PreTrainedTokenizerFast"}
    (place / "words" / "tokenizer_config.json").write_text(json.dumps(config))
    return place


def by_hand(texts: list[str], length: int) -> tuple[list[Any], list[Any]]:
    row = [number for text in texts for number in (*map(NUMBERS.__getitem__, text.split()), 1)]
    starts = range(0, len(row) - length, length)
    return [row[at : at + length] for at in starts], [row[at + 1 : at + 1 + length] for at in starts]


def test_texts_are_windows_of_a_tokenizers_tokens(saved: Path) -> None:
    data = lf.data.load(f"hf:{saved / 'texts'}", options={"length": "7"}, tokenizer=saved / "words")
    for split, texts in ((data.train, TEXTS[:90]), (data.val, TEXTS[90:100]), (data.test, TEXTS[100:])):
        assert (split.x.tolist(), split.y.tolist()) == by_hand(texts, 7)
    assert (data.name, data.classes, data.labels[NUMBERS["fox"]], data.labels[1]) == ("texts", 13, "fox", "<end>")
    assert data.tokens
    Path(saved / "one.txt").write_text(" ".join(TEXTS))
    one = lf.data.load(
        f"text:{saved / 'one.txt'}", options={"length": "7"}, tokenizer=saved / "words" / "tokenizer.json"
    )
    row = [NUMBERS[word] for text in TEXTS for word in text.split()]
    assert one.train.x.flatten().tolist() == row[: one.train.x.numel()]
    assert one.test.y[0].tolist() == row[round(len(row) * 0.9) + 1 :][:7]


def test_without_a_tokenizer_texts_are_bytes(saved: Path) -> None:
    datasets.Dataset.from_dict({"story": ["grüße", "an alle"] * 50}).save_to_disk(saved / "bytes")
    data = lf.data.load(f"hf:{saved / 'bytes'}", options={"length": "8", "val": "0.2"})
    row = "grüße\nan alle\n".encode() * 50
    assert bytes(data.train.x.flatten().tolist()) == row[: data.train.x.numel()]
    assert len(data.train.x) == (round(len(row) * 0.7) - 1) // 8
    assert bytes(data.val.x.flatten().tolist()) == row[round(len(row) * 0.7) :][: data.val.x.numel()]
    assert (data.classes, data.labels[ord("g")], data.labels[0xC3]) == (256, "g", "\\xc3")


def test_a_folder_in_the_home_and_images_beside_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "train.txt").write_text("\n".join(TEXTS))
    data = lf.data.load("hf:~/lines", options={"length": "8"})
    assert data.name == "lines"
    assert bytes(data.train.x[0].tolist()) == TEXTS[0].encode()[:8]
    broken = {"image": [{"bytes": b"no image", "path": None}] * 120, "text": TEXTS}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(broken, features).save_to_disk(tmp_path / "beside")
    beside = lf.data.load("hf:~/beside", options={"length": "8", "text": "text"})
    assert lf.same_bits(beside.train, data.train)


def test_a_language_model_on_tokens_from_the_command_line(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(saved)
    words = "--tokenizer words --dataset-option length=7"
    assert run("datasets", "show", "hf:texts", *words.split()) == 0
    out = capsys.readouterr().out
    assert "inputs: windows of 7 tokens, from a vocabulary of 13" in out
    network = (
        "--arch char-transformer --arch-option layers=1 --arch-option width=16 --loss next-token --metric perplexity"
    )
    more = ["--steps", 40, "--eval-every", 40, "--rounds", 1, "--engine", "eager", "--out", tmp_path / "run"]
    assert run("prune", "--dataset", "hf:texts", *words.split(), *network.split(), *more) == 0
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)  # the data set and the tokenizer are found from where the run was started
    assert run("info", "run", "--json") == 0
    metrics = json.loads(capsys.readouterr().out)["rounds"][0]
    assert 1 < metrics["test_accuracy"]["mean"] < 13  # a perplexity, of 13 tokens


def test_what_is_not_a_text_or_a_tokenizer_is_one_line(saved: Path, tmp_path: Path) -> None:
    def refused(options: dict[str, str] | None = None, name: str = f"hf:{saved / 'texts'}", **more: Any) -> str:
        with pytest.raises(UserError) as error:
            lf.data.load(name, options=options, **more)
        assert "\n" not in str(error.value)
        return str(error.value)

    (tmp_path / "broken.json").write_text("{}")
    assert "tokenizer: there is no folder or file 'nowhere'" in refused(tokenizer="nowhere")
    assert "broken.json' cannot be read (" in refused(tokenizer=tmp_path / "broken.json")
    assert "tokenizer: invalid value 'words' (expected nothing with digits)" in refused(
        None, "digits", tokenizer="words"
    )
    assert "expected nothing with npz:x" in refused(None, "npz:x", tokenizer="words")
    assert "invalid value 'size=32' (expected nothing with the texts of 'hf:" in refused({"size": "32"})
    assert "too few for three splits of windows of 5000 (dataset option length=N)" in refused({"length": "5000"})
    assert "invalid value 'config=en' (expected nothing with the saved data set" in refused({"config": "en"})
    assert "unknown name 'txt'" in refused({"text": "txt"})
    assert "has 0 in its column 'id' (example 0 of train), no text" in refused({"text": "id"})
    assert torch.is_tensor(lf.data.load(f"hf:{saved / 'texts'}").train.x)
