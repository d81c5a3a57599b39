"""ccache hits on the second build of a C extension, because the path of the kept environment is in its commands."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from wheelhouse import ProbeTree, created

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("ccache") or not shutil.which("gcc"), reason="there is no ccache, or no gcc"),
]

_PYPROJECT = """
[build-system]
requires = ["setuptools", "headers"]
build-backend = "setuptools.build_meta"
[project]
name = "demo"
version = "1.0"
"""

# A header from a build requirement, as numpy's are: its path is in the compiler's command line.
_SETUP = """
import headers, setuptools
setuptools.setup(ext_modules=[setuptools.Extension("demo", ["demo.c"], include_dirs=[headers.__path__[0]])])
"""

_SOURCE = """
#include <Python.h>
#include "value.h"
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "demo", NULL, VALUE};
PyMODINIT_FUNC PyInit_demo(void) { return PyModule_Create(&definition); }
"""


@pytest.fixture
def tree(tree: ProbeTree) -> ProbeTree:
    """A tree with a C extension."""
    tree.wheelhouse.add_wheel("headers", files={"headers/__init__.py": "", "headers/value.h": "#define VALUE 0\n"})
    tree.wheelhouse.add_installed("setuptools")
    for name, text in (("pyproject.toml", _PYPROJECT), ("setup.py", _SETUP), ("demo.c", _SOURCE)):
        (tree.path / name).write_text(text)
    return tree


def hits_and_misses(env: dict[str, str | None], tree: ProbeTree) -> tuple[int, int]:
    """Return how often ccache has found something and how often it had to compile, since the last time."""
    told = subprocess.run(
        ["ccache", "--print-stats"], env=tree.environ(env), capture_output=True, text=True, check=True
    )
    subprocess.run(["ccache", "--zero-stats"], env=tree.environ(env), capture_output=True, check=True)
    counts = {name: int(count) for name, count in re.findall(r"^(\w+)\t(\d+)$", told.stdout, re.MULTILINE)}
    return counts["direct_cache_hit"] + counts["preprocessed_cache_hit"], counts["cache_miss"]


def build(tree: ProbeTree, env: dict[str, str | None], *options: str) -> str:
    """Build with nothing left in the tree from the build before."""
    shutil.rmtree(tree.path / "build", ignore_errors=True)
    return tree.build(*options, env=env)


def test_the_second_build_of_an_extension_hits_and_one_without_the_cache_misses(tree: ProbeTree) -> None:
    env: dict[str, str | None] = {"CC": "ccache gcc", "CCACHE_DIR": str(tree.control / "ccache")}
    assert created(build(tree, env)) == 1
    assert hits_and_misses(env, tree) == (0, 1)
    assert created(build(tree, env)) == 0
    assert hits_and_misses(env, tree) == (1, 0)
    # What it would be without a kept environment: another path in the compiler's command and output.
    build(tree, env, "--no-cache")
    assert hits_and_misses(env, tree) == (0, 1)
