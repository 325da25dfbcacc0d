"""The documentation site builds without a warning, has every public name, leads nowhere that is not there, searches."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from conftest import ROOT, until
from test_report_in_a_browser import browser  # noqa: F401

import lthfunc as lf
from lthfunc.sparse import functional


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("furo", "myst_parser", "sphinx_copybutton"):
        pytest.importorskip(package)
    from sphinx.cmd.build import main as build

    folder = tmp_path_factory.mktemp("documentation") / "site"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Sphinx about its extensions' code
        assert build(["-q", "-W", "--keep-going", str(ROOT / "docs"), str(folder)]) == 0
    return folder


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (site / "reference" / "api").glob("*.html"))
    described = {*re.findall(r'id="(lthfunc\.[\w.]+)"', pages)}
    public = {f"{package.__name__}.{name}" for package in (lf, lf.data, lf.models) for name in package.__all__}
    public |= {f"{functional.__name__}.{name}" for name in ("to_tiles", "from_tiles", "sparse_conv2d", "conv_pattern")}
    assert public - {"lthfunc.data", "lthfunc.models"} <= described


def test_every_command_is_in_the_reference(site: Path) -> None:
    from lthfunc_cli.main import app
    from typer.main import get_command

    page = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        assert f'id="lthfunc-{name}"' in page


def test_every_link_leads_to_something(site: Path) -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    anchors = {path: {*re.findall(r'\bid="([^"]+)"', text)} for path, text in pages.items()}
    assert len(pages) > 30
    for path, text in pages.items():
        assert not re.findall(r'(?:src|<link [^>]*href)="https?:[^"]*', text), "loaded from elsewhere"
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            name, _, anchor = unquote(link.partition("?")[0]).partition("#")
            if not re.match(r"https?:|data:|mailto:", link):
                target = (path.parent / name).resolve() if name else path
                assert target.exists(), f"{path.name}: {link}"
                assert not anchor or anchor in anchors[target], f"{path.name}: {link}"


def test_links_of_the_other_pages_lead_to_something() -> None:
    """Of README.md, CHANGELOG.md and their like; README's are addresses, so that a package index shows them."""
    ours = re.compile(r"https://(?:github\.com/lthfunc/lthfunc/blob|raw\.githubusercontent\.com/lthfunc/lthfunc)/main/")
    for page in ROOT.glob("*.md"):
        links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
        assert page.name != "README.md" or all(link.startswith("https://") for link in links)
        for link in (ours.sub("", link) for link in links):
            target, _, anchor = link.partition("#")
            if target and not re.match("https?:|mailto:", link):
                assert (ROOT / target).exists(), f"{page.name}: {link}"
                assert not anchor or anchor in slugs(ROOT / target), f"{page.name}: {link}"


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_search_works_without_a_network(site: Path, browser: Any) -> None:  # noqa: F811
    browser.get(f"{(site / 'search.html').as_uri()}?q=synflow")
    found = until(lambda: browser.find_elements("css selector", "#search-results li a"))
    assert any("sparsify.html" in each.get_attribute("href") for each in found)
