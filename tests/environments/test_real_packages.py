"""Build requirements from the package index: a kept environment is the one that pip makes, file by file.

By default a few; ``REAL_PACKAGES=all`` takes all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import gettempdir

import pytest

from installed import assert_equal
from lockbuild.environments.fresh import FreshEnvironment
from lockbuild.environments.request import EnvironmentRequest
from lockbuild.events import Reporter
from lockbuild.request import BuildRequest
from wheelhouse import ProbeTree
from witness import PATIENCE

pytestmark = pytest.mark.slow

FEW = ("cffi", "hatchling", "pybind11", "setuptools")
ALL = (
    *FEW,
    "babel",
    "cmake",
    "cython",
    "flit-core",
    "hatch-vcs",
    "jinja2",
    "maturin",
    "meson-python",
    "ninja",
    "numpy",
    "pbr",
    "pdm-backend",
    "poetry-core",
    "scikit-build-core",
    "setuptools-rust",
    "setuptools-scm",
    "versioneer",
    "wheel",
)


def test_an_environment_of_real_packages_equals_that_of_pip(tree: ProbeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = ALL if os.environ.get("REAL_PACKAGES") == "all" else FEW
    tree.require(*packages)
    found = f"{tree.wheelhouse.folder} {os.environ.get('PIP_FIND_LINKS', '')}"
    theirs = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    env: dict[str, str | None] = {"PIP_NO_INDEX": None, "PIP_CONFIG_FILE": None, **theirs, "PIP_FIND_LINKS": found}
    for name, value in tree.environ(env).items():
        monkeypatch.setenv(name, value)
    build = tree.start(env=env)
    _, error = build.communicate(timeout=10 * PATIENCE)
    assert build.returncode == 0, error
    [kept] = tree.environments()
    with FreshEnvironment(
        EnvironmentRequest(["probe-backend", *packages], "", BuildRequest("."), 0.0, (), Reporter(), gettempdir)
    ) as fresh:
        assert_equal(kept, Path(fresh.python_executable).parents[1])
        versions = [
            subprocess.run([python, "-c", _LIST], capture_output=True, text=True, check=True).stdout
            for python in (kept / "bin" / "python", fresh.python_executable)
        ]
        assert versions[0] == versions[1]
    check = [sys.executable, "-m", "pip", "--python", str(kept), "check"]
    answer = subprocess.run(check, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


_LIST = """
from importlib.metadata import distributions
for each in sorted(distributions(), key=lambda each: each.name):
    print(each.name, each.version, sorted(map(str, each.files)), sorted(map(str, each.entry_points)))
"""
