"""A stranger's run: whatever links, pipes and devices it holds, nothing outside of it is read, awaited or touched."""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from lthfunc_cli.main import main
from strangers import a_finished_run, a_run, contents  # noqa: F401

from lthfunc.errors import DamagedError
from lthfunc.runs import integrity, safe_files, verification
from lthfunc.runs.checkpoints import is_whole
from lthfunc.runs.json_lines import append_lines, line_of, read_lines
from lthfunc.runs.verification import verified

FOLDERS = ["seed0", "seed0/round00", "seed0/round01", "report-figures", "tensorboard", "lenet300-round01-scipy"]
#: Links that are there together, since each hides nothing of what happens at the others.
GROUPS = [
    ["config.toml"],
    ["metrics.jsonl"],
    ["environment.jsonl", "measured.jsonl", ".progress.json", ".holder.json", "last_round.safetensors", "report.html"],
    ["seed0/round00/manifest.json", "seed0/round01/params.safetensors", "winning_ticket.safetensors"],
    ["seed0/round00/masks.safetensors", ".progress.json.new", "training_curves.png"],
    ["seed0/anchor.safetensors", "report-figures/accuracy_vs_density.png", "lenet300-round01-scipy"],
    [".lock", "report-figures"],
    ["seed0"],
    ["seed0/round00", "tensorboard"],
    ["seed0/round01"],
]
READING = [
    "info run", "verify run", "report run --no-figures", "watch run --once", "compare run", "breakeven run",
    "config run",
]  # fmt: skip


def is_answered(command: str, capsys: Any) -> str:
    """A command ends, with one line for what is wrong; returns what it said."""
    code = main(command.split())
    out, err = capsys.readouterr()
    assert code in (0, 2, 3), (command, code, err)
    assert "Traceback" not in err
    if code in (2, 3) and not out:
        assert err.splitlines()[-1].startswith("lthfunc: "), (command, err)
    return str(out + err)


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_no_link_is_followed(run: Path, names: list[str], capsys: Any) -> None:
    """Links to what the run would have there itself, so that nothing but the links is wrong with it."""
    outside = Path("outside")
    outside.mkdir()
    for number, name in enumerate(names):
        target, victim = run / name, outside / f"victim{number}"
        if target.exists():
            shutil.move(target, victim)
        elif name in FOLDERS:
            victim.mkdir()
            (victim / "mine").write_text("mine\n")
        else:
            victim.write_text("mine\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(os.path.relpath(victim.resolve(), target.parent.resolve()))
    before = contents(outside)
    for command in ("verify run", "report run", "resume run --tensorboard", "export run --to scipy"):
        is_answered(command, capsys)
        assert contents(outside) == before, command


@pytest.mark.parametrize("names", GROUPS[:4], ids=lambda names: names[0])
def test_no_pipe_or_device_is_waited_for(run: Path, names: list[str], capsys: Any) -> None:
    """Reading a pipe would wait for a writer, reading /dev/zero would never end."""
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        for name in names:
            (run / name).unlink(missing_ok=True)
            make(run / name)
        for command in READING:
            is_answered(command, capsys)


def test_manifests_name_files_of_their_run_alone(run: Path, capsys: Any) -> None:
    place = run / "seed0" / "round01"
    (Path("secret")).write_text("mine\n")
    for name in ("/etc/passwd", "/dev/zero", "../../../secret", "../../..", "x\0y"):
        sums = {"params.safetensors": {"sha256": "0" * 64, "bytes": 5}, name: {"sha256": "0" * 64, "bytes": 5}}
        (place / "manifest.json").write_text(line_of({"format": "lthfunc.manifest/1", "files": sums}) + "\n")
        said = is_answered("verify run", capsys)
        assert "does not lie in the run's folder" in said, name


def test_hard_links_are_read_and_never_written_through(run: Path, capsys: Any) -> None:
    Path("outside").mkdir()
    for name in ("metrics.jsonl", "environment.jsonl", "measured.jsonl", "config.toml", "last_round.safetensors"):
        os.link(run / name, Path("outside") / name.replace("/", "-"))
    before = contents(Path("outside"))
    assert main(["verify", "run"]) == 0
    assert main(["resume", "run"]) == 0
    assert contents(Path("outside")) == before
    (run / ".lock").unlink(missing_ok=True)
    os.link("outside/config.toml", run / ".lock")
    capsys.readouterr()
    assert main(["resume", "run"]) == 3
    assert "is a hard link to another file" in capsys.readouterr().err
    assert contents(Path("outside")) == before


def test_a_run_is_reached_through_its_owners_links(run: Path) -> None:
    Path("where").symlink_to("run")
    Path("through").symlink_to(Path.cwd())
    for name in ("where", "through/run", "through/where"):
        for command in (["info", name], ["verify", name], ["resume", name], ["report", name, "--no-figures"]):
            assert main(command) == 0, command
    assert not verified(Path("where")).problems


def test_what_a_crash_left_goes(run: Path) -> None:
    left = [run / ".metrics.jsonl.0a1b.unfinished", run / "seed0/round01/.masks.safetensors.9z.unfinished"]
    for path in left:
        path.write_bytes(b"half")
    assert main(["resume", "run"]) == 0
    assert not [path for path in left if path.exists()]
    assert not list(run.rglob("*.unfinished"))


@pytest.mark.parametrize("limit", range(0, 400, 37))
def test_a_line_that_cannot_be_added_whole_is_not_there(tmp_path: Path, limit: int) -> None:
    """The disk, here a limit on the size of files, is full at any byte of it."""
    path = tmp_path / "lines.jsonl"
    append_lines(path, [{"number": 1}])
    before = path.read_bytes()
    items = [{"number": number, "text": "x" * 60} for number in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + limit, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            append_lines(path, items)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    append_lines(path, items)
    assert read_lines(path) == [{"number": 1}, *items]


def test_paths_stay_within(tmp_path: Path) -> None:
    root = tmp_path / "run"
    (root / "seed0").mkdir(parents=True)
    calls: list[Callable[[Path], object]] = [
        lambda path: safe_files.read(root, path), lambda path: safe_files.write(root, path, b""),
        lambda path: safe_files.append(root, path, b""), lambda path: safe_files.remove(root, path),
    ]  # fmt: skip
    for path in (root / "/etc/passwd", root / "../other", root / "seed0/../..", root / "a\0b", root):
        for call in calls:
            with pytest.raises(DamagedError, match="does not lie in the run's folder"):
                call(path)
    safe_files.write(root, root / "seed0" / "../here", b"x")
    assert safe_files.read(root, root / "here") == b"x"
    assert list(safe_files.files(root)) == [root / "here"]


def test_a_live_run_is_verified_although_it_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is replaced, and a training ends, between two looks."""
    place = run / "seed0" / "round01"
    first, second = (f"checkpoint-{step:09d}-{step:064x}.safetensors" for step in (3, 4))
    (place / first).write_bytes(b"as it was when it was listed")

    def replaced(path: Path) -> bool:
        if path.name == first:
            path.unlink()
            (place / second).write_bytes(b"no content of that sum")
        return is_whole(path)

    with monkeypatch.context() as patch:
        patch.setattr(integrity, "is_whole", replaced)
        assert [problem.where for problem in integrity.checkpoint_problems(run)] == [f"seed0/round01/{second}"]
    (place / second).unlink()
    looks: list[Any] = []

    def looked(folder: Path) -> Any:
        report = looked_at(folder)
        looks.append(report)
        if len(looks) > 1:
            return report
        append_lines(folder / "metrics.jsonl", [{"kind": "mended", "lines": []}])
        return report._replace(problems=[integrity.Problem("seed0", "was replaced")])

    looked_at = verification._looked_at
    monkeypatch.setattr(verification, "_looked_at", looked)
    assert not verified(run).problems
    assert len(looks) == 2


def test_runs_are_opened_by_one_module_alone() -> None:
    """Whoever opens, lists, writes or deletes a run's files by another way would follow its links."""
    direct = re.compile(
        r"\b(?:read|write)_(?:bytes|text)\(|\bopen\(|\.(?:iterdir|r?glob|unlink|touch|mkdir|is_symlink)\(|\.stat\(\)|"
        r"write_atomically|appearing\(|load_tree|load_ticket|read_header|save_tree|save_ticket|copytree|shutil\.copy"
    )
    rooms = [path for room in ("runs", "scheduling") for path in (ROOT / "lthfunc" / room).glob("*.py")]
    rooms += [*(ROOT / "lthfunc" / "reports").rglob("*.py")]
    rooms += [*(ROOT / "lthfunc" / "tracking").glob("*.py"), *(ROOT / "cli").rglob("*.py")]
    found = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in rooms
        if path.name != "safe_files.py"
        for line in path.read_text().splitlines()
        if direct.search(line) and not line.strip().startswith("#")
    }
    known = {line for line in found if any(line.startswith(f"{name}: ") and part in line for name, part in OTHERS)}
    assert found == known, "\n".join(sorted(found - known))


#: Files that are no run's: (file, part of its line).
OTHERS = [
    ("lthfunc/scheduling/ray.py", "run_of(place).mkdir"),  # of a worker's own
    ("lthfunc/runs/environment.py", "digest.update"),  # the library's own files
    ("lthfunc/runs/environment.py", "folder.rglob"),
    ("lthfunc/runs/mirror.py", "self._home"),  # of this program's own, beside the run
    ("lthfunc/runs/mirror.py", "mirror.open()"),
    ("lthfunc/runs/mirror.py", "def open("),
    ("lthfunc/reports/matplotlib_figures.py", "path.parent.mkdir"),  # of a picture whose path was typed
    ("lthfunc/reports/page/document.py", "read_text"),  # the page's own parts
    ("cli/checkpoint_import.py", "save_tree"),
    ("cli/info.py", "load_tree"),  # a file that was typed
    ("cli/main.py", "os.devnull"),
    ("cli/running.py", "folder.mkdir(parents=True"),  # a folder that was typed
    ("cli/deployment.py", "path.iterdir()"),  # sizes of what was just written
    ("cli/deployment.py", "each.stat()"),
    ("lthfunc/runs/sweep_results.py", "folder.mkdir(parents=True"),
]
