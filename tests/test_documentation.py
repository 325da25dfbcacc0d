"""The pages of docs/ do what they say: their commands and their Python, run as printed but shorter."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from documentation import PAGES, blocks, commands, shortened, to_run
from lthfunc_cli.main import app, main
from PIL import Image
from typer.main import get_command

import lthfunc as lf
from lthfunc.runs.folder import read_run

#: Whose commands run. Those of the other pages, which take minutes or measure, are only parsed.
RUN = (
    "tutorials/first-ticket", "tutorials/own-network", "how-to/commands", "how-to/own-code", "how-to/data",
    "how-to/models", "how-to/block-by-block", "how-to/reports", "how-to/energy", "how-to/sweeps", "how-to/resume",
    "how-to/cluster",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "RUN"
    assert main(["prune", "--rounds", "1", "--steps", "5", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def place(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the pages' reader has: files of own code, a checkpoint, a text."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(blocks("docs/how-to/own-code.md", "python")[0])
    (rings,) = (block for block in blocks("docs/how-to/data.md", "python") if "def rings" in block)
    Path("rings.py").write_text(rings)
    Path("topics.txt").write_text((ROOT / "README.md").read_text(encoding="utf-8"))
    (network,) = blocks("docs/tutorials/own-network.md", "python")
    Path("net.py").write_text(network)
    names: dict[str, Any] = {}
    exec(compile(network, "net.py", "exec"), names)
    torch.save(names["Net"]().state_dict(), "net.pth")
    return tmp_path


def take_photographs(folder: Path) -> None:
    """Noise, of two classes."""
    for label in ("cats", "dogs"):
        (folder / label).mkdir(parents=True)
        for number in range(20):
            picture = torch.randint(0, 256, (30, 34, 3), dtype=torch.uint8).numpy()
            Image.fromarray(picture).save(folder / label / f"{number}.png")


@pytest.mark.parametrize("command", to_run("README.md", *(f"docs/{page}.md" for page in RUN)))
def test_each_command_runs(
    command: str, place: Path, finished: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:  # fmt: skip
    words = shortened(command)
    if words[0] == "benchmark":
        module = f"benchmarks.{words[1]}"
        __import__(module)
        monkeypatch.setattr(f"{module}._QUICK_SECONDS", 0.02, raising=False)
        monkeypatch.setattr(f"{module}._QUICK_REPEATS", 1, raising=False)
        monkeypatch.setattr("lthfunc.training.engines.compiled.compiled", lambda function, example, name: function)
    if words[0] in ("specialize", "energy", "breakeven"):  # test_execution.py compiles
        monkeypatch.setattr("lthfunc.deployment.compiled.why_not", lambda device: "not in this test")
        for name in ("autotune._SECONDS", "autotune._LAYER_SECONDS", "compiled._SECONDS"):
            monkeypatch.setattr(f"lthfunc.deployment.{name}", 0.001)
    if "folder:photos" in words:
        take_photographs(place / "photos")
        monkeypatch.setenv("LTHFUNC_CACHE", str(place / "cache"))
    if "mnist" in words:
        words += ["--data-dir", str(request.getfixturevalue("mnist_dir"))]
    for run in [word for word in words if word.startswith("runs/") and words[words.index(word) - 1] != "--out"]:
        if not Path(run).exists():
            shutil.copytree(finished, run)
        if words[0] == "breakeven":
            assert main(["energy", run, "--samples", "200", "--repeats", "2"]) == 0
    assert main(words) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_the_options_of_each_command_exist(page: str) -> None:
    """Of every command, also of those that take too long to run here."""
    for command in commands(page):
        words = shlex.split(command)[1:]
        if "--install-completion" not in words:
            group: Any = get_command(app)
            with group.make_context("lthfunc", words) as context:
                name, inner, rest = group.resolve_command(context, [*context._protected_args, *context.args])
                inner.make_context(name, rest, parent=context)


def test_models_and_data_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for page in ("docs/how-to/models.md", "docs/how-to/data.md"):
        for code in blocks(page, "python"):
            if "transformers" not in code or importlib.util.find_spec("transformers") is not None:
                exec(compile(code, page, "exec"), {})
    found = capsys.readouterr().out
    share, chance = map(int, re.findall(r"(\d+)%", found))
    assert share > 1.4 * chance


def test_methods_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """On the digits, and shorter."""
    monkeypatch.chdir(tmp_path)
    composed, updating, method, own, growing = blocks("docs/how-to/methods.md", "python")
    for long, short in (
        ("(1, 28, 28)", "(1, 8, 8)"), ('"mnist"', '"digits"'), ("steps=3000", "steps=20"), ("steps=150", "steps=5"),
        ("rounds=100", "rounds=5"),
    ):  # fmt: skip
        assert long in composed
        composed = composed.replace(long, short)
    names: dict[str, Any] = {}
    exec(compile(composed, "methods.md", "exec"), names)
    densities = {
        name: lf.density(names[name].masks) for name in ("ticket", "one_shot", "at_init", "by_flow", "two_of_four")
    }
    expected = {"ticket": 0.8**10, "one_shot": 0.05, "at_init": 0.05, "by_flow": 0.05, "two_of_four": 0.5}
    assert densities == pytest.approx(expected, abs=1e-4)
    exec(compile(updating, "methods.md", "exec"), names)
    assert [each.step for each in names["found"].changes] == [*range(10, 81, 10)]
    (tmp_path / "my_method.py").write_text(method)
    mine = ["--method", "my_method.py:in_two_steps", "--no-dense", "--rounds", "1", "--density", "0.1"]
    assert main(["prune", *mine, "--steps", "8", "--out", "mine"]) == 0
    assert (
        "1 training of 8 steps: 1 round by my_method.py:in_two_steps, to a density of 10.0 %" in capsys.readouterr().err
    )
    assert [each["step"] for each in read_run(Path("mine"))[2][0]["updates"]] == [1, 6]
    assert len([line for line in own.splitlines() if line.strip()]) < 20
    functions: dict[str, Any] = {}
    exec(compile(own, "methods.md", "exec"), functions)
    functions["test_the_farthest_stay"]()
    (tmp_path / "my_scores.py").write_text(f"{own}\n\n{growing}")
    assert main(["prune", "--rounds", "1", "--steps", "4", "--score", "my_scores:centred", "--out", "run"]) == 0
    grown = ["--method", "rigl", "--growth", "my_scores:after_a_step", "--density", "0.1"]
    assert main(["prune", *grown, "--steps", "8", "--out", "grown"]) == 0


def test_programs_run_as_printed() -> None:
    """Of the pages on running tickets and on the sparse engine, which use one network."""
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 1, 28, 28, generator=draw), torch.arange(64) % 10
    model = lf.models.lenet300()
    state = lf.prune(density=0.1)(lf.init(model))
    names: dict[str, Any] = {
        "lf": lf, "model": model, "state": state, "ticket": lf.ticket(state), "images": images,
        "data": lf.data.from_tensors("noise", (images, labels), (images, labels), val=4),
        "mask": torch.rand(8, 4, 3, 3, generator=draw) < 0.2, "weight": torch.randn(8, 4, 3, 3, generator=draw),
        "bias": torch.zeros(8), "x": torch.randn(5, 4, 32, 32, generator=draw),
    }  # fmt: skip
    for page in ("docs/how-to/execution.md", "docs/explanation/sparse-engine.md"):
        for code in blocks(page, "python"):
            exec(compile(code, page, "exec"), names)
    torch.testing.assert_close(names["small"].model.evaluating(names["images"]), names["logits"], rtol=1e-3, atol=1e-4)
    assert names["program"].report.measured.batch == 64
    convolved = torch.nn.functional.conv2d(names["x"], names["weight"] * names["mask"], padding=1)
    torch.testing.assert_close(names["y"], convolved, rtol=1e-4, atol=1e-4)


def test_a_loop_of_ones_own_is_pruned_in_thirty_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    loop, rigl, foreign = blocks("docs/how-to/loops.md", "python")
    assert len([line for line in loop.splitlines() if line.strip()]) <= 30
    assert "range(10)" in loop
    names: dict[str, Any] = {}
    torch.manual_seed(0)  # of the network that the page builds, and of the loader's order
    exec(compile(loop.replace("range(10)", "range(2)"), "loops.md", "exec"), names)
    found = re.findall(r"(\d+\.\d)% left: (\d+)", capsys.readouterr().out)
    assert [float(density) for density, _ in found] == [100, 50, 25, 12.5]
    assert int(found[-1][1]) > 50
    exec(compile(rigl, "loops.md", "exec"), names)
    net, optimizer = names["net"], names["optimizer"]
    names["attached"].detach()
    with lf.attach(net, optimizer, names["rigl"](0.1, 200)) as attached:
        for _ in range(201):
            optimizer.zero_grad()
            net["head"](net["body"](names["x"])).logsumexp(1).mean().backward()
            optimizer.step()
    assert (attached.round, round(lf.density(attached.masks), 3)) == (3, 0.1)
    exec(compile(foreign, "loops.md", "exec"), {})
    assert main(["import", "masks.npz", "--masks"]) == 0


def test_a_loop_on_survivors_alone_is_pruned_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (loop,) = blocks("docs/how-to/sparse-module.md", "python")
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(compile(loop, "sparse-module.md", "exec"), names)
    found = re.findall(r"(\d+\.\d)% left: (\d+)", capsys.readouterr().out)
    assert list(dict.fromkeys(float(density) for density, _ in found)) == pytest.approx([50, 25, 12.5, 6.3], abs=0.1)
    assert int(found[-1][1]) > 60
    names["net"].load_state_dict(torch.load("net.pt", weights_only=True))
    ticket, _ = lf.load_ticket("ticket.safetensors")
    assert lf.same_bits(ticket.masks, names["sparse"].masks)


def test_ones_own_file_has_less_than_thirty_lines() -> None:
    assert len(blocks("docs/how-to/own-code.md", "python")[0].splitlines()) < 30


def test_three_methods_are_compared_in_thirty_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script of a tutorial, with fewer steps, seeds and densities."""
    monkeypatch.chdir(tmp_path)
    script = (ROOT / "examples" / "compare_methods.py").read_text(encoding="utf-8")
    assert len([line for line in script.splitlines() if line.strip()]) <= 30
    short = script.replace("[0.2, 0.05, 0.02], range(3), 5, 500", "[0.05], range(2), 2, 60")
    assert short != script
    names: dict[str, Any] = {}
    exec(compile(short, "compare_methods.py", "exec"), names)
    assert Path("methods.png").exists()
    found = names["accuracies"]
    assert found["IMP"].mean() > found["random"].mean() > 0.1


def test_the_notebook_is_the_script() -> None:
    script = (ROOT / "examples" / "functional.py").read_text(encoding="utf-8")
    book = json.loads((ROOT / "examples" / "functional.ipynb").read_text(encoding="utf-8"))
    cells = [part.partition("\n") for part in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]]
    assert len(cells) == len(book["cells"])
    for (head, _, body), cell in zip(cells, book["cells"], strict=True):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            assert "markdown" in head
            assert text == re.sub(r"^# ?", "", body.strip("\n"), flags=re.MULTILINE)
        else:
            assert text == body.strip("\n")


@pytest.mark.long
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile((ROOT / "examples" / "functional.py").read_text(encoding="utf-8"), "functional.py", "exec"), {})
    assert (tmp_path / "ticket.safetensors").exists()
    assert "0.063 of the weights" in capsys.readouterr().out


def test_the_tables_name_every_network_data_set_and_function() -> None:
    from lthfunc.catalog.data_sets import DATASETS
    from lthfunc.catalog.networks import NETWORKS

    for page, names in (("models", NETWORKS), ("data", DATASETS)):
        text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text(encoding="utf-8")
        assert not [name for name in names if f"`{name}`" not in text]
    text = (ROOT / "docs" / "how-to" / "python.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\|[^|]*\|([^|]*)\|", text, re.MULTILINE)
    assert not [name for cell in cells for name in re.findall(r"`(\w+)", cell) if not hasattr(lf, name)]


def test_a_folder_of_images_is_read_as_printed(place: Path) -> None:
    """The reader that measured Conv-2, on photographs: fewer, and of two classes."""
    (code,) = blocks("docs/results/methods.md", "python")
    for part in ("train", "test"):
        take_photographs(place / "cifar" / part)
    assert "val=1000, classes=10" in code
    code = code.replace("val=1000, classes=10", "val=8, classes=2")
    names: dict[str, Any] = {}
    exec(compile(code, "cifar_jpeg.py", "exec"), names)
    data = names["data"]()
    assert (data.shape, len(data.train.x), len(data.val.x), len(data.test.x)) == ((3, 30, 34), 32, 8, 40)


def test_no_python_is_left_out() -> None:
    """These pages' is run by the tests above and by tests named after their subjects."""
    found = {page.removeprefix("docs/").removesuffix(".md") for page in PAGES if blocks(page, "python")}
    how_to = {f"how-to/{page}" for page in (
        "python", "own-code", "jax", "loops", "losses", "optimizers", "sparse-module", "trainers", "models", "data",
        "methods", "execution", "cluster", "block-by-block", "groups", "packed",
        "generate",
    )}  # fmt: skip
    assert found == {
        *how_to, "tutorials/own-network", "explanation/sparse-engine", "results/methods", "development/adding",
    }  # fmt: skip
