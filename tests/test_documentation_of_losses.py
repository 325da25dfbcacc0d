"""The page on losses does what it says: its Python, as printed but shorter."""

from __future__ import annotations

import re
from typing import Any

from documentation import blocks


def test_the_losses_of_the_page_train(capsys: Any) -> None:
    names: dict[str, Any] = {}
    for code in blocks("docs/how-to/losses.md", "python"):
        short = re.sub(r"steps=(\d+)00\b", lambda found: f"steps={min(int(found[1]), 1)}00", code)
        exec(compile(short, "losses.md", "exec"), names)
    found = capsys.readouterr().out
    assert re.search(r"alone: 0\.\d+\ntaught: 0\.[6-9]", found)
    assert [float(each) > 0.7 for each in re.findall(r"weights: (0\.\d+)", found)] == [True] * 2
    assert min(float(each) for each in re.findall(r"^0\.\d+$", found, re.MULTILINE)) > 0.6
