"""How Sphinx builds these pages: ``sphinx-build -W docs build/docs``, with the extra ``docs`` installed."""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "lockbuild"
author = project_copyright = "The lockbuild developers"
version = release = version_of("lockbuild")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_argparse_cli"]
# The anchors that a forge makes of headings, so that links work there and here.
myst_heading_anchors = 4
# Two hyphens begin an option; they are no dash.
smartquotes = False

# In docstrings, `name` in single backquotes is a name of Python.
default_role = "py:obj"
autodoc_preserve_defaults = True
# One parameter a line where a signature is longer.
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"lockbuild {version}"
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Leave out what `collections.namedtuple` says of a field that we say nothing of."""

    def drop_alias_note(_app: Sphinx, _what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
        if lines and lines[0].startswith("Alias for field number"):
            lines.clear()

    app.connect("autodoc-process-docstring", drop_alias_note)
