"""The library of kernels in the cache: what is not what was built is built again, never loaded."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lthfunc_cli.build_kernels import kernel_builds_shown
from lthfunc_cli.main import main

from lthfunc.errors import UserError
from lthfunc.sparse.kernels import build, library_cache
from lthfunc.sparse.kernels.compilation import CompilerError, units
from lthfunc.sparse.kernels.progress import BUILDS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own; what takes a compiler half a minute writes a file here, and loading it is counted."""
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path / "cache"))
    build.load_kernels.cache_clear()
    yield build.cache_folder()
    build.load_kernels.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []

    def builds(folder: Path) -> None:
        assert not list(folder.iterdir()), "nothing of an earlier build is used"
        library_cache.library(folder).write_bytes(b"library" * 1000)
        made.append("built")

    monkeypatch.setattr(build, "_build", builds)
    monkeypatch.setattr("torch.ops.load_library", lambda path: made.append(f"loaded {len(Path(path).read_bytes())}"))
    return made


def test_a_build_says_so_at_once_and_once(folder: Path, calls: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    told: list[int] = []
    with kernel_builds_shown(), BUILDS.watched(lambda done, parts: told.append(parts - done)):
        build.load_kernels()
        build.load_kernels.cache_clear()
        build.load_kernels()
    assert told == [len(units()), 0]
    words = f"Building the sparse kernels for this processor, once, about {build.expected_seconds()} s\n"
    assert capsys.readouterr().err == words


@pytest.mark.parametrize("harm", ["empty", "cut", "changed", "no sum", "other sum", "none", "half a build"])
def test_a_library_that_is_not_what_was_built_is_built_again(folder: Path, calls: list[str], harm: str) -> None:
    build.load_kernels()
    assert calls == ["built", "loaded 7000"]
    path, known = library_cache.library(folder), folder / "lthfunc_kernels.so.sha256"
    content = path.read_bytes()
    if harm in ("empty", "cut", "changed"):
        path.write_bytes({"empty": b"", "cut": content[:3000], "changed": content[:-1] + b"?"}[harm])
    elif harm == "no sum":
        known.unlink()
    elif harm == "other sum":
        known.write_bytes(b"\xff" * 64)
    elif harm == "half a build":
        path.unlink()
        (folder / "edges.o").write_bytes(b"")
        (folder / "lock").write_bytes(b"")
    calls.clear()
    build.load_kernels.cache_clear()
    assert build.is_built() is (harm == "none")
    build.load_kernels()
    assert calls == ([] if harm == "none" else ["built"]) + ["loaded 7000"]
    assert build.is_built()


def test_a_cache_that_cannot_be_written_or_believed_is_one_line(
    folder: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.parent.parent.mkdir(parents=True)
    folder.parent.write_text("no folder")
    assert "cannot be written to (LTHFUNC_CACHE names another folder)" in str(build.why_no_kernels())
    with pytest.raises(UserError, match="LTHFUNC_CACHE names another folder"):
        build.load_kernels()
    folder.parent.unlink()
    build.load_kernels()
    build.load_kernels.cache_clear()
    calls.clear()
    folder.chmod(0o500)  # what is whole needs no writing
    build.load_kernels()
    folder.chmod(0o700)
    assert calls == ["loaded 7000"]
    build.load_kernels.cache_clear()
    if os.getuid() == 0:
        os.chown(library_cache.library(folder), 12345, -1)
    else:
        mine = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    with pytest.raises(UserError, match=r"lthfunc_kernels\.so belongs to another user"):
        build.load_kernels()


def test_a_library_that_is_a_link_is_not_loaded(folder: Path, calls: list[str], tmp_path: Path) -> None:
    build.load_kernels()
    elsewhere = tmp_path / "elsewhere.so"
    library_cache.library(folder).rename(elsewhere)
    library_cache.library(folder).symlink_to(elsewhere)
    build.load_kernels.cache_clear()
    with pytest.raises(UserError, match=r"lthfunc_kernels\.so is a link"):
        build.load_kernels()


def test_of_two_builds_at_once_the_second_takes_what_the_first_made(folder: Path, calls: list[str]) -> None:
    both = threading.Barrier(2)
    told: list[int] = []

    def watch(done: int, parts: int) -> None:
        told.append(done)
        if not done:
            both.wait(60)  # neither has the folder yet

    with BUILDS.watched(watch), ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: build._built(), range(2)))
    assert calls == ["built"]
    assert found == [library_cache.library(folder)] * 2
    assert told == [0, 0, len(units()), len(units())]


def test_an_interrupted_build_says_so_and_is_begun_anew(
    folder: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(folder: Path) -> None:
        library_cache.library(folder).write_bytes(b"lib")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build, "_build", interrupted)
        assert main(["build-kernels"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "lthfunc: interrupted"
    assert main(["build-kernels"]) == 0
    assert calls == ["built", "loaded 7000"]


def test_a_full_disk_is_told_by_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise CompilerError("{standard input}: Fatal error: can't write 101 bytes to 1.o: 'No space left on device'")

    monkeypatch.setattr(build, "compile_library", full)
    with pytest.raises(UserError) as caught:
        build.load_kernels()
    assert str(caught.value) == (
        f"engine: the sparse kernels cannot be built: {folder}: No space left on device (LTHFUNC_CACHE names another "
        "folder)"
    )


@pytest.mark.parametrize(
    "command",
    [
        "prune --rewind step:99999",
        "prune --score json:loads --engine sparse",
        "prune --min-layer-weights 900 --rounds 1 --rate 0.99 --engine sparse",
        "methods --density 0.1 --method imp-cyclic --steps 3",
        "methods --density 0.1 --method dense --baseline snip",
        "connectivity --at 9999 --engine sparse",
    ],
)
def test_no_compiler_is_waited_for_before_a_mistake_is_said(
    folder: Path, calls: list[str], command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    assert calls == []
