"""The command line: mistakes in one line, help without torch, every kind of run."""

from __future__ import annotations

import errno
import gc
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import noted, under_way, until
from lthfunc_cli.main import main

import lthfunc
from lthfunc.catalog.data_sets import DATASETS
from lthfunc.catalog.networks import NETWORKS
from lthfunc.experiments.config import filled
from lthfunc.runs.folder import read_run

BAD = {
    "prune --arch lenet6": "--arch: unknown name 'lenet6'; did you mean 'lenet5'?",
    "prune --dataset digitz": "--dataset: unknown name 'digitz'; did you mean 'digits'?",
    "prune --rate 1": "--rate: invalid value 1.0 (expected a number between 0 and 1",
    "prune --rate 0": "--rate: invalid value 0.0",
    "prune --rate much": "--rate: invalid value 'much' (expected a number)",
    "breakeven 1e-3+8e-5/5 0+1e-4/5 --plot x.pdf": "--plot: invalid value 'x.pdf' (expected a name that ends in .png",
    "prune --schedule json:loads": "--schedule: invalid value 'json:loads' (expected a table of rates",
    "prune --score json:loads": "'json:loads' (expected a function of (params, masks), or what makes it of seed",
    "prune --rounds -1": "--rounds: invalid value -1 (expected a whole number from 0 to 10,000",
    "prune --rounds 1.5": "--rounds: invalid value '1.5' (expected a whole number)",
    "prune --arch lenet5": "'lenet5' needs images of at least 12×12, these are 8×8",
    "prune --arch lenet5 --dataset digits": "; these inputs are of --dataset digits, the default",
    "prune --dataset absent.safetensors --weights nett.pth": "--weights: invalid value 'nett.pth' (expected a file",
    "prune --dataset absent.safetensors --arch nett.py:Net": "--arch: cannot import 'nett.py:Net'",
    "prune --dataset absent.safetensors --score json:nothing": "--score: cannot import 'json:nothing'",
    "prune --device cuda:99": "--device: invalid value 'cuda:99' (expected one of auto, cpu",
    "prune --control reinitt": "--control: unknown name 'reinitt'; did you mean 'reinit'?",
    "prune --rewind step:99999": "--rewind: invalid value 'step:99999' (expected a point before the end",
    "prune --batch-size 2000": "--batch-size: invalid value 2000 (expected a whole number from 1 to 1257",
    "prune --layer-rate fc1": "--layer-rate: invalid value 'fc1' (expected PATTERN=RATE",
    "prune --allocate layerwise --layer-rate conv*=0.1": "a pattern that matches one of fc1.weight, fc2.weight, fc3",
    "prune --config absent.toml": "--config: cannot read 'absent.toml': No such file or directory",
    "prune --config bad.toml": "--config: 'bad.toml' is not TOML",
    "prune --config typo.toml": "unknown name 'round'; did you mean 'rounds'?",
    "prune --out file.txt/run": "--out: invalid value 'file.txt/run'",
    "prune --roundz 3": "No such option",
    "prune --engine quick": "--engine: unknown name 'quick'",
    "prune --precision fp8": "--precision: unknown name 'fp8'; did you mean 'fp32'?",
    "prune --precision tf32": "--precision: invalid value 'tf32' (expected one of fp32, bf16 on cpu",
    "prune --jobs 0": "--jobs: invalid value 0 (expected a whole number from 1 to 10,000",
    "prune --threads 0": "--threads: invalid value 0 (expected a whole number from 1 to 10,000",
    "prune --dataset absent.safetensors": "absent.safetensors: cannot be read as a safetensors file",
    "prun": "No such command 'prun'",
    "prune --score snipp": "--score: unknown name 'snipp'; did you mean 'snip'?",
    "prune --score no.module:f": "--score: cannot import 'no.module:f'",
    "prune --allocate erkk": "--allocate: unknown name 'erkk'; did you mean 'erk'?",
    "prune --densities 0.5,0.7": "--densities: invalid value '0.5,0.7' (expected decreasing numbers between 0 and 1",
    "prune --densities 0.5,0.2 --density 0.1": "--density and --densities: give one of them",
    "prune --density 1.5": "--density: invalid value 1.5 (expected a number between 0 and 1",
    "prune --structure 5:4": "--structure: invalid value '5:4' (expected N:M with N of at most M",
    "prune --structure 3:7 --allocate uniform --rounds 1 --rate 0.6": "3:7 doesn't divide the 64 inputs of fc1.weight",
    "prune --structure 2:4 --allocate uniform --rounds 1 --rate 0.2": "2:4 holds at most 9,600 of the 19,200 weights",
    "prune --structure 2:4 --exempt conv*": "--exempt: invalid value 'conv*' (expected a pattern that matches one of ",
    "prune --exempt fc3*": "--exempt: requires --structure per-output",
    "prune --min-layer-weights 900 --rounds 1 --rate 0.99": "--min-layer-weights: 3 layers need at least 2700",
    "prune --min-layer-weights 3 --allocate lamp": "--min-layer-weights: requires --allocate global, uniform, er",
    "prune --schedule cyclic --steps 3 --cycles 9": "--cycles: invalid value 9 (expected a whole number from 1 to 3",
    "prune --schedule cyclic --steps 3": "--steps: invalid value 3 (expected at least 4 steps with",
    "prune --steps 9 --warmup 10": "--warmup: invalid value 10 (expected a whole number from 0 to 9, the steps of a",
    "prune --steps 9 --schedule step --milestone 9": "--milestone: invalid value 9 (expected a step before 9, the end",
    "prune --cycles 2": "--cycles: requires --schedule cyclic, not constant",
    "config --device gpu": "--device: invalid value 'gpu' (expected auto, cpu, cuda or cuda:N)",
    "prune --jobs 9999": "--jobs: invalid value 9999 (expected a whole number from 1 to",
    "methods": "--density: missing (expected a density",
    "methods --density 0.1 --method imp-cyclic --steps 3": "expected at least 4 steps with --schedule cyclic",
    "methods --density 0.1 --method imq": "--method: unknown name 'imq'; did you mean 'imp'?",
    "methods --density 0.1 --method imp --method imp": "each method once",
    "methods --density 0.1 --method imp-tuned": "--method: imp-tuned needs a decreasing --schedule",
    "methods --densities 0.1,0.5": "--densities: invalid value '0.1,0.5' (expected decreasing numbers",
    "methods --density 0.1 --method dense --out file.txt": "--out: invalid value 'file.txt' (expected a folder",
    "methods --density 0.1 --method dense --out .": "--out: invalid value '.' (expected a new folder",
    "prune --min-layer-weights 3 --allocate mine:f": "balanced, not mine:f",
    "prune --exempt fc* --structure mine:f": "--exempt: requires --structure per-output",
    "connectivity --at 9999": "--at: invalid value 9999 (expected a step from 0 to",
    "connectivity --points 2": "points: invalid value 2 (expected a whole number of at least 3",
    "branch absent --from-round 1": "absent: is not a run folder",
    "transfer absent": "--dataset: name the data set",
    "transfer absent --dataset digits": "absent: is not a run folder",
    "train --rounds 3": "No such option: --rounds (that is an option of prune, ",
    "prune --round 5": "No such option: --round; did you mean --rounds?",
    "prune lenet5": "unexpected argument 'lenet5' of prune; did you mean --arch lenet5?",
    "train Fashion-MNIST": "did you mean --dataset Fashion-MNIST?",
    "info": "Missing argument 'RUN'. Name a run's folder, e.g. lthfunc info runs/RUN",
    "resume": "(runs has no unfinished run)",
    "resume absent": "absent: is not a run folder",
    "prune --dataset mnist --data-dir broken": "train-images-idx3-ubyte",
}


@pytest.mark.parametrize("command", BAD)
def test_mistakes_are_one_line_exit_code_2_and_nothing_written(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("rounds = = 3")
    (tmp_path / "typo.toml").write_text("round = 3")
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "broken" / "MNIST" / "raw").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert main(command.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert output.err.startswith("lthfunc: ")
    assert BAD[command] in output.err
    assert sorted(tmp_path.rglob("*")) == before


def test_help_and_mistakes_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from lthfunc_cli.main import main\n"
        "main(['prune', '--help']); main(['recipes']); main(['datasets']); main(['prune', '--arch', 'nothing'])\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_lives_long_is_left_alone_during_a_command_only(monkeypatch: pytest.MonkeyPatch) -> None:
    before, during = gc.get_threshold(), list[Any]()
    monkeypatch.setattr("lthfunc_cli.main._told", lambda _: 0 * len(noted(during, gc.get_threshold())))
    assert main(["archs"]) == 0
    assert during[0][:2] == before[:2]
    assert during[0][2] > before[2]
    assert gc.get_threshold() == before


def test_listings_name_everything(capsys: Any) -> None:
    assert main(["archs"]) == 0
    out = capsys.readouterr().out
    assert all(arch.about in out for arch in NETWORKS.values())
    main(["datasets"])
    out = capsys.readouterr().out
    assert all(name in out for name in DATASETS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lthfunc {lthfunc.__version__}\n"


@pytest.mark.parametrize("package", ["lthfunc", "lthfunc_cli"])
def test_the_packages_run_as_the_command(package: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", [package, "prune", "--arhc", "lenet5"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(package, run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("lthfunc: ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_offers_networks(shell: str) -> None:
    environment = {
        "_LTHFUNC_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "lthfunc prune --arch res",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": "lthfunc prune --arch res",
        "COMP_CWORD": "3",
    }
    code = "import sys; sys.argv = ['lthfunc']; from lthfunc_cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "resnet18" in done.stdout, done.stderr
    assert "lenet5" not in done.stdout


RUNS = {
    "layerwise": "--allocate layerwise --layer-rate fc1*=0.5 --rounds 1",
    "epochs and cosine": "--epochs 1 --steps-none --schedule cosine --warmup 3 --rounds 1",
    "sgd": "--optimizer sgd --momentum 0.9 --nesterov --weight-decay 0.001 --schedule step --milestone 10 --rounds 1",
    "random": "--score random --rewind none --rounds 1",
    "epoch rewinding": "--rewind epoch:1 --rounds 1",
    "reinit": "--rewind reinit --rounds 1 --control random-mask --control shuffled-mask",
    "no rounds": "--rounds 0",
    "convolutions": "--arch conv2 --rounds 1 --steps 3",
    "batchnorm and augmentation": "--arch resnet20 --augment flip-crop --rounds 1 --steps 3 --rewind step:1",
    "adamw": "--optimizer adamw --lr 0.01 --rate 0.5 --seed 7 --rounds 1",
}


@pytest.mark.parametrize("name", RUNS)
def test_every_option_runs(name: str, tmp_path: Path, capsys: Any) -> None:
    options = RUNS[name].replace("--steps-none", "").split()
    steps = [] if {"--steps", "--epochs"} & set(options) else ["--steps", "30"]
    assert main(["prune", *options, *steps, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    _, config, records = read_run(tmp_path / "run")
    assert len(records) == 1 + filled(config.rounds) * (1 + len(config.control))
    if name == "layerwise":
        layers = {layer: counts["kept"] for layer, counts in records[1]["layers"].items()}
        assert layers == {"fc1.weight": 9_600, "fc2.weight": 24_000, "fc3.weight": 900}
    if name == "epoch rewinding":
        assert records[1]["curve"][0][0] == 1257 // 60


def test_ones_own_network_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_things.py").write_text(
        "import torch, lthfunc as lf\n"
        "def net(shape, classes):\n"
        "    return torch.nn.Sequential(torch.nn.Linear(*shape, 16), torch.nn.ReLU(), torch.nn.Linear(16, classes))\n"
        "def data():\n"
        "    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)); y = (x.sum(1) > 0).long()\n"
        "    return lf.data.from_tensors('signs', (x[:200], y[:200]), (x[200:], y[200:]), val=50)\n"
        "def wrong(): return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    own = ["--arch", "own_things:net", "--dataset", "own_things:data"]
    assert main(["prune", *own, "--rounds", "1", "--steps", "20", "--batch-size", "10"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("net-data-")
    assert main(["prune", "--dataset", "own_things:wrong"]) == 2


def test_without_a_compiler_it_says_so_and_runs_and_refuses_what_was_asked_for(tmp_path: Path) -> None:
    folder, code = tmp_path / "run", "import sys; from lthfunc_cli.main import main; sys.exit(main(sys.argv[1:]))"

    def started(*options: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-c",
            code,
            "prune",
            "--steps",
            "1500",
            "--rounds",
            "1",
            "--out",
            str(folder),
            *options,
        ]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={"PATH": "", "CXX": "none-here"})

    process = started("--engine", "compile")
    said = "lthfunc: --engine: invalid value 'compile' (expected eager on this machine, since no C++ compiler was found"
    assert process.communicate()[1].startswith(said)
    assert process.returncode == 2
    assert not folder.exists()
    process = started()  # 3,000 steps: auto would compile
    until(lambda: under_way(folder), process)
    process.send_signal(signal.SIGINT)
    assert "not compiled: no C++ compiler was found (none-here); running eagerly" in process.communicate()[1]
    assert read_run(folder)[1].engine == "eager"


@pytest.mark.parametrize("made_with", ["pybind11", "nanobind"])
def test_nothing_is_searched_for_garbage_as_a_command_ends(made_with: str) -> None:
    """Handlers run in the reverse order of their registration, so that the one here sees what ours did.

    nanobind counts what is left at the end, and complains.
    """
    code = (
        "import atexit, gc, sys, types\n"
        f"builder = type('meta', (type,), {{'__module__': '{made_with}'}})('builder', (), {{}})\n"
        "ir = types.SimpleNamespace(builder=builder)\n"
        "sys.modules['triton._C.libtriton'] = types.SimpleNamespace(ir=ir)\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        "from lthfunc_cli.main import main\n"
        "main(['--version'])\n"
        "print(gc.get_freeze_count())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["0", str(made_with != "nanobind")]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS])
def test_a_disk_that_takes_no_more_is_one_line_where_no_file_is_named(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def failing(arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("lthfunc_cli.main._invoked", failing)
    assert main(["info", "run"]) == 3
    assert capsys.readouterr().err == f"lthfunc: {os.strerror(number)}; finished results are kept\n"


def test_no_room_for_temporary_files_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """As PyTorch meets it, when all disks are full."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    monkeypatch.setattr("lthfunc_cli.main._invoked", lambda arguments: tempfile.gettempdir())
    assert main(["info", "run"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lthfunc: No usable temporary directory found in ['/nowhere']; free some space there")
