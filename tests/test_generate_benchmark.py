"""The benchmark of text: its rates are of the same tokens, whoever writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sparse_programs import kernels  # noqa: F401

import lthfunc as lf
from benchmarks import generate
from benchmarks.floors import BYTES, PEAK
from lthfunc.errors import UserError
from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


@pytest.mark.parametrize("arch", ["char-transformer", "lstm"])
def test_rates_are_recorded_at_each_density(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(generate, "compiled", lambda function, example, name: function)
    monkeypatch.setattr(generate, "peak_rate", lambda device: 1e9)  # which takes its time
    sizes = ["--arch", arch, "--width", "8", "--layers", "1", "--length", "5", "--seconds", "1e-4", "--repeats", "2"]
    generate.main([*sizes, "--density", "0.5", "--json", str(tmp_path / "found.json")])
    records = json.loads((tmp_path / "found.json").read_text())["records"]
    assert [(each["engine"], each["density"]) for each in records] == [
        (generate.CACHED, 1.0), (generate.ANEW, 1.0), (generate.TICKET, 0.5), (PEAK, 0.5), (BYTES, 0.5),
    ]  # fmt: skip
    assert all(each["unit"] == "tokens/s" and each["min"] > 0 for each in records)
    assert "lf.generate at 0.5" in capsys.readouterr().out


def test_all_write_the_same_text() -> None:
    """The likeliest tokens, by the peers' steps and by the program."""
    torch.manual_seed(2)
    model = lf.models.char_transformer((7,), 65, width=16, layers=2)
    state = lf.init(model)
    net: Any = lf.to_module(lf.ticket(state), model).eval()
    program = lf.decoding_program(model, state, 7)
    expected = [0, *lf.generate(program, torch.zeros(1, dtype=torch.int64), 7, temperature=0.0).tolist()]
    token, kept = torch.zeros(1, 1, dtype=torch.int64), [0]
    caches = [torch.zeros(1, 4, 7, 4) for _ in range(4)]
    window, anew = torch.zeros(1, 7, dtype=torch.int64), [0]
    with torch.no_grad():
        for place in torch.arange(7)[:, None]:
            (token,) = generate._step(net, token, place, *caches)
            kept.append(int(token))
            (likeliest,) = generate._last(net, window, place)
            anew.append(int(likeliest))
            if place < 6:
                window[0, place + 1] = likeliest
    assert kept == anew == expected


def test_recurrent_networks_write_the_same_text() -> None:
    torch.manual_seed(2)
    model = lf.models.build("lstm", (7,), 65, {"width": "16", "layers": "2"}, "text")
    start = lf.init(model)
    ticket = lf.Ticket({name: 6 * leaf for name, leaf in start.params.items()}, start.buffers, start.masks)
    net: Any = lf.to_module(ticket, model).eval()
    program = lf.decoding_program(model, ticket, 7)
    expected = lf.generate(program, torch.zeros(1, dtype=torch.int64), 7, temperature=0.0).tolist()
    token, found = torch.zeros(1, 1, dtype=torch.int64), []
    states = generate._states(net)
    with torch.no_grad():
        for _ in range(7):
            token, *states = generate._recurrent_step(net, token, torch.zeros(1), *states)
            found.append(int(token))
    assert found == expected
    assert len(set(found)) > 1


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--length", "--length: invalid value 1"),
        ("--width", "--width: invalid value 1"),
        ("--density", "--density: in"),
        ("--arch", "--arch: invalid value '1' \\(expected char-transformer or lstm\\)"),
    ],
)
def test_mistakes_are_one_line(option: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        generate.main([option, "7" if option == "--density" else "1"])
