"""Which trees are locked, and what ``[tool.lockbuild]`` may say."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from build import BuildException, ProjectBuilder

from lockbuild.errors import SettingsError
from lockbuild.project import BRINGS_SETUPTOOLS, LEGACY_REQUIRES, Project, decide_lock, read_project
from lockbuild.request import LockPolicy
from witness import WitnessTree


def a_project(
    backend: str = "flit_core.buildapi", requires: Iterable[str] = ("flit_core",), lock: LockPolicy = "auto"
) -> Project:
    return Project(tree="tree", backend=backend, backend_path=(), requires=tuple(requires), lock=lock)


def has(*names: str) -> frozenset[str]:
    """Return what stands for a build environment: its `__contains__` tells what is installed there."""
    return frozenset(names)


SETUPTOOLS_BACKENDS = ["setuptools.build_meta", "setuptools.build_meta:__legacy__"]
OTHER_BACKENDS = [
    "flit_core.buildapi",
    "hatchling.build",
    "poetry.core.masonry.api",
    "maturin",
    "mesonpy",
    "scikit_build_core.build",
    "uv_build",
    "backend",
    "setuptools_of_mine",
    "setuptools.build_metaphor",
]


@pytest.mark.parametrize("backend", SETUPTOOLS_BACKENDS)
@pytest.mark.parametrize("is_installed", [None, has("setuptools"), has()], ids=["here", "installed", "not installed"])
def test_a_tree_whose_backend_is_setuptools_is_locked(backend: str, is_installed: frozenset[str] | None) -> None:
    asked = None if is_installed is None else is_installed.__contains__
    decision = decide_lock(a_project(backend, ()), None, (), asked)
    assert decision.locked
    assert backend in decision.reason


@pytest.mark.parametrize("backend", OTHER_BACKENDS)
def test_any_backend_is_locked_where_setuptools_is_in_its_environment(backend: str) -> None:
    assert decide_lock(a_project(backend), None, (), has("setuptools").__contains__).locked


@pytest.mark.parametrize("backend", OTHER_BACKENDS)
def test_any_other_backend_is_not_locked_where_setuptools_is_not(backend: str) -> None:
    decision = decide_lock(a_project(backend), None, (), has("flit-core", "wheel").__contains__)
    assert not decision.locked
    assert backend in decision.reason


@pytest.mark.parametrize("backend", OTHER_BACKENDS)
def test_without_isolation_another_backend_that_does_not_require_setuptools_is_not_locked(backend: str) -> None:
    assert not decide_lock(a_project(backend), None, (), None).locked


@pytest.mark.parametrize(
    "requirement",
    [
        "setuptools",
        "Setuptools",
        "setuptools>=77",
        "setuptools[core] >= 40 ; python_version > '3'",
        "setuptools @ https://example.invalid/setuptools.whl",
    ],
)
def test_without_isolation_a_requirement_on_setuptools_locks(requirement: str) -> None:
    assert decide_lock(a_project(requires=["flit_core", requirement]), None, (), None).locked
    # So does one that get_requires_for_build_* returns.
    assert decide_lock(a_project(), None, [requirement], None).locked


@pytest.mark.parametrize("requirement", ["setuptools-scm", "setuptools_rust>=1", "wheel", "?", ""])
def test_without_isolation_another_requirement_does_not_lock(requirement: str) -> None:
    assert not decide_lock(a_project(requires=[requirement]), None, [requirement], None).locked


@pytest.mark.parametrize("backend", sorted(BRINGS_SETUPTOOLS))
def test_without_isolation_a_backend_that_brings_setuptools_along_is_locked(backend: str) -> None:
    for spelled in (backend, f"{backend}:object"):
        decision = decide_lock(a_project(spelled, ()), None, (), None)
        assert decision.locked
        assert BRINGS_SETUPTOOLS[backend] in decision.reason


@pytest.mark.parametrize("backend", ["setuptools.build_meta", "flit_core.buildapi"])
@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_policy_decides_whatever_the_backend_is(backend: str, policy: LockPolicy) -> None:
    by_option = decide_lock(a_project(backend), policy, ["setuptools"], has("setuptools").__contains__)
    assert by_option.locked == (policy == "always")
    assert "--lock" in by_option.reason
    by_project = decide_lock(a_project(backend, lock=policy), None, ["setuptools"], has("setuptools").__contains__)
    assert by_project.locked == (policy == "always")
    assert "pyproject.toml" in by_project.reason


def test_the_option_wins_over_the_project() -> None:
    assert decide_lock(a_project(lock="never"), "always", (), None).locked
    assert not decide_lock(a_project(lock="always"), "never", (), None).locked
    # Also with "auto", which then means what the rule says and not what the project says.
    assert not decide_lock(a_project(lock="always"), "auto", (), None).locked
    assert decide_lock(a_project("setuptools.build_meta", lock="never"), "auto", (), None).locked


def test_a_tree_with_a_setup_py_alone_is_of_setuptools(tmp_path: Path) -> None:
    (tmp_path / "setup.py").touch()
    project = read_project(str(tmp_path))
    assert project == Project(str(tmp_path), "setuptools.build_meta:__legacy__", (), LEGACY_REQUIRES, "auto")


def test_a_tree_that_is_no_project_is_refused_in_the_words_of_build(tmp_path: Path) -> None:
    with pytest.raises(BuildException, match="does not appear to be a Python project"):
        read_project(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "backend", "requires"),
    [
        ("", "setuptools.build_meta:__legacy__", LEGACY_REQUIRES),
        ("[project]\nname = 'x'\n", "setuptools.build_meta:__legacy__", LEGACY_REQUIRES),
        ("[build-system]\nrequires = []\n", "setuptools.build_meta:__legacy__", ()),
        ("[build-system]\nrequires = ['a', 'b']\nbuild-backend = 'c:d'\n", "c:d", ("a", "b")),
    ],
)
@pytest.mark.parametrize("has_setup_py", [False, True])
def test_the_backend_and_the_requirements_are_those_of_build(
    tmp_path: Path, text: str, backend: str, requires: tuple[str, ...], has_setup_py: bool
) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    if has_setup_py:
        (tmp_path / "setup.py").touch()
    project = read_project(str(tmp_path))
    assert project == Project(str(tmp_path), backend, (), requires, "auto", has_project_table="project" in text)
    builder = ProjectBuilder(tmp_path)
    assert (builder._backend, builder.build_system_requires) == (backend, set(requires))


@pytest.mark.parametrize("policy", ["auto", "always", "never"])
def test_the_project_may_choose_the_policy(tmp_path: Path, policy: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.lockbuild]\nlock = '{policy}'\n")
    assert read_project(str(tmp_path)).lock == policy


def test_tables_of_other_tools_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.lockbuilder]\nlock = 1\n[tool.other]\nlock = 'x'\n")
    assert read_project(str(tmp_path)).lock == "auto"


WRONG_SETTINGS = [
    ("[tool.lockbuild]\nlok = 'auto'\n", "Unknown key tool.lockbuild.lok in"),
    ("[tool.lockbuild]\nlock = 'auto'\n[tool.lockbuild.env]\n", "Unknown key tool.lockbuild.env in"),
    ("[tool.lockbuild]\nlock = 'sometimes'\n", 'must be one of "auto", "always", "never", not \'sometimes\''),
    ("[tool.lockbuild]\nlock = 'Always'\n", "not 'Always'"),
    ("[tool.lockbuild]\nlock = ''\n", "not ''"),
    ("[tool.lockbuild]\nlock = true\n", "not True"),
    ("[tool.lockbuild]\nlock = ['always']\n", "not ['always']"),
    ("[tool]\nlockbuild = 'always'\n", "tool.lockbuild in"),
    ("[[tool.lockbuild]]\nlock = 'always'\n", "must be a table"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_SETTINGS)
def test_a_wrong_setting_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_project(str(tmp_path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [WRONG_SETTINGS[0], WRONG_SETTINGS[2], WRONG_SETTINGS[7]])
def test_a_wrong_setting_stops_a_build_before_any_hook(witness_tree: WitnessTree, text: str, message: str) -> None:
    pyproject = witness_tree.path / "pyproject.toml"
    pyproject.write_text(f"{text}\n{pyproject.read_text()}")
    [(status, out, error)] = witness_tree.finish(witness_tree.start())
    assert (status, out) == (1, "")
    [line] = error.splitlines()
    assert line.startswith("ERROR ")
    assert message in line
    assert witness_tree.log() == []


@pytest.mark.parametrize(
    ("setting", "options", "locks"),
    [
        ("", [], True),
        ("lock = 'never'", [], False),
        ("lock = 'never'", ["--lock", "auto"], True),
        ("lock = 'never'", ["--lock", "always"], True),
        ("lock = 'always'", ["--lock", "never"], False),
        ("", ["--lock", "never"], False),
    ],
)
def test_the_policy_decides_what_a_real_build_does(
    witness_tree: WitnessTree, setting: str, options: list[str], locks: bool
) -> None:
    pyproject = witness_tree.path / "pyproject.toml"
    pyproject.write_text(f"{pyproject.read_text()}[tool.lockbuild]\n{setting}\n")
    gate = witness_tree.make_gate()
    holder = witness_tree.start("--wheel", "--lock", "always", gate=gate.path)
    witness_tree.wait_for_entry()
    # Who locks gives up now, and who does not builds.
    other = witness_tree.start("--wheel", "--lock-timeout", "0", "-v", *options, out_dir=witness_tree.control / "other")
    [(status, _, error)] = witness_tree.finish(other)
    assert status == (75 if locks else 0), error
    assert ("Locking " in error, "Not locking " in error) == (locks, not locks)
    gate.open()
    assert witness_tree.finish(holder)[0][0] == 0


@pytest.mark.parametrize("requires", ["[]", "['setuptools']"])
def test_a_build_says_which_and_why_when_asked(witness_tree: WitnessTree, requires: str) -> None:
    pyproject = witness_tree.path / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('["setuptools"]', requires))
    environ = {"COLUMNS": "1000"}
    [(_, _, said), (_, _, silent)] = witness_tree.finish(
        witness_tree.start("--wheel", "-v", env=environ), witness_tree.start("--wheel", env=environ)
    )
    verb, reason = ("Not locking", "it does not require") if requires == "[]" else ("Locking", "it requires setuptools")
    assert any(
        line.strip().startswith(f"{verb} {witness_tree.path}: ") and reason in line for line in said.splitlines()
    )
    assert "ocking " not in silent.replace("Waiting for the lock", "")


def test_a_pyproject_that_is_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(f"x = {'[' * 100_000}")
    with pytest.raises(SettingsError, match=r"nested too deeply"):
        read_project(str(tmp_path))
