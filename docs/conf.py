"""Sphinx: `sphinx-build -W -b html docs docs/_build`, with the extra `docs` installed. Nothing is fetched, no notebook is run."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import gallery  # noqa: E402

import manifoldid  # noqa: E402

project = "manifoldid"
author = "The manifoldid authors"
release = version = manifoldid.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinxcontrib.bibtex"]
bibtex_bibfiles = ["references.bib"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"manifoldid {release}"
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # outputs are saved, and the tests run the notebooks
suppress_warnings = ["mystnb.unknown_mime_type"]

default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

gallery.write(HERE.parent / "examples", HERE / "examples")

_MARKUP = re.compile(r"(``.+?``|`[^`]*`)|([|*\\]|\b_+(?!\w))")  # code, or a sign that means something to docutils


def _escape(app, what, name, obj, options, lines):
    """Docstrings are prose with formulas: `|x|`, `x*y` and `s_` outside of code mean themselves."""
    del app, what, name, obj, options
    lines[:] = [_MARKUP.sub(lambda match: match[1] or "\\" + match[2], line) for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", _escape, priority=400)  # before napoleon, which writes markup of its own
