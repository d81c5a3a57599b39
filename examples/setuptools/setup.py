"""Everything but the C extension is declared in pyproject.toml."""

from setuptools import Extension, setup

setup(ext_modules=[Extension("tally._fast", ["src/tally/_fast.c"])])
