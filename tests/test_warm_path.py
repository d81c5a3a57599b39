"""What a build with a kept environment imports and starts: every build of every user pays for it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from lockbuild.paths import cache_folder, configuration_folders
from wheelhouse import ProbeTree, make_probe_tree

# Runs lockbuild and writes into the file that its first argument names what was imported when the first process was
# started, what at the end, and what was started.
_RUNNER = """
import atexit, json, sys
report, *sys.argv[1:] = sys.argv[1:]
started, before = [], set()
def listen(event, arguments):
    if event in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system", "os.spawn"):
        before.update(sys.modules if not started else ())
        started.append(event)
def write():
    with open(report, "w") as file:
        json.dump({"before": sorted(before), "after": sorted(sys.modules), "started": started}, file)
sys.addaudithook(listen)
atexit.register(write)
from lockbuild.commands.program import entrypoint
entrypoint()
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProbeTree:
    monkeypatch.delenv("LOCKBUILD_PREIMPORT", raising=False)
    return make_probe_tree(tmp_path / "probe")


def run(tree: ProbeTree, *options: str) -> dict[str, Any]:
    report = tree.path.parent / "report.json"
    tree.build(*options, command=(sys.executable, "-c", _RUNNER, str(report)))
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def packages(modules: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules} - sys.stdlib_module_names


def test_a_warm_build_starts_the_hook_host_and_nothing_else(tree: ProbeTree) -> None:
    tree.build()
    assert run(tree)["started"] == ["subprocess.Popen"]
    # The same is seen where it starts more.
    assert len(run(tree, "--no-cache")["started"]) > 1


def test_a_warm_build_imports_only_what_it_uses(tree: ProbeTree) -> None:
    tree.build()
    modules = run(tree)["after"]
    found = packages(modules) - packages(run_nothing())
    assert found == {"filelock", "lockbuild", "pyproject_hooks"}
    assert not {"asyncio", "email", "http", "importlib.metadata", "socket", "ssl", "tarfile"} & {*modules}
    ours = {name for name in modules if name.startswith("lockbuild")}
    assert (
        not {"lockbuild.build_library", "lockbuild.commands.cache", "lockbuild.sdist", "lockbuild.environments.fresh"}
        & ours
    )
    assert len(ours) <= 44
    # 168 with Python 3.11, of which 36 are filelock's and what it imports.
    assert len(modules) - len(run_nothing()) <= (175 if sys.version_info < (3, 12) else 190)


def test_the_hook_host_starts_before_the_rest_is_imported(tree: ProbeTree) -> None:
    tree.build()
    modules = {*run(tree)["before"]}
    late = {"dataclasses", "filelock", "inspect", "pathlib", "platformdirs", "pyproject_hooks", "tempfile"}
    assert "lockbuild.frontend" in modules
    assert not late & (modules - {*run_nothing()})
    assert len(modules) - len(run_nothing()) <= 115


def test_the_version_is_told_without_importing_the_frontend() -> None:
    code = "import lockbuild.commands.build, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "lockbuild.commands.build" in modules
    assert not {"lockbuild.frontend", "lockbuild.locks", "lockbuild.console", "json", "subprocess"} & {*modules}


def run_nothing() -> list[str]:
    """Return what an interpreter has imported that was not asked for anything; editable installs add to that."""
    code = "import sys; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


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
