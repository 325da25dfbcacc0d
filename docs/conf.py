"""The documentation site: Sphinx reads docs/ and the library's docstrings.

sphinx-build -W --keep-going docs site      then open site/index.html
"""

import sys
from pathlib import Path

import lthfunc

sys.path.insert(0, str(Path(__file__).parent))

project = "lthfunc"
author = "the lthfunc developers"
copyright = author
version = release = lthfunc.__version__

extensions = ["myst_parser", "sphinx_copybutton", "reference_pages"]
myst_heading_anchors = 3
highlight_language = "none"
smartquotes = False  # which make dashes of the hyphens of options
copybutton_exclude = ".gp, .go"  # prompts and outputs
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = "lthfunc"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0a5c8a", "color-brand-content": "#0a5c8a"},
    "dark_css_variables": {"color-brand-primary": "#6cc4f5", "color-brand-content": "#6cc4f5"},
}
