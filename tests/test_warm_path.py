"""
What a build with a kept environment imports and starts: every build of every user pays for it.

``warm_modules/packages.txt`` lists lockbuild's modules and the other packages that such a build imports.
``warm_modules/3.11.txt`` and its siblings list all further modules, each for one version of Python. A change that makes
a build import more or less records the lists anew:

    RECORD_WARM_MODULES=1 python -m pytest tests/test_warm_path.py

Run it once with each Python for which there is a list.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import platformdirs
import pytest

import lockbuild
from lockbuild.paths import cache_folder, configuration_folders
from machine import linux_only
from wheelhouse import ProbeTree

LISTS = Path(__file__).with_name("warm_modules")
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
HOW_TO_RECORD = "to record the list anew: RECORD_WARM_MODULES=1 python -m pytest tests/test_warm_path.py"

# Neither the `site` module nor PYTHON* variables: no editable install, .pth file or coverage adds a module.
BARE_PYTHON = (sys.executable, "-I", "-S", "-c")

# The folders that lockbuild and the packages that it needs are imported from.
FOLDERS = sorted({str(Path(file).parents[1]) for file in (lockbuild.__file__, platformdirs.__file__)})

# Runs lockbuild from the folders that its second argument names. Writes into the file that its first argument names:
# the processes that were started, the modules when the first one was, and the modules at the end; a line for each.
_RUNNER = """
import atexit, sys
report, folders, *sys.argv[1:] = sys.argv[1:]
sys.path += folders.split(":")
started, before = [], []
def listen(event, arguments):
    if event in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system", "os.spawn"):
        before.extend(sys.modules if not started else ())
        started.append(event)
def write():
    with open(report, "w") as file:
        print(" ".join(started), " ".join(before), " ".join(sys.modules), sep="\\n", file=file)
sys.addaudithook(listen)
atexit.register(write)
from lockbuild.commands.program import entrypoint
entrypoint()
"""


class Report(NamedTuple):
    """What a build has started and imported. Modules that Python itself starts with do not count."""

    started: list[str]
    before: set[str]
    """The modules before the first process was started, which is the hook host."""
    after: set[str]
    """The modules at the end."""


@pytest.fixture
def tree(tree: ProbeTree, monkeypatch: pytest.MonkeyPatch) -> ProbeTree:
    """A tree whose builds start the hook host as early as they do by default."""
    monkeypatch.delenv("LOCKBUILD_PREIMPORT", raising=False)
    return tree


def run(tree: ProbeTree, *options: str) -> Report:
    report = tree.path.parent / "report"
    tree.build(*options, command=(*BARE_PYTHON, _RUNNER, str(report), ":".join(FOLDERS)))
    started, before, after = (line.split() for line in report.read_text().splitlines())
    idle = {*subprocess.check_output([*BARE_PYTHON, "import sys; print(*sys.modules)"], text=True).split()}
    return Report(started, {*before} - idle, {*after} - idle)


def test_a_warm_build_starts_the_hook_host_and_nothing_else(tree: ProbeTree) -> None:
    tree.build()
    assert run(tree).started == ["subprocess.Popen"]
    # The same is seen where it starts more.
    assert len(run(tree, "--no-cache").started) > 1


def is_of_python(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names or module.startswith("_sysconfigdata_")


def packages(modules: set[str]) -> set[str]:
    """Return lockbuild's modules, and of others the packages."""
    others = {name for name in modules if not is_of_python(name)}
    return {name if name.startswith("lockbuild") else name.partition(".")[0] for name in others}


def further_modules(modules: set[str]) -> set[str]:
    """Return all modules that `packages` leaves out."""
    # The module of the build configuration has the platform in its name.
    return {name.partition("__")[0] if "_sysconfigdata_" in name else name for name in modules} - packages(modules)


def as_list(before: set[str], after: set[str]) -> str:
    """Return the text of a list, in two parts."""
    assert before <= after
    parts = {"before the hook host is started": before, "later": after - before}
    return "".join(f"# {title}:\n" + "".join(f"{each}\n" for each in sorted(part)) for title, part in parts.items())


def compare(path: Path, found: str) -> None:
    """Compare a list with the recorded one, or record it."""
    if os.environ.get("RECORD_WARM_MODULES"):
        path.write_text(found)
    recorded = path.read_text()
    if found != recorded:
        difference = difflib.unified_diff(
            recorded.splitlines(), found.splitlines(), str(path), "this build", lineterm=""
        )
        pytest.fail("\n".join([*difference, HOW_TO_RECORD]), pytrace=False)


@linux_only
def test_a_warm_build_imports_only_the_packages_that_it_uses(tree: ProbeTree) -> None:
    tree.build()
    found = run(tree)
    compare(LISTS / "packages.txt", as_list(packages(found.before), packages(found.after)))


@linux_only
def test_a_warm_build_imports_only_the_modules_that_it_uses(tree: ProbeTree) -> None:
    used = " ".join(f"{name} {version(name)}" for name in ("filelock", "platformdirs", "pyproject-hooks"))
    heading = f"# Python {RUNNING}, {used}\n"
    path = LISTS / f"{RUNNING}.txt"
    if not os.environ.get("RECORD_WARM_MODULES"):
        if not path.exists():
            pytest.skip(f"there is no list for Python {RUNNING}; {HOW_TO_RECORD}")
        recorded = path.read_text().splitlines()[0]
        if recorded != heading.strip():
            pytest.skip(f"the list is for {recorded[2:]}, and {used} are installed; {HOW_TO_RECORD}")
    tree.build()
    found = run(tree)
    compare(path, heading + as_list(further_modules(found.before), further_modules(found.after)))


def test_the_hook_host_starts_before_the_rest_is_imported(tree: ProbeTree) -> None:
    tree.build()
    late = {"dataclasses", "filelock", "inspect", "pathlib", "platformdirs", "pyproject_hooks", "tempfile"}
    modules = run(tree).before
    assert "lockbuild.frontend" in modules
    assert not late & modules


def test_a_warm_build_never_imports_what_is_large(tree: ProbeTree) -> None:
    tree.build()
    large = {"asyncio", "email", "http", "importlib.metadata", "ssl", "tarfile"}
    assert not large & run(tree).after


def test_uv_is_started_without_importing_the_installer_of_wheels(tree: ProbeTree) -> None:
    """The first process of a build without a kept environment is the installer."""
    assert "lockbuild.wheels.install" not in run(tree, "--installer", "uv").before
    assert "lockbuild.wheels.install" in run(tree).before


def test_the_version_is_told_without_importing_the_frontend() -> None:
    imports = "import lockbuild.commands.program, lockbuild.commands.build"
    code = f"import sys; sys.path += sys.argv[1:]; {imports}; print(*sys.modules)"
    modules = subprocess.check_output([*BARE_PYTHON, code, *FOLDERS], text=True).split()
    assert "lockbuild.commands.build" in modules
    assert not {"lockbuild.frontend", "lockbuild.locks", "lockbuild.console", "hashlib", "json", "subprocess"} & {
        *modules
    }


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HOME": "/home/somebody"},
        {"HOME": "/home/somebody/"},
        {"HOME": "/home/some body/../other"},
        {"HOME": "relative"},
        {"HOME": ""},
        {"XDG_CACHE_HOME": "/var/cache/x", "XDG_CONFIG_HOME": "/var/config/x"},
        {"XDG_CACHE_HOME": "/var//cache", "XDG_CONFIG_HOME": " /var/config"},
        {"XDG_CACHE_HOME": "~/cache", "XDG_CONFIG_HOME": "~/config"},
        {"XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": ""},
        {"XDG_CACHE_HOME": "relative", "XDG_CONFIG_HOME": "relative"},
        {"XDG_CONFIG_DIRS": "/etc/one:/etc/two"},
    ],
    ids=str,
)
def test_folders_are_where_platformdirs_says(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCKBUILD_CACHE_DIR")
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cache = users = None
    # It says so where the user is not in the user database either.
    with contextlib.suppress(RuntimeError):
        cache = platformdirs.user_cache_dir("lockbuild", appauthor=False)
    assert cache_folder() == (cache if cache and Path(cache).is_absolute() else None)
    common = platformdirs.site_config_dir("pip", appauthor=False, multipath=True)
    with contextlib.suppress(RuntimeError):
        users = platformdirs.user_config_dir("pip", appauthor=False, roaming=True)
    assert configuration_folders("pip") == (common.split(":"), users)
