"""The source trees that contestants build. The same arguments give the same files."""

from __future__ import annotations

from pathlib import Path

SETUP_PY = 'from setuptools import setup\nsetup(name="three-lines", version="1.0", py_modules=["three_lines"])\n'

# Compiles in about 12 ms with -O2 on the machine of docs/speed.md.
_FUNCTION = """
double f{number}(double *a, double *b, int size) {{
    double sum = {number};
    for (int i = 0; i < size; i++)
        for (int j = 0; j < size; j++)
            sum += a[i] * b[j] / (a[j] + {number}.5) + (sum > b[i] ? a[i] - sum : b[j] * sum);
    return sum;
}}
"""

_MODULE = """
#include <Python.h>
static struct PyModuleDef module = {{PyModuleDef_HEAD_INIT, "{name}", NULL, -1, NULL}};
PyMODINIT_FUNC PyInit_{name}(void) {{ return PyModule_Create(&module); }}
"""

# What the least backend does: its wheel has metadata alone.
_LEAST_BACKEND = """
import os, tomllib, zipfile

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    with open("pyproject.toml", "rb") as file:
        name = tomllib.load(file)["project"]["name"]
    info = f"{name}-1.0.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        f"{info}/RECORD": f"{info}/METADATA,,\\n{info}/WHEEL,,\\n{info}/RECORD,,\\n",
    }
    wheel = f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, wheel), "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel
"""


def make_tree(path: Path, files: int = 1) -> Path:
    """Make a project with setuptools: a module, or a package of many."""
    path.mkdir()
    if files == 1:
        (path / "setup.py").write_text(SETUP_PY)
        (path / "three_lines.py").write_text("value = 1\n")
    else:
        (path / "setup.py").write_text(SETUP_PY.replace("py_modules", "packages").replace("three_lines", "many"))
        (path / "many").mkdir()
        for number in range(files):
            (path / "many" / f"module{number}.py").write_text("")
    return path


def make_workspace(path: Path, packages: int, levels: int = 1) -> None:
    """Make a workspace of projects with setuptools. Each needs one of the level below for its build."""
    for number in range(packages):
        below = number - packages // levels
        requires = ["setuptools", *([_package(below)] if below >= 0 else [])]
        tree = _make_member(path, number, requires, 'build-backend = "setuptools.build_meta"')
        with (tree / "pyproject.toml").open("a") as file:
            file.write(f'[tool.setuptools]\npy-modules = ["{tree.name}"]\n')
        (tree / f"{tree.name}.py").write_text("value = 1\n")


def make_least_workspace(path: Path, packages: int) -> None:
    """Make a workspace of projects whose builds take next to no time by themselves."""
    for number in range(packages):
        tree = _make_member(path, number, [], 'build-backend = "least"\nbackend-path = ["."]')
        (tree / "least.py").write_text(_LEAST_BACKEND)


def make_meson_workspace(path: Path, packages: int, files: int, functions: int) -> None:
    """Make a workspace of projects with C code that ninja compiles."""
    for number in range(packages):
        tree = _make_member(path, number, ["meson-python", "ninja >=1.13"], 'build-backend = "mesonpy"')
        _write_c(tree, files, functions)
        sources = [path.name for path in sorted(tree.glob("*.c"))]
        (tree / "meson.build").write_text(
            f"project('{tree.name}', 'c', version: '1.0')\n"
            f"import('python').find_installation(pure: false).extension_module('compiled', {sources}, install: true)\n"
        )


def make_extension(path: Path, functions: int) -> None:
    """Make a project with setuptools whose C extension takes a while to compile."""
    path.mkdir()
    _write_c(path, 1, functions)
    (path / "setup.py").write_text(
        "from glob import glob\nfrom setuptools import Extension, setup\n"
        'setup(name="compiled", version="1.0", ext_modules=[Extension("compiled", sorted(glob("*.c")))])\n'
    )


def _make_member(path: Path, number: int, requires: list[str], backend: str) -> Path:
    if not path.exists():
        path.mkdir()
        (path / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["packages/*"]\n')
    tree = path / "packages" / _package(number)
    tree.mkdir(parents=True)
    (tree / "pyproject.toml").write_text(
        f'[build-system]\nrequires = {requires}\n{backend}\n[project]\nname = "{tree.name}"\nversion = "1.0"\n'
    )
    return tree


def _package(number: int) -> str:
    return f"package{number:03}"


def _write_c(tree: Path, files: int, functions: int) -> None:
    (tree / "compiled.c").write_text(_MODULE.format(name="compiled"))
    for file in range(files):
        numbers = range(file * functions, (file + 1) * functions)
        (tree / f"part{file}.c").write_text("".join(_FUNCTION.format(number=number) for number in numbers))
