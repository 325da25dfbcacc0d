"""The page: one HTML file that contains its data, script, style and Plotly, and opens offline."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

from lthfunc import __version__
from lthfunc.reports.charts import Picture
from lthfunc.reports.page import html_parts
from lthfunc.reports.page.explorer import explorer_of
from lthfunc.reports.page.pictures import RunPictures
from lthfunc.reports.page.plotly_figures import figure_of
from lthfunc.reports.page.run_view import RunView
from lthfunc.trees.ops import tree_map

#: The page loads nothing, whatever the runs' files contain.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def page(
    runs: Sequence[RunView], together: Mapping[str, Sequence[Picture]], drawn: Sequence[RunPictures], title: str
) -> str:
    """The whole document."""
    body = ['<div class="cards">', *map(html_parts.card, runs), "</div>", *_sections(together)]
    body += _each_run(runs, drawn)
    body.append(html_parts.section("settings", "Settings", html_parts.settings(runs)))
    body.append(html_parts.section("origin", "Where it ran, and how to repeat it", html_parts.origins(runs)))
    shown = {"": together} | {f"{at}/": each.pictures for at, each in enumerate(drawn)}
    charts = {
        prefix + picture.key: figure_of(picture)
        for prefix, by_heading in shown.items() for pictures in by_heading.values() for picture in pictures
    }  # fmt: skip
    explorers = {str(at): explorer_of(each.masks, each.pixels) for at, each in enumerate(drawn) if each.masks}
    return _whole(title, "".join(body), {"charts": charts, "explorers": explorers})


def pictures_page(title: str, by_heading: Mapping[str, Sequence[Picture]], below: str) -> str:
    """A document of pictures by heading. below: HTML that follows them."""
    charts = {picture.key: figure_of(picture) for pictures in by_heading.values() for picture in pictures}
    return _whole(title, "".join(_sections(by_heading)) + below, {"charts": charts, "explorers": {}})


def _sections(by_heading: Mapping[str, Sequence[Picture]], prefix: str = "", suffix: str = "") -> list[str]:
    """A section of pictures for each heading. prefix: of the pictures' keys; suffix: of the sections' names."""
    return [
        html_parts.section(
            "-".join(heading.lower().split()) + suffix, heading,
            html_parts.figures((prefix + picture.key, picture) for picture in pictures),
        )
        for heading, pictures in by_heading.items()
    ]  # fmt: skip


def _each_run(runs: Sequence[RunView], drawn: Sequence[RunPictures]) -> list[str]:
    """The sections of each run; with several runs, a menu above selects one."""
    able = [at for at, run in enumerate(runs) if run.records]
    if not able:
        return []
    body = []
    if len(able) > 1:
        options = "".join(f'<option value="{at}">{escape(runs[at].name)}</option>' for at in able)
        body.append(f'<div class="choose"><label>Run <select id="run">{options}</select></label></div>')
    for place, at in enumerate(able):
        inner = _sections(drawn[at].pictures, f"{at}/", f"-{at}")
        if drawn[at].masks is not None:
            inner.append(html_parts.section(f"masks-{at}", "Masks and weights", _EXPLORER.format(at=at)))
        inner.append(html_parts.section(f"numbers-{at}", "Numbers", html_parts.results(runs[at].rows)))
        hidden = " hidden" if place else ""
        body.append(f'<div class="run" data-run="{at}"{hidden}>{"".join(inner)}</div>')
    return body


_EXPLORER = """
<div class="explorer" data-explorer="{at}">
<div class="controls">
<label>Layer <select class="layer"></select></label>
<label class="slide">Round <input class="round" type="range" min="0" value="0" step="1">
<output class="position"></output></label>
</div>
<div class="grid">
<figure><h3>Mask</h3><canvas class="mask" role="img" aria-label="mask"></canvas>
<figcaption class="mask-caption"></figcaption></figure>
<figure class="pixels"><h3>What the first layer looks at</h3>
<canvas class="pixel" role="img" aria-label="pixel importance"></canvas>
<figcaption class="pixel-caption"></figcaption></figure>
<figure><h3>Surviving weights after training</h3>
<div class="plot histogram" role="img" aria-label="histogram of weights"></div></figure>
</div>
</div>
"""


def _finite(value: Any) -> Any:
    """The value, or None for a number that is not finite, which JSON cannot express."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _whole(title: str, body: str, data: Mapping[str, Any]) -> str:
    here = files(__package__)
    style, script = (here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # Within a script element only "</" and "<!--" are read as HTML.
    text = json.dumps(tree_map(_finite, data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta name="generator" content="lthfunc {__version__}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</main>\n"
        f'<script type="application/json" id="data">{text}</script>\n'
        f"<script>{get_plotlyjs()}</script>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )
