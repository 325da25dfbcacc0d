"""Bad input by the thousand: one clear line, exit code 2 or 3, no traceback, nothing half-written."""

from __future__ import annotations

import json
import random
import shutil
import string
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from conftest import run
from lthfunc_cli import running
from lthfunc_cli.main import main
from test_runs import SMALL

from lthfunc.experiments.config import SETTINGS
from lthfunc.experiments.settings.setting import settings_of
from lthfunc.runs.json_lines import line_of
from lthfunc.runs.manifests import sum_of, write_manifest

#: In all 1,050: options, TOML files and run folders.
OPTIONS, TOML, FOLDERS = 650, 250, 150

#: What no number, name or path should look like.
CRUEL = [
    "", " ", "nan", "NaN", "inf", "-inf", "1e400", "-1e400", "1e-400", "-1", "-0", "0", "0.0", "1.5", "1,5", "0x10",
    "true", "None", "null", "[]", "{}", "9" * 25, "9" * 5000, "-" + "9" * 400, "٣", "９", "½", "🦄", "a" * 5000,
    "é\u0301", "\u202e", "\x1b[31m", "a\nb", "\n", "\t", "\x7f", "../..", "/", "/dev/null", "/dev/full", "~",
    "$HOME", "%s%n", "{0}", "[red]", "[/red]", "[/", "\\", "'", '"', ":", "::", "a:", ":b", "a:b", "a.b:c",
    "os:system", "os:nothing", "os.path:join", "sys:exit", "math:nan", "x.py:f", ".py:f", "loop:f", "loop/x.py:f",
    "bad.py:f", "raising.py:f", "exiting.py:f", "builtins:print", "builtins:open", "torch.nn:Linear", "torch:load",
    "lenet", "torchvision:", "torchvision:resnet", "timm:", "timm:x", "folder:", "folder:loop", "folder:file.txt",
    "folder:.", "npz:", "npz:file.txt", "npz:loop", "text:", "text:file.txt", "text:/dev/null", "hf:", "hf:../x",
    "planted:", "x.safetensors", "file.safetensors", "loop.safetensors", "2:1", "0:4", "4:0", "16x0", "2:", ":4",
    "step:", "step:-1", "step:1e3", "epoch:9999999", "step:" + "9" * 30, "lr:0", "top-0", "top--1",
    "top-" + "9" * 30, "auto ", "AUTO", "cuda:", "cuda:-1", "cuda:99", "mps", "0s", "-1s", "nans", "1e9s",
    "99999999s", "never ", "*", "[", "[!", "?" * 50, "0.5,0.5", "0.5,", ",", "0.5,nan", "1.0,0.5,0", "a=", "=b", "=",
    "a=b=c", "a=nan", "fc*=2", "fc*=-0.1", "fc1*=1e400",
]  # fmt: skip

WITH_VALUES = [
    *(each.option[2:] for each in settings_of(SETTINGS, "prune") if each.item is not bool), "recipe", "config", "out",
]  # fmt: skip
GOOD = [
    ["--rounds", "1"], ["--steps", "3"], ["--lr", "0.1"], ["--optimizer", "sgd"], ["--score", "snip"], ["--seed", "7"],
    ["--structure", "2:4"], ["--allocate", "erk"], ["--engine", "eager"], ["--json"], ["--control", "reinit"],
]  # fmt: skip
#: Other commands, with a place for something bad.
COMMANDS = [
    "resume {}", "info {}", "verify {}", "branch {} --from-round 1", "branch run --from-round {}",
    "branch run --from-round 1 --rounds 2 --rewind {}", "transfer {} --dataset digits", "transfer run --dataset {}",
    "specialize {}", "specialize run --round {}", "specialize run --format {}", "specialize run --batch-size {}",
    "export {} --to scipy", "export run --to {}", "export run --to scipy --round {}",
    "export run --to scipy --out {}/x", "config {}", "import {}", "import x.pth --max-size {}",
    "import file.pth --out {}", "archs --input {}", "archs --dataset {}", "datasets show {}", "methods --density {}",
    "methods --density 0.1 --method {}", "connectivity --at {}", "connectivity --points {}",
    "info run --classes --data-dir {}", "info {} --classes", "{}", "{} run", "benchmark {}",
    "benchmark training --network {}", "benchmark sparse --threads {} --quick",
]  # fmt: skip


class Accepted(Exception):  # noqa: N818 (it is no error)
    """What was generated is good after all; no training is begun for it."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert run("prune", *SMALL, "--control", "reinit", "--out", folder) == 0
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with some of everything; trainings are not begun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(finished, "run")
    Path("file.txt").write_text("")
    Path("file.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    Path("file.pth").write_bytes(b"no pickle")
    Path("bad.py").write_text("def f(:")
    Path("raising.py").write_text("raise RuntimeError('first\\nsecond')")
    Path("exiting.py").write_text("import sys\nsys.exit(7)")
    for name in ("loop", "loop.safetensors"):
        Path(name).symlink_to(name)

    def stop(*given: Any, **named: Any) -> None:
        raise Accepted

    monkeypatch.setattr(running, "_run", stop)
    monkeypatch.setattr("lthfunc_cli.methods._run", stop)
    monkeypatch.setattr("lthfunc.scheduling.execute.results_of", stop)
    monkeypatch.setattr("lthfunc.deployment.specialize.specialize", stop)
    monkeypatch.setattr("benchmarks.training.run", stop)
    monkeypatch.setattr("benchmarks.sparse.run", stop)
    return tmp_path


def is_refused(arguments: list[str], capsys: Any) -> bool:
    """Run a command; False where it was accepted. It fails where a mistake is not told in one line."""
    before = sorted(str(path) for path in Path().rglob("*") if "__pycache__" not in path.parts)
    capsys.readouterr()
    try:
        code = main(arguments)
    except Accepted:
        for made in ("runs", "new"):
            shutil.rmtree(made, ignore_errors=True)
        return False
    output = capsys.readouterr()
    if code == 0:
        return False
    assert code in (2, 3), (arguments, code, output.err)
    told = [line for line in output.err.splitlines() if line.startswith("lthfunc: ")]
    found = arguments[0] == "verify" and "damaged: " in output.out  # which is what it is for
    assert len(told) == 1 - found, (arguments, output.err)
    assert "Traceback" not in output.err
    assert all(each.isprintable() for line in told for each in line), arguments
    after = sorted(str(path) for path in Path().rglob("*") if "__pycache__" not in path.parts)
    assert [path for path in after if path not in before] == [], arguments
    return True


def test_bad_options_are_one_line(place: Path, capsys: Any) -> None:
    draw = random.Random(0)
    refused = 0
    letters = string.printable + "äß漢\u0000"
    while refused < OPTIONS:
        if draw.random() < 0.7:
            bad = [f"--{draw.choice(WITH_VALUES)}", draw.choice(CRUEL)]
            if draw.random() < 0.1:
                bad[1] = "".join(draw.choices(letters, k=draw.randint(1, 12)))
            if draw.random() < 0.05:
                bad[0] = bad[0][: draw.randint(2, len(bad[0]))] + draw.choice(letters)
            others = [part for option in draw.sample(GOOD, draw.randint(0, 3)) for part in option]
            arguments = [draw.choice(["prune", "prune", "train"]), *others, *bad]
        else:
            arguments = [part.format(draw.choice(CRUEL)) for part in draw.choice(COMMANDS).split()]
        arguments = [part.replace("\0", "") for part in arguments]  # which no process can be given
        refused += is_refused(arguments, capsys)


def test_bad_files_of_settings_are_one_line(place: Path, capsys: Any) -> None:
    draw = random.Random(1)
    names = list(SETTINGS)
    cruel: list[Any] = [
        *CRUEL, True, -1, 0, 1.5, 10**18, float("nan"), float("inf"), [], [1], ["x"], [[]], {}, {"x": 1}, {"x": {}},
        {"": ""},
        {"fc*": 2.0}, {"fc*": "x"}, ["x", 1], [True], ["\0"], "\0", "a\0b", {"\0": "\0"}, {"width": "\x1b[2J"},
    ]  # fmt: skip
    broken = [
        b"", b"\xff\xfe", b"\xef\xbb\xbfrounds = 1", b"rounds", b"rounds = ", b"[" * 5000, b"x = " + b"[" * 5000,
        b"a.b.c = 1",
        b"rounds = 1\nrounds = 2", b"\0", b"rounds = 1_0_0", b"[[rounds]]", b"rounds = " + b"9" * 5000, b"rate = 1e400",
        b"'' = 1", b"rate = 1979-05-27", b"x" * 100_000, b"seed = 99999999999999999999999999", b"{",
        b"rounds = 0b11111",
        b"layer_rate = {a = 0.1, a = 0.2}", b'"rounds " = 2', b"steps = 3\r\nrate = \r",
    ]  # fmt: skip
    refused = 0
    while refused < TOML:
        if draw.random() < 0.2:
            content = draw.choice(broken)
            if draw.random() < 0.5:
                content = bytes(draw.randrange(256) for _ in range(draw.randint(1, 40)))
        else:
            values = {draw.choice(names): draw.choice(cruel)}
            if draw.random() < 0.2:
                name = draw.choice(names)
                values = {name[:-1] or "x": 1, draw.choice(names): draw.choice(cruel)}
            try:
                content = tomli_w.dumps(values).encode()
            except (ValueError, TypeError):
                continue
        Path("settings.toml").write_bytes(content)
        command = draw.choice([["prune", "--config"], ["train", "--config"], ["config"]])
        refused += is_refused([*command, "settings.toml"], capsys)


def harmed(value: Any, draw: random.Random) -> Any:
    """A JSON value with something in it replaced, left out or added."""
    cruel: list[Any] = [
        None,
        True,
        -1,
        0,
        1.5,
        10**30,
        float("nan"),
        "",
        "x",
        "../../x",
        "\x1b[2J",
        [],
        [[]],
        {},
        {"x": 1},
        [None],
    ]
    if isinstance(value, dict) and value and draw.random() < 0.85:
        name = draw.choice(list(value))
        if draw.random() < 0.15:
            return {key: item for key, item in value.items() if key != name}
        return {**value, name: harmed(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        place = draw.randrange(len(value))
        return [*value[:place], harmed(value[place], draw), *value[place + 1 :]]
    return draw.choice(cruel)


def test_hostile_run_folders_are_one_line(place: Path, finished: Path, capsys: Any) -> None:
    """Files whose sums are right and whose contents are not, as a stranger can write them."""
    draw = random.Random(2)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["sha256"]
    refused = 0
    commands = [
        "info run", "verify run", "resume run", "transfer run --dataset digits --out new", "specialize run",
        "branch run --from-round 1 --rounds 3 --out new", "export run --to scipy", "info run --classes",
        "info run --json",
    ]  # fmt: skip
    while refused < FOLDERS:
        shutil.rmtree("run")
        shutil.copytree(finished, "run")
        kind = draw.choice(["line", "line", "header", "tensors", "manifest", "bytes"])
        if kind in ("line", "header"):
            number = 0 if kind == "header" else draw.randrange(1, len(lines))
            changed = [*lines[:number], harmed(lines[number], draw), *lines[number + 1 :]]
            text = "".join(
                line_of(line) + "\n" if isinstance(line, dict) else f"{json.dumps(line)}\n" for line in changed
            )
            Path("run/metrics.jsonl").write_text(text)
        else:
            where = Path("run/seed0") / draw.choice(["round00", "round01", "round02", "round01-reinit"])
            file = where / draw.choice(["params.safetensors", "masks.safetensors"])
            content = file.read_bytes()
            size = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + size])
            if kind == "tensors":
                new = json.dumps(harmed(header, draw)).encode()
                content = len(new).to_bytes(8, "little") + new + content[8 + size :]
            else:
                content = content[: draw.randrange(len(content))] + draw.randbytes(draw.randint(0, 9))
            file.write_bytes(content)
            if kind == "manifest":
                manifest = where / "manifest.json"
                about = json.loads(manifest.read_text())
                manifest.write_text(line_of(harmed({key: about[key] for key in about if key != "sha256"}, draw)) + "\n"
                                    if draw.random() < 0.8 else "[]")  # fmt: skip
            else:
                sums = {path.name: sum_of(path.read_bytes()) for path in where.glob("*.safetensors")}
                sums["../anchor.safetensors"] = sum_of((where.parent / "anchor.safetensors").read_bytes())
                write_manifest(where, sums)
        for command in map(str.split, draw.sample(commands, 3)):
            before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
            refused += is_refused(command, capsys)
            if command[0] != "resume":
                after = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
                assert {path: after.get(path) for path in before} == before, command


def test_paths_with_spaces_and_newlines_work_or_are_refused(place: Path, finished: Path, capsys: Any) -> None:
    shutil.copytree(finished, "a run\nof two lines [/red]")
    for command in ("info", "verify"):
        assert main([command, "a run\nof two lines [/red]"]) == 0
    shutil.copytree(finished, "a run")
    assert main(["verify", "a run"]) == 0
    with pytest.raises(Accepted):
        main(["resume", "a run"])
    with pytest.raises(Accepted):
        main(["prune", "--out", "new run/with spaces [bold]"])


@pytest.mark.parametrize(
    ("option", "code", "words"),
    [
        ("score", "raise KeyError('x')", "'own.py:f' fails (line 2 of "),
        ("score", "return 3", "'own.py:f' returned an int, not a dict"),
        ("allocate", "return [1]", "'own.py:f' returned a list, not a dict"),
        ("structure", "return None", "'own.py:f' returned a NoneType, not a dict"),
        ("rewind", "return 1 / 0", "ZeroDivisionError: division by zero"),
        ("densities", "return given[1]", "fails (line 2 of "),
    ],
)
def test_mistakes_in_ones_own_functions_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, option: str, code: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(f"def f(*given):\n    {code}\n")
    assert main(["prune", "--rounds", "1", "--steps", "3", "--engine", "eager", f"--{option}", "own.py:f"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lthfunc: ")]
    assert words in line
    assert f"--{option}: " in line
