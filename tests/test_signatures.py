"""Signatures print for people, directories show what is public."""

from __future__ import annotations

import inspect
import pydoc
from typing import Any

import pytest
import torch

import lthfunc as lf


@pytest.mark.parametrize("package", [lf, lf.data, lf.models])
def test_signatures_print_for_people(package: Any) -> None:
    seen = 0
    for name in package.__all__:
        try:
            text = str(inspect.signature(getattr(package, name)))
        except (TypeError, ValueError):  # aliases, exceptions and modules have none
            continue
        seen += 1
        assert " at 0x" not in text, name
        assert "ForwardRef" not in text, name
        assert "<lambda>" not in text, name
        assert len(text) < 600, name
    assert seen > 0.5 * len(package.__all__)


def test_help_reads_as_it_was_written() -> None:
    assert "loss: Loss = cross_entropy" in pydoc.render_doc(lf.train)
    for found in (lf.train, lf.prune, lf.make_trainer, lf.from_module):
        assert " at 0x" not in pydoc.render_doc(found)
    # What is asked of it stays what it is.
    assert inspect.signature(lf.train).parameters["loss"].default is lf.cross_entropy


@pytest.mark.parametrize("package", [lf, lf.data, lf.models])
def test_help_is_readable_for_all_that_is_public(package: Any) -> None:
    for name in package.__all__:
        exported = getattr(package, name)
        lines = pydoc.plain(pydoc.render_doc(exported)).splitlines()
        if issubclass(exported if isinstance(exported, type) else object, torch.nn.Module):
            lines = lines[: next(i for i, line in enumerate(lines) if "inherited from torch" in line)]
        for line in lines:
            assert " at 0x" not in line, (name, line)
            assert "ForwardRef" not in line, (name, line)
            assert "<lambda>" not in line, (name, line)
            assert len(line) < 620, (name, line)


@pytest.mark.parametrize("package", [lf, lf.data, lf.models])
def test_a_directory_shows_what_is_public(package: Any) -> None:
    assert {name for name in dir(package) if not name.startswith("__")} == set(package.__all__)
    assert not [name for name in package.__all__ if name.startswith("_")]


def test_what_makers_return_is_exported() -> None:
    assert lf.Trainer.__name__ == "Trainer"
    assert lf.make_trainer.__annotations__["return"] == "Trainer"
    assert lf.fit.__annotations__["return"] == lf.Fit.__name__
