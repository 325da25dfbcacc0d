"""The README does what it says: its example, its own-network files, and each of its commands."""

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
from lthfunc_cli.main import main
from PIL import Image

import lthfunc as lf

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


EXAMPLE, OWN = blocks("python")
#: Run by tests of their own: test_benchmarks.py, test_cluster.py and test_cluster_page.py.
ELSEWHERE = (
    *(f"benchmark {name} --quick" for name in ("sparse", "execution", "checkpoints", "training")),
    "--executor ray", "s3:", "--install-completion",
)  # fmt: skip
COMMANDS = [
    line.partition("   #")[0].strip()
    for block in blocks("sh")
    for line in block.splitlines()
    if line.startswith("lthfunc ") and not any(part in line for part in ELSEWHERE)
]


def test_the_example_has_at_most_twenty_lines_and_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    statements = [line for line in EXAMPLE.splitlines() if line.strip() and not line.startswith("import")]
    assert len(statements) <= 20
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLE, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    for line in lines:
        assert float(re.findall(r"\d\.\d+", line)[0]) > (0.9 if "magnitude" in line else 0.75)
        assert line.endswith("Count(kept=925, total=7400)")  # an eighth
    ticket, _ = lf.load_ticket(tmp_path / "ticket.safetensors")
    assert lf.count(ticket.masks) == (925, 7_400)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "RUN"
    assert main(["prune", "--rounds", "1", "--steps", "5", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A working directory as the README's reader has it: mine.py, and a run called RUN where a command names it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    if "runs/" in request.getfixturevalue("command"):
        shutil.copytree(finished, "runs/RUN")
    return tmp_path


def page_commands(page: str) -> list[str]:
    """The commands of a page's shell blocks that need neither a network nor a package."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
             for line in block.splitlines()]  # fmt: skip
    return [
        line.partition("   #")[0].strip()
        for line in lines
        if line.startswith("lthfunc ") and not any(part in line for part in ("timm:", *ELSEWHERE))
    ]


REPORTS = [
    part.strip()
    for page in ("how-to/reports.md", "how-to/cluster.md")
    for command in page_commands(page)
    for part in command.split("&&")
]


@pytest.mark.parametrize("command", dict.fromkeys([*COMMANDS, *page_commands("reference/run-format.md"), *REPORTS]))
def test_each_command_of_the_readme_runs(
    command: str, place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As printed, but shorter; where the data set would be downloaded, its local copy or the digits stand in."""
    words = shlex.split(command)[1:]
    if words[0] == "benchmark" and "--quick" in words:
        module = f"benchmarks.{words[1]}"
        __import__(module)
        monkeypatch.setattr(f"{module}._QUICK_SECONDS", 0.02, raising=False)
        monkeypatch.setattr(f"{module}._QUICK_REPEATS", 1, raising=False)
    for name in words if words[0] in ("report", "compare", "breakeven") else ():
        if name.startswith("runs/") and not Path(name).exists():
            shutil.copytree("runs/RUN", name)
        if name.startswith("runs/") and words[0] == "breakeven":
            assert main(["energy", name, "--samples", "200", "--repeats", "2"]) == 0
    if words[0] == "energy":
        words[words.index("--samples") + 1] = "200"
    if words[0] == "sweep":
        words = ["1" if before == "--replicates" else word for before, word in zip(["", *words], words, strict=False)]
        words = ["2" if before == "--trials" else word for before, word in zip(["", *words], words, strict=False)]
        words += ["--steps", "4", *([] if "--rounds" in words else ["--rounds", "1"])]
    if words[0] == "methods" and "--method" not in words and "--list" not in words:  # test_methods.py has all of them
        words += ["--method", "dense", "--method", "snip"]
    if words[0] in ("methods", "connectivity"):
        words += ["--steps", "4" if words[0] == "methods" else "104", "--replicates", "1"]
    if words[0] in ("branch", "transfer"):
        words += ["--steps", "4"]
    if words[0] in ("prune", "train"):
        words = [word for i, word in enumerate(words) if word != "--epochs" and words[i - 1] != "--epochs"]
        words += ["--steps", "100" if "epoch:1" in words else "4"]
        if "--rounds" in words:
            words[words.index("--rounds") + 1] = "1"
        elif words[0] == "prune":
            words += ["--rounds", "1"]
        if "lth-conv" in words:
            words += ["--dataset", "digits"]
        if "cifar10" in words:
            words[words.index("cifar10")] = "digits"
        if "mnist" in words:
            words += ["--data-dir", str(request.getfixturevalue("mnist_dir"))]
    assert main(words) == 0, capsys.readouterr().err


def test_ones_own_file_has_less_than_thirty_lines() -> None:
    assert len(OWN.splitlines()) < 30


@pytest.mark.parametrize("command", [*page_commands("how-to/data.md"), *page_commands("how-to/models.md")])
def test_each_command_of_the_pages_on_models_and_data_runs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As printed, but shorter; digits stand in for the CIFARs in a training, noise for photographs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path / "cache"))
    page = (ROOT / "docs" / "how-to" / "data.md").read_text(encoding="utf-8")
    (tmp_path / "rings.py").write_text(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[-1])
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 3)}}, tmp_path / "net.pth")
    (tmp_path / "topics.txt").write_text((ROOT / "README.md").read_text(encoding="utf-8"))
    for label in ("cats", "dogs") if re.search("photos|cifar10", command) else ():
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(20):
            picture = torch.randint(0, 256, (30, 34, 3), dtype=torch.uint8).numpy()
            Image.fromarray(picture).save(tmp_path / "photos" / label / f"{number}.png")
    words = shlex.split(command)[1:]
    if "prune" in words:
        words = [word for i, word in enumerate(words) if not {"--epochs", "--steps"} & {word, words[i - 1]}]
        words += ["--steps", "3", "--batch-size", "10"]
        if "folder:cifar10-jpeg" in words or "cifar10" in words:
            at = words.index("folder:cifar10-jpeg" if "folder:cifar10-jpeg" in words else "cifar10")
            words[at] = "folder:photos"
            words += ["--dataset-option", "size=16"]
    assert main(words) == 0, capsys.readouterr().err


def test_the_pages_on_models_and_data_run_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for page in ("how-to/models.md", "how-to/data.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if "transformers" not in code or importlib.util.find_spec("transformers") is not None:
                exec(compile(code, page, "exec"), {})
    found = capsys.readouterr().out
    share, chance = map(int, re.findall(r"(\d+)%", found))
    assert share > 1.4 * chance


def test_the_notebook_is_the_script_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    script = (ROOT / "examples" / "functional.py").read_text(encoding="utf-8")
    book = json.loads((ROOT / "examples" / "functional.ipynb").read_text(encoding="utf-8"))
    cells = [part.partition("\n") for part in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]]
    assert len(cells) == len(book["cells"])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for (head, _, body), cell in zip(cells, book["cells"], strict=True):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            assert "markdown" in head
            assert text == re.sub(r"^# ?", "", body.strip("\n"), flags=re.MULTILINE)
        else:
            assert text == body.strip("\n")
            exec(compile(text, "functional.ipynb", "exec"), names)
    assert (tmp_path / "ticket.safetensors").exists()
    assert "0.063 of the weights" in capsys.readouterr().out


def test_the_methods_page_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the digits, and shorter."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "how-to" / "methods.md").read_text(encoding="utf-8")
    composed, own = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
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
    assert len([line for line in own.splitlines() if line.strip()]) < 20
    functions: dict[str, Any] = {}
    exec(compile(own, "methods.md", "exec"), functions)
    functions["test_the_farthest_stay"]()
    (tmp_path / "my_scores.py").write_text(own)
    assert main(["prune", "--rounds", "1", "--steps", "4", "--score", "my_scores:centred", "--out", "run"]) == 0


def test_the_page_on_execution_runs_as_printed() -> None:
    page = (ROOT / "docs" / "how-to" / "execution.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    model = lf.models.lenet300()
    names: dict[str, Any] = {
        "lf": lf, "model": model, "ticket": lf.ticket(lf.prune(density=0.1)(lf.init(model))),
        "images": torch.randn(64, 1, 28, 28),
    }  # fmt: skip
    exec(compile(code, "execution.md", "exec"), names)
    torch.testing.assert_close(names["small"].model.evaluating(names["images"]), names["logits"], rtol=1e-3, atol=1e-4)
    assert names["program"].report.measured.batch == 64


def test_continuous_integration_runs_the_readmes_test_line() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.endswith("&& pytest -n 2")]
    assert len(lines) == 1
    assert '"&& pytest"' in (ROOT / ".ci" / "run").read_text()


def test_the_tables_name_every_network_and_data_set() -> None:
    from lthfunc.catalog.data_sets import DATASETS
    from lthfunc.catalog.networks import NETWORKS

    for name in (*NETWORKS, *DATASETS):
        assert f"`{name}`" in README


def test_every_function_the_readme_names_is_public() -> None:
    table = README[README.index("| step | functions |") : README.index("These properties hold everywhere")]
    for name in re.findall(r"`(\w+)", table):
        if name not in {"params", "scores", "state", "model", "grads", "outputs", "modules"}:
            assert hasattr(lf, name), name


def test_every_linked_file_is_there() -> None:
    for source in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)", source.read_text(encoding="utf-8")):
            assert (source.parent / target).exists(), f"{source.name}: {target}"
