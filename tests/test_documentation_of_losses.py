"""The page on losses does what it says: its Python, as printed but shorter."""

from __future__ import annotations

import re
from typing import Any

from documentation import blocks


def shortened(code: str) -> str:
    """With few steps; detectors, which are slow, with two."""
    code = re.sub(r"steps=\d+00\b", "steps=60", code)
    return code.replace("range(80)", "range(2)").replace("steps=80", "steps=2")


def test_the_losses_of_the_page_train(capsys: Any) -> None:
    names: dict[str, Any] = {}
    for code in blocks("docs/how-to/losses.md", "python"):
        exec(compile(shortened(code), "losses.md", "exec"), names)
    found = capsys.readouterr().out
    assert re.search(r"alone: 0\.\d+\ntaught: 0\.[6-9]", found)
    assert min(float(each) for each in re.findall(r"^0\.\d+$", found, re.MULTILINE)) > 0.6
    assert [float(each) > 0.7 for each in re.findall(r"weights: (0\.\d+)", found)] == [True] * 2
    # The detectors: their losses, and what is left of them.
    assert len(re.findall(r"'classification': '\d+\.\d+', 'bbox_regression': '\d+\.\d+'}", found)) == 3
    assert re.findall(r"with (\d+)% of", found) == ["100", "50", "25", "25"]
