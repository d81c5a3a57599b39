"""What a failed build says: the reason in the last line, what leads to it before that, and never a bug of lockbuild."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wheelhouse import make_probe_tree
from witness import WitnessTree

# Each of them takes a second or more, and there are many.
pytestmark = pytest.mark.slow


def fail(tree: WitnessTree, *options: str, env: dict[str, str] | None = None) -> list[str]:
    """Build, which has to fail with one error in the last line; return all lines on standard error."""
    [(status, _, error)] = tree.finish(tree.start(*options, env=env))
    assert status == 1
    assert "bug in lockbuild" not in error
    lines = error.splitlines()
    assert [line for line in lines if line.startswith("ERROR ")] == lines[-1:]
    return lines


def replace(tree: WitnessTree, text: str | bytes) -> None:
    (tree.path / "pyproject.toml").write_bytes(text.encode() if isinstance(text, str) else text)


def test_a_syntax_error_in_pyproject_is_shown_with_a_caret(witness_tree: WitnessTree) -> None:
    replace(witness_tree, "[build-system]\nrequires = = []\n")
    assert fail(witness_tree) == [
        "  2 | requires = = []",
        "                 ^",
        f"ERROR Failed to parse {witness_tree.path}/pyproject.toml: Invalid value (at line 2, column 12)",
    ]


def test_of_a_long_line_the_part_at_the_caret_is_shown(witness_tree: WitnessTree) -> None:
    replace(witness_tree, f"\ta = '{'x' * 5000}' = '{'y' * 5000}'\n")
    line, caret, _ = fail(witness_tree)
    assert len(line) < 80
    assert line[len(caret) - 1] == "="


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        (b"\xff\xfe", "invalid start byte"),
        (f"x = {'9' * 5000}", "to increase the limit"),
        ("[build-system]\nrequires = []\nbuild-backend = 'x'\nbackend-path = ['..']", "must be inside source tree"),
        ('[build-system]\nrequires = []\n"a\\nb" = 1', "Unknown properties: a\\nb"),
    ],
    ids=["no text", "huge number", "backend-path", "line break"],
)
def test_a_mistake_in_pyproject_is_one_line(witness_tree: WitnessTree, text: str | bytes, ending: str) -> None:
    replace(witness_tree, text)
    [line] = fail(witness_tree)
    assert line.endswith(ending)


@pytest.mark.parametrize(
    ("options", "env", "pattern"),
    [
        (["--config-json", '{"a":' * 20_000], {}, "Invalid JSON in --config-json: it is nested too deeply"),
        (["--config-json", '{"a": ' + "9" * 5000 + "}"], {}, "Invalid JSON in --config-json: Exceeds the limit .*"),
        (["-C", "a"], {"PYTHONWARNINGS": "error"}, "Config setting 'a' was passed without a value; .*"),
        (["--report", "/dev/null/x"], {}, "Cannot write the report /dev/null/x: Not a directory"),
    ],
    ids=["deep", "huge number", "warnings are errors", "report"],
)
def test_a_mistake_of_the_user_is_one_line(
    witness_tree: WitnessTree, options: list[str], env: dict[str, str], pattern: str
) -> None:
    assert re.fullmatch(f"ERROR {pattern}", fail(witness_tree, "--wheel", *options, env=env)[-1])


def test_constraints_that_are_no_text_are_named(tmp_path: Path) -> None:
    tree = make_probe_tree(tmp_path / "probe")
    constraints = tmp_path / "constraints"
    constraints.write_bytes(b"\xff")
    error = tree.build("--dependency-constraints-txt", str(constraints), status=1)
    assert error.startswith(f"ERROR The constraints file {constraints} is not text in UTF-8: ")
    assert error.count("\n") == 1


def test_without_uv_the_error_says_where_to_get_it(tmp_path: Path) -> None:
    tree = make_probe_tree(tmp_path / "probe")
    # Hides the package.
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "uv.py").write_text("raise ModuleNotFoundError\n")
    env = {"PYTHONPATH": str(tmp_path / "hidden"), "UV": "no-such-program"}
    for options in ([], ["--no-cache"]):
        error = tree.build("--installer", "uv", *options, status=1, env=env)
        assert error.splitlines()[-1] == "ERROR There is no uv: install lockbuild[uv], or put uv on PATH"


@pytest.mark.parametrize("is_isolated", [True, False])
def test_a_module_that_a_hook_misses_has_a_hint(witness_tree: WitnessTree, tmp_path: Path, is_isolated: bool) -> None:
    if is_isolated:
        tree = make_probe_tree(tmp_path / "probe")
        tree.wheelhouse.add_wheel("failing", files={"failing.py": "import nowhere.at_all\n"})
        (tree.path / "pyproject.toml").write_text('[build-system]\nrequires = ["failing"]\nbuild-backend = "failing"\n')
        lines = tree.build(status=1).splitlines()
        hint = "add what has it to build-system.requires in pyproject.toml"
    else:
        witness_tree.use_hook("import nowhere.at_all")
        lines = fail(witness_tree)
        hint = "install what has it, because --no-isolation uses the environment of lockbuild"
    assert f"TIP the build environment has no module nowhere: {hint}" in lines
    assert lines[-1].endswith(": ModuleNotFoundError: No module named 'nowhere'")


@pytest.mark.parametrize(
    ("wanted", "is_warned"), [(">=3.99", True), ("<3.2,>=3.1", True), (">=3.8", False), ("?", False)]
)
def test_a_project_for_another_python_is_built_with_one_warning_before(
    witness_tree: WitnessTree, wanted: str, is_warned: bool
) -> None:
    with (witness_tree.path / "pyproject.toml").open("a") as file:
        file.write(f'\n[project]\nname = "witness"\nversion = "1.0"\nrequires-python = "{wanted}"\n')
    [(status, _, error)] = witness_tree.finish(witness_tree.start("--sdist", "--wheel"))
    assert status == 0
    warning = f"WARNING The project requires Python {wanted}, and is built with Python "
    assert error.count(warning) == is_warned
    assert error.startswith("WARNING" if is_warned else "* ")


def test_on_github_an_error_is_shown_at_the_line_of_the_file(witness_tree: WitnessTree) -> None:
    env = {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(witness_tree.path.parent)}
    path = "tree/pyproject.toml"
    # A setting of ours, an error of build, and one of a backend.
    valid = (witness_tree.path / "pyproject.toml").read_text()
    replace(witness_tree, valid + "\n[tool.lockbuild]\nlock = '100%'\n")
    *_, annotation, last = fail(witness_tree, env=env)
    assert annotation == f"::error file={path},line=1::{last.removeprefix('ERROR ').replace('%', '%25')}"
    replace(witness_tree, "\n\n= 1\n")
    *_, annotation, last = fail(witness_tree, env=env)
    assert annotation == f"::error file={path},line=3::{last.removeprefix('ERROR ')}"
    replace(witness_tree, valid)
    witness_tree.use_hook("raise ValueError('no')")
    *_, annotation, last = fail(witness_tree, env=env)
    assert annotation == f"::error file={path},line=1::{last.removeprefix('ERROR ')}"
    assert last.endswith("ValueError: no")
    assert not any(line.startswith("::") for line in fail(witness_tree))


def test_long_lines_are_wrapped_only_where_there_is_a_width(tmp_path: Path) -> None:
    tree = make_probe_tree(tmp_path / "probe")
    name = "nowhere-" * 30 + "at-all"
    tree.require(name)
    assert f"  - {name}\n" in tree.build(status=1, env={"COLUMNS": None})
    assert f"  - {name}\n" not in tree.build(status=1, env={"COLUMNS": "80"})
