"""How Sphinx builds these pages: ``sphinx-build -W docs docs/_build``, with the extra ``docs`` installed."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "lockbuild"
author = project_copyright = "The lockbuild developers"
version = release = version_of("lockbuild")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_argparse_cli"]
exclude_patterns = ["_build"]
# The anchors that a forge makes of headings, so that links work there and here.
myst_heading_anchors = 4
# Two hyphens begin an option; they are no dash.
smartquotes = False

# In docstrings, `name` in single backquotes is a name of Python.
default_role = "py:obj"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"lockbuild {version}"
html_copy_source = False
