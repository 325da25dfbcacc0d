"""Texts as numbers of tokens: those of a tokenizer on the disk, or bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lthfunc.data.mapped import SPLITS
from lthfunc.errors import UserError, invalid
from lthfunc.tracebacks import first_line
from lthfunc.trees.types import Dataset, Split

_FILE = "tokenizer.json"
#: Files that name a tokenizer's special tokens, and the tokens that end a text, the first one that it has.
_ABOUT, _ENDS = ("tokenizer_config.json", "special_tokens_map.json"), ("eos_token", "sep_token")


class Windows(NamedTuple):
    """How rows of tokens are cut: the length of a window, the shares of missing splits, and what a token is called."""

    length: int
    val: float
    test: float
    unit: str = "tokens"


class Tokens(NamedTuple):
    """A vocabulary. numbers: of each of some texts, the numbers of its tokens. end: what separates two texts.

    labels: the texts of the tokens, by their numbers. text: of the numbers of some tokens.
    """

    numbers: Callable[[Sequence[str]], list[np.ndarray[Any, Any]]]
    end: np.ndarray[Any, Any]
    labels: tuple[str, ...]
    text: Callable[[Sequence[int]], str]

    def row(self, batches: Iterable[Sequence[str]]) -> Tensor:
        """All texts in one row of tokens, int64, each followed by the end."""
        found = [np.empty(0, np.int64)]
        for texts in batches:
            for each in self.numbers(texts):
                found += [each, self.end]
        return torch.from_numpy(np.concatenate(found, dtype=np.int64))

    def numbers_of(self, text: str, option: str) -> Tensor:
        """The numbers of one text's tokens, int64. Raises UserError, on `option`, for a text that has none."""
        try:
            (found,) = self.numbers([text])
        except KeyError as error:
            raise invalid(option, text, f"characters of the alphabet, which has no {error.args[0]!r}") from error
        if not len(found):
            raise invalid(option, text, "a text of one token or more")
        return torch.from_numpy(found.astype(np.int64))


def vocabulary_of(labels: Sequence[str], tokenizer: str | None) -> Tokens:
    """The vocabulary of a data set with these labels: its tokenizer's, bytes, or an alphabet.

    An alphabet's `numbers` raise KeyError for another character. Raises UserError as `tokenizer_at` does.
    """
    if tokenizer is not None:
        return tokenizer_at(tokenizer)
    of_bytes = bytes_of_texts()
    return of_bytes if tuple(labels) == of_bytes.labels else _alphabet(labels)


def _alphabet(labels: Sequence[str]) -> Tokens:
    at = {label: number for number, label in enumerate(labels)}

    def numbers(texts: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        return [np.array([at[each] for each in text], np.int64) for text in texts]

    return Tokens(numbers, np.array([], np.int64), tuple(labels), lambda found: "".join(labels[each] for each in found))


def bytes_of_texts() -> Tokens:
    """The 256 bytes of UTF-8, with a line break between texts."""

    def numbers(texts: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        return [np.frombuffer(text.encode("utf-8", "replace"), np.uint8) for text in texts]

    labels = tuple(chr(each) if each < 128 else f"\\x{each:02x}" for each in range(256))
    return Tokens(numbers, np.array([ord("\n")]), labels, lambda found: bytes(found).decode("utf-8", "replace"))


def tokenizer_at(path: str | Path) -> Tokens:
    """The tokenizer in a folder of transformers, or in a ``tokenizer.json``; no code of the folder is run.

    Between texts comes its end-of-text token (or separator), if it has one. Raises UserError where there is none, or
    its package isn't installed.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"tokenizer: there is no folder or file {str(path)!r}")
    file = place / _FILE if place.is_dir() else place
    try:
        return _of_file(file) if file.exists() else _of_transformers(place)
    except ImportError as error:
        raise UserError(
            f"tokenizer: {str(path)!r} needs the package {error.name} (pip install 'lthfunc[transformers]')"
        ) from error
    except Exception as error:  # whatever the packages raise for a broken file, or for none
        raise UserError(f"tokenizer: {str(path)!r} cannot be read ({first_line(error)})") from error


def windows(row: Tensor, length: int) -> Split:
    """Consecutive windows of a row of tokens, each with itself shifted by one."""
    count = max(0, (len(row) - 1) // length)
    return Split(row[: count * length].view(count, length), row[1 : count * length + 1].view(count, length))


def _of_file(file: Path) -> Tokens:
    import tokenizers

    made = tokenizers.Tokenizer.from_file(str(file))
    made.no_truncation()
    made.no_padding()

    def numbers(texts: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        return [np.array(each.ids, np.int64) for each in made.encode_batch(texts, add_special_tokens=False)]

    vocabulary = made.get_vocab(with_added_tokens=True)
    labels = [made.decode([number], skip_special_tokens=False) for number in range(1 + max(vocabulary.values()))]
    end = _end(_end_in(file.parent), vocabulary)
    return Tokens(numbers, end, tuple(labels), lambda found: made.decode(list(found), skip_special_tokens=False))


def _of_transformers(folder: Path) -> Tokens:
    import transformers

    made = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)

    def numbers(texts: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        found = made(list(texts), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return [np.array(each, np.int64) for each in found]

    vocabulary = made.get_vocab()
    labels = made.convert_ids_to_tokens(list(range(1 + max(vocabulary.values()))))
    end = _end(made.eos_token or made.sep_token, vocabulary)
    return Tokens(numbers, end, tuple(map(str, labels)), lambda found: str(made.decode(list(found))))


def _end_in(folder: Path) -> str | None:
    """The token that ends a text, as a folder of transformers names it."""
    for name in _ABOUT:
        about = json.loads((folder / name).read_text("utf-8")) if (folder / name).is_file() else {}
        for key in _ENDS:
            found = about.get(key)
            if found := found.get("content") if isinstance(found, Mapping) else found:
                return str(found)
    return None


def _end(token: str | None, vocabulary: Mapping[str, int]) -> np.ndarray[Any, Any]:
    return np.array([vocabulary[token]] if token is not None and token in vocabulary else [], np.int64)


def of_rows(name: str, where: str, rows: Mapping[str, Tensor], labels: Sequence[str], given: Windows) -> Dataset:
    """A data set of rows of tokens: train, and val and test unless they are cut off its end, test last.

    where: what messages call it. Raises UserError for rows that are too short.
    """
    shares = {"val": 0.0 if "val" in rows else given.val, "test": 0.0 if "test" in rows else given.test}
    whole = rows["train"]
    first, second = (round(len(whole) * (1 - share)) for share in (sum(shares.values()), shares["test"]))
    found = {"val": whole[first:second], "test": whole[second:], **rows, "train": whole[:first]}
    train, held, tested = (windows(found[part], given.length) for part in SPLITS)
    if not all(len(part.x) for part in (train, held, tested)):
        raise UserError(
            f"dataset: {where} has {sum(map(len, rows.values()))} {given.unit}, too few for three splits of windows "
            f"of {given.length} (dataset option length=N)"
        )
    return Dataset(name, train, held, tested, classes=len(labels), labels=tuple(labels))
