"""docs/architecture.md: the modules, tests, classes and layers that it names exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "lockbuild"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_module_test_file_and_class_that_the_page_names_exists() -> None:
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    files = set(re.findall(r"`((?:\w+/)*\w+\.py)`", PAGE))
    assert len(files) > 50
    assert {name for name in files if name not in tests and not (SOURCE / name).is_file()} == set()
    sources = "".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    classes = set(re.findall(r"`((?:[A-Z][a-z]+)+)`", PAGE))
    assert len(classes) > 20
    assert {name for name in classes if f"class {name}" not in sources} == set()


def test_every_folder_has_a_place_in_the_code_map() -> None:
    headings = set(re.findall(r"`([a-z_]+)/`", "".join(re.findall(r"^### .+$", PAGE, re.MULTILINE))))
    assert headings == {path.parent.name for path in SOURCE.glob("*/__init__.py")}


def test_the_code_map_has_the_order_of_the_layers() -> None:
    code_map = PAGE.partition("\n## Code map\n")[2].partition("\n## ")[0]
    headings = re.findall(r"^### (.+)$", code_map, re.MULTILINE)
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = pyproject["tool"]["importlinter"]["contracts"][0]["layers"]
    place = {name: number for number, layer in enumerate(layers) for name in layer.split(" : ")}
    # Base is what no heading names.
    places = [min(place[name] for name in re.findall(r"`([a-z_]+)/?`", heading)) for heading in headings[:-1]]
    assert headings[-1] == "Base"
    assert places == sorted(places)


def test_nothing_below_the_commands_parses_a_command_line() -> None:
    below = [path for path in SOURCE.rglob("*.py") if "commands" not in path.parts]
    assert len(below) > 40
    assert [path for path in below if "import argparse" in path.read_text(encoding="utf-8")] == []
