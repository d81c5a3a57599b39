"""Writes the table before setuptools looks for modules."""

from pathlib import Path

import units
from setuptools import setup

rows = "".join(f"    {name!r}: {length!r},\n" for name, length in sorted(units.METRES.items()))
Path(__file__).with_name("src").joinpath("tables", "_lengths.py").write_text(f"LENGTHS = {{\n{rows}}}\n")
setup()
