"""docs/architecture.md: what it names exists, and the modules import only from their own layer and from those below."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "lockbuild"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

# From top to bottom. A module that no line names is base.
LAYERS = [
    {"__main__", "commands"},
    {"__init__", "api", "build_process", "tox", "backend"},
    {"frontend", "session"},
    {"garbage_collection"},
    {"sharing"},
    {"environments"},
    {"hooks", "wheels"},
    {"locks"},
]
BASE = len(LAYERS)

MODULES = sorted(SOURCE.rglob("*.py"))


def layer_of(name: str) -> int:
    return next((number for number, names in enumerate(LAYERS) if name in names), BASE)


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports of lockbuild: the first name below it. Imports in functions and for types count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "lockbuild":
            names = [f"lockbuild.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("lockbuild."))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(module: Path) -> None:
    own = layer_of(module.relative_to(SOURCE).parts[0].removesuffix(".py"))
    # The version is in the package itself, which imports nothing before it is asked for a name.
    wanted = set(imported(ast.parse(module.read_text(encoding="utf-8")))) - {"__version__"}
    assert {name for name in wanted if layer_of(name) < own} == set()


def test_nothing_below_the_commands_parses_a_command_line() -> None:
    below = [path for path in MODULES if "commands" not in path.parts]
    assert len(below) > 40
    assert [path for path in below if "import argparse" in path.read_text(encoding="utf-8")] == []


def test_every_layer_has_its_place_in_the_code_map() -> None:
    code_map = PAGE.partition("\n## Code map\n")[2].partition("\n## ")[0]
    headings = re.findall(r"^### (.+)$", code_map, re.MULTILINE)
    named = [{name.rstrip("/") for name in re.findall(r"`([a-z_/]+)`", heading)} for heading in headings]
    places = [layer_of(name) for names in named for name in sorted(names)]
    assert places == sorted(places)
    assert set(places) == set(range(BASE))
    assert headings[-1] == "Base"


def test_every_module_test_file_and_class_that_is_named_exists() -> None:
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    files = set(re.findall(r"`((?:\w+/)*\w+\.py)`", PAGE))
    assert len(files) > 50
    assert {name for name in files if name not in tests and not (SOURCE / name).is_file()} == set()
    sources = "".join(path.read_text(encoding="utf-8") for path in MODULES)
    classes = set(re.findall(r"`((?:[A-Z][a-z]+)+)`", PAGE))
    assert len(classes) > 20
    assert {name for name in classes if f"class {name}" not in sources} == set()
