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


def test_a_loop_of_pure_steps_has_thirty_lines(capsys: Any) -> None:
    """With a loss that sees the inputs, an auxiliary head, clipping and a schedule of its own."""
    _, loop = blocks("docs/how-to/python.md", "python")
    assert len([line for line in loop.splitlines() if line.strip()]) <= 30
    assert "range(10)" in loop
    exec(compile(loop.replace("range(10)", "range(2)"), "python.md", "exec"), {})
    found = re.findall(r"(\d+\.\d)% left: (\d+)", capsys.readouterr().out)
    assert [float(density) for density, _ in found] == [100, 50, 25, 12.5]
    assert min(int(right) for _, right in found) > 50
