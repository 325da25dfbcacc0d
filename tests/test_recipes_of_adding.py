"""What the documentation says of adding something, edit by edit in a copy, and then used from the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
OPERATION = "operation of the sparse engine"
PROGRAM = """
import torch
import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels.instructions import OPCODES
from lthfunc.sparse.program import Epilogue, Stored, program_of

class Net(torch.nn.Linear):
    def forward(self, x):
        return -super().forward(x)

model = lf.from_module(Net(4, 3))
params, buffers = model.init(0)
stored = Stored((4,), torch.float32)
graph = captured(model, (4,), training=True)
program = program_of(graph, params, buffers, {}, batch=2, stored=stored, epilogue=Epilogue())
print(program.code.rows[:, 0].tolist().count(OPCODES["negate"]))
"""


class Edit(NamedTuple):
    """A new file, or (table: the name whose table it goes into) a line of one."""

    path: str
    table: str | None
    text: str


def recipes() -> dict[str, list[Edit]]:
    """The edits of each recipe, out of the code blocks and the words before them."""
    section = (ROOT / "docs" / "development" / "adding.md").read_text()
    found: dict[str, list[Edit]] = {}
    kind, before = "", 0
    for block in re.finditer(r"```(?:python|cpp|c)\n(.*?)```", section, re.DOTALL):
        words = " ".join(section[before : block.start()].split())
        if named := re.findall(r"^## An? ([a-z ]+)$", section[before : block.start()], re.MULTILINE):
            kind = named[-1]
        if new := re.search(r"[Aa] new file `([^`]+)`:$", words):
            found.setdefault(kind, []).append(Edit(new[1], None, block[1]))
        else:
            line = re.search(r"in `(\w+)` of `([^`]+)`:$", words)
            assert line is not None, words
            found.setdefault(kind, []).append(Edit(line[2], line[1], block[1]))
        before = block.end()
    return found


def made(place: Path, edit: Edit) -> None:
    """One edit, in the copy."""
    path = place / edit.path
    if edit.table is None:
        assert not path.exists()
        path.write_text(edit.text)
        return
    source = path.read_text()
    if path.suffix == ".def":
        path.write_text(source.replace("\n#undef", f"{edit.text}\n#undef", 1))
        return
    opens = re.search(rf'^(?:{edit.table} = .*\{{|class {edit.table}:\n    """.*"""\n)\n', source, re.MULTILINE)
    assert opens is not None, edit.table
    path.write_text(source[: opens.end()] + edit.text + source[opens.end() :])


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library with all recipes followed."""
    place = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "lthfunc", place / "lthfunc", ignore=ignored)
    shutil.copytree(ROOT / "cli", place / "lthfunc_cli", ignore=ignored)
    for kind, edits in recipes().items():
        for edit in edits if kind != OPERATION else ():  # whose kernels would be built again
            made(place, edit)
    return place


def test_each_recipe_is_one_file_and_one_line() -> None:
    found = recipes()
    assert {"score", "allocation", "engine", "network", "data set", "setting", OPERATION} <= found.keys()
    for kind, edits in found.items():
        files = [edit for edit in edits if edit.table is None]
        lines = [edit.text.strip() for edit in edits if edit.table is not None]
        assert len(files) == {"setting": 0, OPERATION: 2}.get(kind, 1), kind
        assert [line.count("\n") for line in lines] == [0], kind


def test_what_was_added_is_used_from_the_command_line(copy: Path) -> None:
    words = [
        "prune", "--arch", "small", "--dataset", "stripes", "--score", "spread", "--allocate", "rounded-up",
        "--engine", "plain", "--patience", "2", "--rounds", "1", "--rate", "0.5", "--steps", "20",
        "--batch-size", "32", "--out", "run",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "lthfunc_cli", *words], cwd=copy, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(copy)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    settings = (copy / "run" / "config.toml").read_text().splitlines()
    chosen = {"arch": "small", "dataset": "stripes", "score": "spread", "allocate": "rounded-up", "engine": "plain"}
    assert {f'{name} = "{value}"' for name, value in chosen.items()} | {"patience = 2"} <= {*settings}
    lines = [json.loads(line) for line in (copy / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line.get("round") == 1][-1]
    assert (last["kept"], last["total"]) == ((64 * 16 + 16 * 2) // 2, 64 * 16 + 16 * 2)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_an_operation_is_a_kernel_a_lowering_and_a_line(tmp_path: Path) -> None:
    """The kernel is compiled against the headers alone, since building all of them takes a minute."""
    shutil.copytree(ROOT / "lthfunc", tmp_path / "lthfunc", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for edit in recipes()[OPERATION]:
        made(tmp_path, edit)
    kernel = tmp_path / "lthfunc/sparse/kernels/negate.cpp"
    flags = ("-std=c++20", "-fsyntax-only", "-Wno-psabi", "-Wno-unknown-pragmas", "-Werror", "-Wall")
    command = ["g++", *flags, str(kernel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True, check=False)
    assert done.stdout == "2\n", done.stderr
