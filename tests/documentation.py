"""What the tests of README.md and of docs/ share: their code, and their commands made short enough to run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from conftest import ROOT

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
#: Run by tests of their own (test_benchmarks.py, test_cluster.py, test_cluster_page.py, test_hub_text.py,
#: test_generate_command.py), or for packages not here.
ELSEWHERE = (
    *(f"benchmark {name}" for name in ("sparse", "execution", "checkpoints", "training")),
    "generate runs/", "--executor ray", "s3:", "--install-completion", "timm:", "hf:stories",
)  # fmt: skip


def blocks(page: str, language: str) -> list[str]:
    """A page's code blocks in a language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def commands(*pages: str) -> Iterator[str]:
    """The pages' commands, without comments, one by one."""
    for block in [block for page in pages for block in blocks(page, "sh")]:
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.partition("   #")[0].split("&&"):
                if command.strip().startswith(("lthfunc ", "taskset -c 0 lthfunc ")):
                    yield " ".join(command.split()).removeprefix("taskset -c 0 ")


def to_run(*pages: str) -> list[str]:
    """Those that a test runs, each once, whatever the page calls its run."""
    found = dict.fromkeys(re.sub(r"runs/(first|net)\b", "runs/RUN", each) for each in commands(*pages))
    return [each for each in found if not any(part in each for part in ELSEWHERE)]


def shortened(command: str) -> list[str]:
    """A command's words with fewer steps, on data that are here: photographs stand in for CIFAR."""
    words = ["--steps" if word == "--epochs" else word for word in shlex.split(command)[1:]]
    name = words[0]
    if name in ("prune", "train", "branch", "transfer", "sweep", "methods", "connectivity") and "--list" not in words:
        least = 104 if name == "connectivity" else 100 if "epoch:1" in words else 4
        words = _with(words, **{"--steps": str(least)})
        if "--recipe" in words:  # whose warm-up is as long as its trainings
            words = _with(words, **{"--warmup": "0"})
    if name == "prune" or (name == "sweep" and "--rounds" not in words):
        words = _with(words, **{"--rounds": "1"})
    if name in ("prune", "sweep", "methods", "connectivity") and "--replicates" in words:
        words = _with(words, **{"--replicates": "1"})
    if name == "methods" and "--method" not in words and "--list" not in words:  # test_methods.py has all of them
        words = [*words, "--method", "dense", "--method", "snip"]
    for option, value in {"--samples": "200", "--trials": "2"}.items():
        words = _with(words, **{option: value}) if option in words else words
    if name in ("prune", "train") and ("lth-conv" in words or any(re.match("cifar10|folder:", word) for word in words)):
        words = [*_with(words, **{"--dataset": "folder:photos", "--batch-size": "10"}), "--dataset-option", "size=16"]
    return words


def _with(words: list[str], **options: str) -> list[str]:
    """Words with options set to values."""
    for name, value in options.items():
        at = words.index(name) if name in words else len(words)
        words = [*words[:at], name, value, *words[at + 2 :]]
    return words
