"""Environments that are kept: made once, found complete or not at all, replaced when changed, never changed in use.

Everything here runs real frontends, which create real environments from a folder of tiny wheels.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest

from lockbuild.environments import candidate_environments
from lockbuild.environments.contents import look_at
from lockbuild.environments.request import EnvironmentRequest
from lockbuild.events import Reporter
from lockbuild.request import BuildRequest
from machine import after_setup, as_root
from wheelhouse import ProbeTree, copy_tree, created, processes_naming, served, site_packages
from witness import LOCKBUILD, PATIENCE, PYTHON_BUILD, wait_until

NOBODY = 65534


def the_environment(tree: ProbeTree) -> Path:
    [environment] = tree.environments()
    return environment


# Making one


@pytest.mark.slow
def test_eight_builds_that_need_a_new_environment_make_one_and_say_what_they_wait_for(tree: ProbeTree) -> None:
    tree.wheelhouse.add_sdist("slow")
    tree.require("slow")
    gate = tree.make_gate()
    builds = [tree.start(env={"SDIST_GATE_SLOW": str(gate.path)}) for _ in range(8)]
    tree.wait_for_sdist("slow")
    waiting = []
    for build in builds:
        assert build.stderr is not None
        # The first line of the one that creates says so; everyone else's says what is waited for.
        waiting.append(build.stderr.readline())
    gate.open()
    errors = [first + rest for first, rest in zip(waiting, tree.finish(*builds), strict=True)]
    assert created(*errors) == 1
    [creator] = [number for number, first in enumerate(waiting) if "Creating isolated environment" in first]
    for number, error in enumerate(errors):
        if number != creator:
            assert error.startswith("* Waiting for the lock on the build environment for probe-backend, slow, held by ")
            assert f"held by {builds[creator].pid} (" in error
            assert "Using the build environment made " in error
    assert len(set(tree.prefixes())) == 1
    assert len(tree.prefixes()) == 8
    assert tree.debris() == []


@pytest.mark.slow
def test_environments_for_different_requirements_are_made_in_parallel(tree: ProbeTree, tmp_path: Path) -> None:
    gates = []
    builds = []
    for name in ("one", "two"):
        tree.wheelhouse.add_sdist(name)
        project = tree.require(name, path=tmp_path / name)
        gates.append(tree.make_gate(name))
        builds.append(tree.start(source=project, env={f"SDIST_GATE_{name.upper()}": str(gates[-1].path)}))
    # Both are inside at once: neither gate has been opened.
    tree.wait_for_sdist("one", "two")
    for gate in gates:
        gate.open()
    assert created(*tree.finish(*builds)) == 2
    assert len(set(tree.prefixes())) == 2


@pytest.mark.slow
def test_a_maker_that_fails_leaves_nothing_and_the_next_one_tries_again(tree: ProbeTree) -> None:
    tree.require("missing")
    assert "No matching distribution found for missing" in tree.build(status=1)
    assert tree.environments() == tree.debris() == []
    tree.wheelhouse.add_wheel("missing")
    assert created(tree.build()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("option", ["-v", "--no-cache"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_an_interrupted_maker_leaves_nothing(tree: ProbeTree, number: int, status: int, option: str) -> None:
    tree.wheelhouse.add_sdist("slow")
    tree.require("slow")
    gate = tree.make_gate()
    maker = tree.start(option, env={"SDIST_GATE_SLOW": str(gate.path)})
    tree.wait_for_sdist("slow")
    maker.send_signal(number)
    assert maker.wait(timeout=30) == status
    assert tree.environments() == []
    assert tree.debris() == []
    assert os.listdir(os.environ["TMPDIR"]) == []
    assert created(tree.build()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_after_a_maker_was_killed_at_any_moment_a_build_succeeds_and_clears_up(tree: ProbeTree, seed: int) -> None:
    began = time.monotonic()
    assert created(tree.build()) == 1
    usual = time.monotonic() - began
    shutil.rmtree(tree.cache)
    maker = tree.start(start_new_session=True)
    time.sleep(random.Random(seed).uniform(0.1, 0.9) * usual)
    os.killpg(maker.pid, signal.SIGKILL)
    maker.wait()
    assert "Successfully" not in maker.communicate()[0] or tree.environments()
    tree.build()
    # What was killed after it was complete may be used; it is whole like any other.
    environment = the_environment(tree)
    manifest = json.loads(Path(f"{environment}.json").read_text())
    assert look_at(str(environment)).digest == manifest["seen"]
    assert manifest["packages"] == {"probe-backend": "1.0"}
    # Only the file of the killed user is left, until the environment itself is removed.
    assert all(path.parent == Path(f"{environment}.users") for path in tree.debris())
    tree.build("--refresh")
    assert tree.debris() == []
    assert not environment.exists()


@pytest.mark.slow
def test_an_installer_that_outlives_its_frontend_spoils_no_environment_that_others_use(tree: ProbeTree) -> None:
    """The frontend is killed, its pip is not, and goes on to install a requirement with a URL, as pip alone can."""
    wheel = tree.wheelhouse.add_wheel("big", files={f"big/part{n:04}.py": f"VALUE = {n}\n" for n in range(1500)})
    with served(tree.wheelhouse) as index:
        tree.require(f"big @ {index.url.removesuffix('/simple')}/files/{wheel.name}")
        _outlive(tree)


def _outlive(tree: ProbeTree) -> None:
    maker = tree.start()
    wait_until(lambda: list(tree.store.glob("*/*/lib/python*/site-packages/big/part0*.py")), "the installation")
    [key] = tree.keys()
    installers = [pid for pid in processes_naming(key) if pid != maker.pid]
    for pid in installers:
        os.kill(pid, signal.SIGSTOP)
    assert installers
    try:
        maker.kill()
        maker.wait()
        tree.build()
        environment = the_environment(tree)
        before = look_at(str(environment)).digest
    finally:
        for pid in installers:
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not set(installers) & set(processes_naming(key)), "the end of the installer")
    assert look_at(str(environment)).digest == before
    assert "Using the build environment made " in tree.build()
    assert the_environment(tree) == environment


@pytest.mark.slow
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_requirement_whose_own_build_needs_the_environment_is_an_error_and_no_hang(
    tree: ProbeTree, installer: str
) -> None:
    """An sdist in the requirements has a backend that runs lockbuild on a project with the same requirements."""
    lockbuild = [*LOCKBUILD, "--wheel", "--installer", installer, "--lock-timeout", "20"]
    nested = [*lockbuild, "--outdir", str(tree.control / "nested"), str(tree.path)]
    tree.wheelhouse.add_sdist("circular", runs=nested)
    tree.require("circular")
    error = " ".join(tree.build("--installer", installer, status=1).replace("<", "").split())
    assert "Gave up after" not in error
    assert "The build requirements form a circle: the build environment for circular, probe-backend " in error
    assert tree.environments() == tree.debris() == []


@pytest.mark.slow
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_two_threads_that_make_environments_leave_the_variables_of_their_process_alone(
    tree: ProbeTree, installer: str
) -> None:
    tree.wheelhouse.add_sdist("one")
    tree.wheelhouse.add_sdist("two")
    gate = tree.make_gate()
    projects = [str(tree.require(name, path=tree.control / name)) for name in ("one", "two")]
    script = textwrap.dedent("""
        import os, sys, threading
        from lockbuild.events import Reporter
        from lockbuild.frontend import build
        from lockbuild.request import BuildRequest
        installer, gate, *projects = sys.argv[1:]
        before = dict(os.environ)
        begun = threading.Event()
        class Second(Reporter):
            def log(self, message, kind=None):
                if "Installing packages" in message:
                    begun.set()
        def run(project, reporter):
            results.append(build(BuildRequest(project, ("wheel",), installer=installer), reporter))
        results = []
        first, second = (
            threading.Thread(target=run, args=(project, reporter))
            for project, reporter in zip(projects, (Reporter(), Second()))
        )
        first.start()
        with open(gate, "w"):
            # Its sdist is being built, and goes on when this is closed: when the other one is there, too.
            second.start()
            # Where they take turns with the variables, it waits for the first one.
            begun.wait(2)
        first.join()
        second.join()
        assert len(results) == 2
        assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
    """)
    run = [sys.executable, "-c", script, installer, str(gate.path), *projects]
    subprocess.run(run, env=tree.environ({"SDIST_GATE_ONE": str(gate.path)}), check=True, timeout=PATIENCE)


# Finding one


@pytest.mark.slow
def test_a_second_build_says_whose_environment_it_uses_and_makes_none(tree: ProbeTree) -> None:
    first = tree.build()
    second = tree.build()
    assert "Using the build environment" not in first
    assert re.search(r"^\* Using the build environment made \d+ s ago \(probe-backend 1\.0\)$", second, re.MULTILINE)
    assert (created(first), created(second)) == (1, 0)
    prefixes = tree.prefixes()
    assert prefixes[0] == prefixes[1] == str(the_environment(tree))


@pytest.mark.slow
def test_another_project_with_the_same_requirements_uses_the_same_environment(tree: ProbeTree, tmp_path: Path) -> None:
    tree.wheelhouse.add_wheel("other")
    tree.require("Other", "other >= 1")
    tree.build()
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["other>=1", "other", "Probe_Backend"]\nbuild-backend = "probe_backend"\n'
    )
    assert created(tree.build(source=twin, cwd=tmp_path)) == 0
    assert len(set(tree.prefixes())) == 1


@pytest.mark.slow
def test_a_requirement_on_a_local_file_is_installed_again_for_each_build(tree: ProbeTree) -> None:
    wheel = tree.wheelhouse.add_wheel("local")
    tree.require(f"local @ {wheel.as_uri()}")
    assert created(tree.build(), tree.build()) == 2
    assert tree.keys() == []
    assert not any(Path(prefix).exists() for prefix in tree.prefixes())


@pytest.mark.slow
def test_a_constraints_file_makes_another_environment(tree: ProbeTree) -> None:
    tree.wheelhouse.add_wheel("other", "1.0")
    tree.wheelhouse.add_wheel("other", "2.0")
    tree.require("other")
    constraints = tree.control / "constraints.txt"
    constraints.write_text("other==1.0\n")
    tree.build()
    tree.build("--dependency-constraints-txt", str(constraints))
    versions = [next(d for d in told["distributions"] if d.startswith("other ")) for told in tree.hooks()]
    assert versions == ["other 2.0", "other 1.0"]
    assert len(tree.keys()) == 2


@as_root
def test_a_kept_environment_needs_no_network(tree: ProbeTree) -> None:
    with served(tree.wheelhouse) as index:
        env = {"PIP_NO_INDEX": None, "PIP_FIND_LINKS": None, "PIP_INDEX_URL": index.url}
        tree.build(env=env)
        asked = len(index.requests)
        # In a network namespace of its own not even this machine can be reached.
        error = tree.build(env=env, command=("unshare", "-n", *LOCKBUILD))
        assert len(index.requests) == asked
    assert "Using the build environment made " in error


@pytest.mark.slow
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_every_build_of_a_project_gives_the_same_wheel_from_a_kept_environment_as_from_a_fresh_one(
    tree: ProbeTree, installer: str
) -> None:
    for options in (("--no-cache",), (), ()):
        tree.build("--installer", installer, *options)
    wheels = [Path(tree.control / f"out{n}" / "probed-1.0-py3-none-any.whl").read_bytes() for n in range(3)]
    assert wheels[0] == wheels[1] == wheels[2]
    fresh, *kept = tree.prefixes()
    assert not fresh.startswith(str(tree.store))
    assert kept == [str(the_environment(tree))] * 2


# Noticing changes


def _add_package(environment: Path) -> None:
    (site_packages(environment) / "intruder").mkdir()
    (site_packages(environment) / "intruder" / "__init__.py").write_text("")


def _add_empty_folder(environment: Path) -> None:
    # A namespace package that can be imported.
    (site_packages(environment) / "intruder").mkdir()


def _remove_package(environment: Path) -> None:
    shutil.rmtree(site_packages(environment) / "probe_backend-1.0.dist-info")


def _edit_in_place(environment: Path) -> None:
    file = site_packages(environment) / "probe_backend_late.py"
    assert file.read_text() == "VALUE = 1\n"
    file.write_text("VALUE = 2\n")


def _edit_script(environment: Path) -> None:
    with (environment / "bin" / "probe-tool").open("a") as file:
        file.write("print('more')\n")


def _add_pth(environment: Path) -> None:
    (site_packages(environment) / "intruder.pth").write_text("import os\n")


def _remove_interpreter(environment: Path) -> None:
    (environment / "bin" / "python").unlink()


def _redirect_interpreter(environment: Path) -> None:
    (environment / "bin" / "python").unlink()
    (environment / "bin" / "python").symlink_to("/bin/true")


def _edit_configuration(environment: Path) -> None:
    file = environment / "pyvenv.cfg"
    file.write_text(
        file.read_text().replace("include-system-site-packages = false", "include-system-site-packages = true")
    )


def _replace_module_by_link(environment: Path) -> None:
    file = site_packages(environment) / "probe_backend_late.py"
    file.rename(environment / "moved.py")
    file.symlink_to(environment / "moved.py")


def _change_mode(environment: Path) -> None:
    tool = environment / "bin" / "probe-tool"
    tool.chmod(tool.stat().st_mode ^ 0o111)


def _remove_everything(environment: Path) -> None:
    shutil.rmtree(environment)


def _spoil_manifest(environment: Path) -> None:
    Path(f"{environment}.json").write_text("{")


_CHANGES = (
    _add_package,
    _add_empty_folder,
    _remove_package,
    _edit_in_place,
    _edit_script,
    _add_pth,
    _remove_interpreter,
    _redirect_interpreter,
    _edit_configuration,
    _replace_module_by_link,
    _change_mode,
    _remove_everything,
    _spoil_manifest,
)


@pytest.mark.slow
def test_a_changed_environment_is_noticed_and_replaced(tree: ProbeTree) -> None:
    tree.build()
    for change in _CHANGES:
        changed = the_environment(tree)
        change(changed)
        error = tree.build(env={"COLUMNS": None})
        assert created(error) == 1, change.__name__
        if change is not _spoil_manifest:
            # Once, although it is looked at again under the lock of its key.
            assert error.count(f"* Replacing the build environment {changed}: it was changed since it was made") == 1
        replacement = the_environment(tree)
        assert replacement != changed
        assert tree.prefixes()[-1] == str(replacement)
        assert not changed.exists()
        assert tree.debris() == []
    assert created(tree.build()) == 0


@pytest.mark.slow
def test_an_interpreter_that_is_gone_is_noticed(tree: ProbeTree) -> None:
    """The environment's link is as it was; what it points to is not there any more."""
    tree.build()
    environment = the_environment(tree)
    manifest_file = Path(f"{environment}.json")
    manifest = json.loads(manifest_file.read_text())
    (environment / "bin" / "python").unlink()
    (environment / "bin" / "python").symlink_to(environment / "gone")
    manifest["seen"] = look_at(str(environment)).digest
    manifest_file.write_text(json.dumps(manifest))
    assert created(tree.build()) == 1


@pytest.mark.slow
def test_bytecode_that_python_writes_or_a_person_removes_is_no_change(tree: ProbeTree) -> None:
    tree.build()
    environment = the_environment(tree)
    caches = list(site_packages(environment).rglob("__pycache__"))
    assert caches, "Python has written no bytecode; this test would prove nothing"
    assert created(tree.build()) == 0
    for cache in caches:
        shutil.rmtree(cache)
    assert created(tree.build()) == 0
    subprocess.run([environment / "bin" / "python", "-m", "compileall", "-q", environment / "lib"], check=True)
    assert created(tree.build()) == 0
    assert the_environment(tree) == environment


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "clone", "hardlink", "symlink", "copy"])
def test_an_edit_in_an_environment_made_by_uv_does_not_come_back_with_the_replacement(
    tree: ProbeTree, mode: str | None
) -> None:
    """A file that is also one of uv's cache would be handed out again as edited. uv links where it cannot clone."""
    env = {"UV_LINK_MODE": mode}
    tree.build("--installer", "uv", env=env)
    changed = the_environment(tree)
    _edit_in_place(changed)
    assert created(tree.build("--installer", "uv", env=env)) == 1
    late = site_packages(the_environment(tree)) / "probe_backend_late.py"
    assert late.read_text() == "VALUE = 1\n"


@as_root
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mkfs.btrfs") is None, reason="makes a file system that has reflinks")
@pytest.mark.parametrize("mode", [None, "hardlink"])
def test_where_there_are_reflinks_uv_leaves_no_file_to_be_renamed(tree: ProbeTree, mode: str | None) -> None:
    """On Btrfs a folder that is listed while a file in it is replaced may seem to have none of that name."""
    tree.wheelhouse.add_wheel("large", files={"large.txt": "1" * 40 * 2**20})
    tree.require("large")
    image, mounted = tree.control / "image", tree.control / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(300 * 2**20)
    subprocess.run(["mkfs.btrfs", "-q", "-m", "single", image], check=True)
    env = {"UV_LINK_MODE": mode, "LOCKBUILD_CACHE_DIR": f"{mounted}/cache", "UV_CACHE_DIR": f"{mounted}/uv"}
    shell = f'"$@"\nsync\ndf --block-size=1M --output=used {mounted}'
    command = after_setup(f"mount -o loop {image} {mounted}", command=("sh", "-ec", shell, "sh", *LOCKBUILD))
    out, error = tree.start("--installer", "uv", env=env, command=command).communicate(timeout=PATIENCE)
    # What uv has in its cache and what the environment has are the same blocks.
    assert 40 <= int(out.splitlines()[-1]) < 80, out + error


# Resolving again


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--refresh", "--env-max-age=0", "LOCKBUILD_ENV_MAX_AGE"])
def test_a_new_generation_is_made_while_a_build_in_the_old_one_goes_on(tree: ProbeTree, how: str) -> None:
    gate = tree.make_gate()
    running = tree.start(env={"PROBE_GATE": str(gate.path)})
    tree.wait_for_hook()
    old = the_environment(tree)
    contents = look_at(str(old)).digest
    options, env = ([], {how: "0.0"}) if how.startswith("LOCKBUILD") else ([how], {})
    error = tree.build(*options, env=env)
    assert created(error) == 1
    new = Path(tree.prefixes()[-1])
    assert new.parent == old.parent
    assert new != old
    # Whoever comes now uses the new one, and the old one is as it was: a build runs in it.
    assert created(tree.build()) == 0
    assert tree.prefixes()[-1] == str(new)
    assert look_at(str(old)).digest == contents
    gate.open()
    tree.finish(running)
    assert tree.hooks("build_wheel after the gate")[0]["prefix"] == str(old)
    # Nobody uses it any more: the next one that makes an environment of this key removes it.
    tree.build("--refresh")
    assert not old.exists()
    assert tree.debris() == []


@pytest.mark.slow
def test_hooks_keep_the_environment_when_their_frontend_is_killed_and_free_it_when_they_end(tree: ProbeTree) -> None:
    gate = tree.make_gate()
    running = tree.start(env={"PROBE_GATE": str(gate.path)})
    hook = Path(f"/proc/{tree.wait_for_hook()['pid']}")
    host = Path("/proc", (hook / "stat").read_text().rpartition(")")[2].split()[1])
    old = the_environment(tree)
    for process in (host, hook):
        opened = [os.readlink(descriptor) for descriptor in (process / "fd").iterdir()]
        assert [path for path in opened if path.startswith(f"{old}.users/")], opened
    running.kill()
    running.wait()
    wait_until(lambda: not hook.exists() and not host.exists(), "the end of the orphaned hook and its host")
    tree.build("--refresh")
    assert not old.exists()
    assert tree.debris() == []


@pytest.mark.slow
def test_an_environment_that_is_younger_than_its_maximum_age_is_used(tree: ProbeTree) -> None:
    tree.build()
    assert created(tree.build("--env-max-age", "1h", env={"LOCKBUILD_ENV_MAX_AGE": "0"})) == 0
    assert created(tree.build(env={"LOCKBUILD_ENV_MAX_AGE": "1d"})) == 0


@pytest.mark.slow
def test_an_environment_that_is_a_day_old_is_made_again(tree: ProbeTree) -> None:
    tree.build()
    manifest_file = Path(f"{the_environment(tree)}.json")
    manifest = json.loads(manifest_file.read_text())
    manifest_file.write_text(json.dumps({**manifest, "made": time.time() - 23.9 * 3600}))
    error = tree.build()
    assert created(error) == 0
    assert "made 24 h ago" in error
    manifest_file.write_text(json.dumps({**manifest, "made": time.time() - 24.1 * 3600}))
    assert created(tree.build()) == 1


@pytest.mark.slow
def test_builds_that_all_refresh_share_a_resolution_that_began_after_they_did(tree: ProbeTree) -> None:
    tree.wheelhouse.add_sdist("slow")
    tree.require("slow")
    gate = tree.make_gate()
    env = {"SDIST_GATE_SLOW": str(gate.path), "PIP_NO_CACHE_DIR": "1"}
    first = tree.start("--refresh", env=env)
    tree.wait_for_sdist("slow")
    # These begin while the first one resolves: its result may be too old for them, one more is enough for all.
    others = [tree.start("--refresh", env=env) for _ in range(5)]
    for other in others:
        assert other.stderr is not None
        assert other.stderr.readline().startswith("* Waiting for the lock on the build environment for ")
    gate.open()
    tree.finish(first)
    wait_until(lambda: tree.sdist_log.read_text().count("enter") == 2, "the second resolution")
    gate.open()
    assert created(*tree.finish(*others)) == 1


@pytest.mark.slow
def test_a_refresh_is_one_for_the_whole_build(tree: ProbeTree) -> None:
    tree.build()
    assert created(tree.build("--refresh", "--wheel", "--wheel")) == 1


# An index that cannot be reached


_OLD_USED = r"WARNING The index cannot be reached; using the build environment made \d+ s ago \("


def _make_old(tree: ProbeTree) -> dict[str, str | None]:
    """Make an environment from an index that is gone now; return the settings that name it."""
    with served(tree.wheelhouse) as index:
        env: dict[str, str | None] = {
            "PIP_NO_INDEX": None,
            "PIP_FIND_LINKS": None,
            "PIP_INDEX_URL": index.url,
            "PIP_RETRIES": "1",
            "PIP_TIMEOUT": "2",
            "LOCKBUILD_ENV_MAX_AGE": "0",
        }
        tree.build(env=env)
    return env


@pytest.mark.slow
@pytest.mark.parametrize("retries", ["0", "1"])
def test_an_old_environment_is_used_with_one_warning_when_the_index_cannot_be_reached(
    tree: ProbeTree, retries: str
) -> None:
    # Without a retry, pip names the index only in its log.
    env = _make_old(tree) | {"PIP_RETRIES": retries}
    environment = the_environment(tree)
    error = tree.build(env=env)
    assert created(error) == 1
    assert len(re.findall(rf"^{_OLD_USED}", error, re.MULTILINE)) == 1
    assert tree.prefixes() == [str(environment)] * 2
    # For five minutes nobody tries again.
    again = tree.build(env=env)
    assert created(again) == 0
    assert len(re.findall(rf"^{_OLD_USED}", again, re.MULTILINE)) == again.count("WARNING") == 1
    # A person who asks for it does, and gets the old one as well.
    assert created(tree.build("--refresh", env=env)) == 1
    note = environment.parent / "unreachable"
    long_ago = time.time() - 301
    os.utime(note, (long_ago, long_ago))
    assert created(tree.build(env=env)) == 1
    assert tree.prefixes() == [str(environment)] * 5
    assert [path for path in tree.debris() if path != note] == []


@pytest.mark.slow
def test_without_an_old_environment_an_index_that_cannot_be_reached_is_an_error(tree: ProbeTree) -> None:
    env = _make_old(tree)
    shutil.rmtree(tree.store)
    last_line = tree.build(env=env, status=1).splitlines()[-1]
    url = f"{env['PIP_INDEX_URL']}/probe-backend/"
    assert last_line == f"ERROR pip could not install build-system.requires: Could not fetch {url}: Connection refused"
    assert tree.environments() == tree.debris() == []


@pytest.mark.slow
def test_a_changed_environment_is_not_used_when_the_index_cannot_be_reached(tree: ProbeTree) -> None:
    env = _make_old(tree)
    changed = the_environment(tree)
    _add_package(changed)
    # Another one is made of the same wheels, if they are unpacked.
    tree.build(env=env)
    assert tree.prefixes()[-1] == str(the_environment(tree)) != str(changed)
    _add_package(the_environment(tree))
    shutil.rmtree(tree.cache / "wheels")
    assert "ERROR" in tree.build(env=env, status=1)


@pytest.mark.slow
def test_a_requirement_that_the_index_does_not_have_any_more_is_an_error(tree: ProbeTree) -> None:
    tree.wheelhouse.add_wheel("other")
    tree.require("other")
    with served(tree.wheelhouse) as index:
        env = {"PIP_NO_INDEX": None, "PIP_FIND_LINKS": None, "PIP_INDEX_URL": index.url, "PIP_RETRIES": "0"}
        tree.build(env=env)
        for wheel in tree.wheelhouse.folder.glob("other-*"):
            wheel.unlink()
        error = tree.build("--refresh", env=env, status=1)
    assert "No matching distribution found for other" in error
    assert "cannot be reached" not in error
    assert len(tree.prefixes()) == 1


# Not keeping one


@pytest.mark.slow
def test_no_cache_leaves_nothing_in_the_store_and_no_environment_behind(tree: ProbeTree) -> None:
    error = tree.build("--no-cache")
    assert created(error) == 1
    assert created(tree.build("--no-cache")) == 1
    assert tree.keys() == []
    assert not any(Path(prefix).exists() for prefix in tree.prefixes())
    assert os.listdir(os.environ["TMPDIR"]) == []


@pytest.mark.slow
def test_no_cache_does_not_use_what_is_kept(tree: ProbeTree) -> None:
    tree.build()
    environment = the_environment(tree)
    contents = look_at(str(environment)).digest
    assert created(tree.build("--no-cache")) == 1
    assert tree.prefixes()[0] != tree.prefixes()[1]
    assert look_at(str(environment)).digest == contents


def test_env_dir_is_where_the_environment_is_and_it_is_removed_after_a_success(tree: ProbeTree) -> None:
    folder = tree.control / "env"
    assert created(tree.build("--env-dir", str(folder))) == 1
    assert tree.prefixes() == [str(folder)]
    assert not folder.exists()
    assert tree.environments() == []


@pytest.mark.slow
def test_a_second_build_with_the_same_env_dir_waits_until_the_first_has_removed_it(tree: ProbeTree) -> None:
    gate = tree.make_gate()
    folder = tree.control / "env"
    first = tree.start("--env-dir", str(folder), env={"PROBE_GATE": str(gate.path)})
    tree.wait_for_hook()
    second = tree.start("--env-dir", str(folder))
    assert second.stderr is not None
    assert second.stderr.readline().startswith(f"* Waiting for the lock on {folder}, held by {first.pid} ")
    gate.open()
    assert created(*tree.finish(first, second)) == 2


# More requirements


@pytest.mark.slow
def test_extra_requirements_make_an_environment_of_their_own_and_both_are_found_again(tree: ProbeTree) -> None:
    tree.wheelhouse.add_wheel("extra")
    tree.build()
    base = the_environment(tree)
    contents = look_at(str(base)).digest
    env = {"PROBE_REQUIRES": '["extra"]'}
    first = tree.build(env=env)
    assert created(first) == 1
    [larger] = set(tree.environments()) - {base}
    assert larger.parent != base.parent
    assert look_at(str(base)).digest == contents
    second = tree.build(env=env)
    assert created(second) == 0
    assert second.count("Using the build environment made ") == 2
    assert tree.prefixes() == [str(base), str(larger), str(larger)]
    assert tree.hooks("get_requires_for_build_wheel")[-1]["prefix"] == str(base)
    assert tree.hooks()[-1]["distributions"] == ["extra 1.0", "probe-backend 1.0"]
    assert created(tree.build()) == 0


@pytest.mark.slow
def test_an_extra_requirement_on_a_local_file_is_installed_into_nothing_that_is_kept(tree: ProbeTree) -> None:
    wheel = tree.wheelhouse.add_wheel("local")
    env = {"PROBE_REQUIRES": json.dumps([f"local @ {wheel.as_uri()}"])}
    tree.build(env=env)
    contents = look_at(str(the_environment(tree))).digest
    assert tree.hooks()[-1]["distributions"] == ["local 1.0", "probe-backend 1.0"]
    assert created(tree.build(env=env)) == 1
    assert look_at(str(the_environment(tree))).digest == contents


@pytest.mark.slow
def test_builds_that_hold_their_trees_locks_share_the_making_of_the_larger_environment(tree: ProbeTree) -> None:
    """It is made while a tree is locked. Four locked trees that need it at once do not wait in a circle."""
    tree.wheelhouse.add_sdist("slow")
    tree.build()
    gate = tree.make_gate()
    env = {"PROBE_REQUIRES": '["slow"]', "SDIST_GATE_SLOW": str(gate.path)}
    trees = [tree.path, *(copy_tree(tree, f"copy{n}") for n in range(3))]
    builds = [tree.start("--lock", "always", source=each, env=env) for each in trees for _ in range(2)]
    tree.wait_for_sdist("slow")
    wait_until(lambda: len(tree.hooks("get_requires_for_build_wheel")) >= 5, "every tree to be locked")
    gate.open()
    assert created(*tree.finish(*builds)) == 1


# Isolation


def _comparable(told: dict[str, Any]) -> dict[str, Any]:
    """Return what a hook told, with its environment's path and what differs from process to process replaced."""
    text = json.dumps({key: value for key, value in told.items() if key not in ("pid", "ppid")})
    text = text.replace(str(told["prefix"]), "<environment>")
    comparable: dict[str, Any] = json.loads(text)
    for name in (
        "_PYPROJECT_HOOKS_BUILD_BACKEND",
        "PYPROJECT_HOOKS_BUILD_BACKEND",
        "LOCKBUILD_HELD_LOCKS",
        "LOCKBUILD_CACHE_DIR",
    ):
        comparable["environ"].pop(name, None)
    return comparable


@pytest.mark.slow
def test_a_hook_in_a_kept_environment_sees_what_it_sees_under_build(tree: ProbeTree, tmp_path: Path) -> None:
    intruders = tmp_path / "intruders"
    intruders.mkdir()
    (intruders / "probe_backend_late.py").write_text("VALUE = 'from PYTHONPATH'\n")
    env = {"PYTHONPATH": str(intruders)}
    for command in (PYTHON_BUILD, LOCKBUILD, LOCKBUILD):
        tree.build(command=command, env=env)
    for hook in ("get_requires_for_build_wheel", "build_wheel"):
        of_build, *of_us = (_comparable(told) for told in tree.hooks(hook))
        assert of_us == [of_build] * 2
    told = tree.hooks()[-1]
    assert told["environ"]["PYTHONPATH"] == ""
    assert str(intruders) not in told["path"]
    assert told["user_site"] is False
    assert told["environ"]["PATH"].split(os.pathsep)[0] == f"{told['prefix']}/bin"
    assert told["prefix"] != told["base_prefix"]


@pytest.mark.slow
def test_without_a_path_variable_the_environments_scripts_are_the_path(tree: ProbeTree) -> None:
    tree.build(env={"PATH": None})
    tree.build(env={"PATH": None})
    assert [told["environ"]["PATH"] for told in tree.hooks()] == [f"{the_environment(tree)}/bin"] * 2


# Whose store it is


@pytest.mark.slow
def test_a_store_that_others_can_write_is_refused(tree: ProbeTree) -> None:
    tree.build()
    assert created(tree.build()) == 0
    for folder in (tree.store, tree.cache / f"environments-{os.getuid()}"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
    error = tree.build()
    assert error.count("WARNING Not keeping the build environment: ") == 1
    assert "is not a folder that only you can write" in " ".join(error.split())
    assert created(error) == 1
    assert not tree.prefixes()[-1].startswith(str(tree.cache))


@as_root
@pytest.mark.slow
def test_a_store_of_another_user_is_not_used(tree: ProbeTree) -> None:
    tree.build()
    os.chown(tree.store, NOBODY, NOBODY)
    error = tree.build()
    assert created(error) == 1
    own = tree.cache / f"environments-{os.getuid()}"
    assert tree.prefixes()[-1].startswith(str(own))
    assert created(tree.build()) == 0
    os.chown(own, NOBODY, NOBODY)
    error = tree.build()
    assert error.count("WARNING Not keeping the build environment: ") == 1
    assert created(error) == 1


@pytest.mark.slow
def test_a_store_that_is_a_link_is_not_used(tree: ProbeTree, tmp_path: Path) -> None:
    tree.cache.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    tree.store.symlink_to(elsewhere)
    tree.build()
    assert list(elsewhere.iterdir()) == []
    assert tree.prefixes()[-1].startswith(str(tree.cache / f"environments-{os.getuid()}"))


@contextlib.contextmanager
def _passable(folder: Path) -> Iterator[None]:
    """Let other users pass through a folder and those above it. access(2) counts no capabilities."""
    closed = [(each, mode) for each in (folder, *folder.parents) if not (mode := each.stat().st_mode & 0o7777) & 0o001]
    for each, mode in closed:
        each.chmod(mode | 0o001)
    try:
        yield
    finally:
        for each, mode in closed:
            each.chmod(mode)


@as_root
@pytest.mark.slow
def test_two_users_with_one_cache_folder_have_an_environment_each(tree: ProbeTree, tmp_path: Path) -> None:
    # The second user may read what root may, because the interpreter can be in a closed folder.
    nobody = (
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
    )
    temporary = tmp_path / "of-nobody"
    for folder in (temporary, tree.cache, tree.control):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o1777)
    (tree.control / "probe.log").touch()
    (tree.control / "probe.log").chmod(0o666)
    env = {"TMPDIR": str(temporary), "HOME": str(temporary)}
    with _passable(tmp_path):
        for expected in (2, 0):
            builds = [tree.start(), tree.start(env=env, command=(*nobody, *LOCKBUILD))]
            errors = tree.finish(*builds)
            assert created(*errors) == expected, "".join(errors)
    stores = {Path(prefix).parents[1] for prefix in tree.prefixes()}
    assert {(store.stat().st_uid, store.stat().st_mode & 0o777) for store in stores} == {(0, 0o700), (NOBODY, 0o700)}


# File systems without locks

_NO_FLOCK = """
import errno, fcntl, os
_flock = fcntl.flock
def flock(descriptor, operation):
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    if os.readlink(f"/proc/self/fd/{number}").startswith(os.environ["NO_FLOCK_BELOW"]):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    return _flock(descriptor, operation)
fcntl.flock = flock
"""


@pytest.mark.slow
def test_a_store_on_a_file_system_without_locks_works_and_keeps_what_may_be_used(
    tree: ProbeTree, tmp_path: Path
) -> None:
    """Below the cache folder flock answers ENOTSUP, in the frontends."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_NO_FLOCK)
    env = {"PYTHONPATH": str(site), "NO_FLOCK_BELOW": str(tree.cache)}
    builds = [tree.start(env=env) for _ in range(4)]
    errors = tree.finish(*builds)
    assert all("its file system has no locks" in " ".join(error.split()) for error in errors if created(error))
    assert created(*errors) == 1
    environment = the_environment(tree)
    assert created(tree.build(env=env)) == 0
    gate = tree.make_gate()
    running = tree.start(env={**env, "PROBE_GATE": str(gate.path)})
    tree.wait_for_hook(6)
    tree.build("--refresh", env=env)
    assert environment.exists()
    gate.open()
    tree.finish(running)
    tree.build("--refresh", env=env)
    assert not environment.exists()


# Users and removers, step by step

_STEPPED = """
import fcntl, os, sys

def stepped(module, name, here):
    function = getattr(module, name)
    def wait(*arguments):
        if here(*arguments):
            print(name, flush=True)
            sys.stdin.readline()
        return function(*arguments)
    setattr(module, name, wait)
"""


def test_a_user_that_meets_a_remover_at_its_file_is_not_left_without_a_lock(tmp_path: Path) -> None:
    """
    One build uses the environment already, so that a remover gives up and puts the manifest back. A second build is
    just beginning: the remover holds the lock of its new file for a moment, to see that nobody else does.
    """
    from lockbuild.environments.store import Generation, Manifest, User
    from lockbuild.locks.kernel import try_to_lock

    generation = Generation(str(tmp_path), "1")
    os.mkdir(generation.path)
    generation.write_manifest(Manifest(1.0, "python", "scripts", (), {}, "digest", "sources"))
    first = User(generation)
    assert first.begin()
    prepare = f"from lockbuild.environments.store import *\ngeneration = Generation({str(tmp_path)!r}, '1')\n"
    begin = "stepped(fcntl, 'flock', lambda *_: True)\n"
    begin += "stepped(os.path, 'exists', lambda path: path.endswith('.json'))\n"
    second = _python(
        f"{_STEPPED}\n{prepare}{begin}"
        "user = User(generation)\nbegun = user.begin()\nprint('begun', begun, *user.descriptors, flush=True)\n"
        "sys.stdin.readline()\n"
    )
    assert _line(second) == "flock"  # it has its file, and not yet the lock
    remover = _python(
        f"{_STEPPED}\n{prepare}"
        f"stepped(os, 'unlink', lambda path: os.path.basename(path).startswith('{second.pid}-'))\n"
        "print('removed', generation.remove(), flush=True)\n"
    )
    try:
        assert _line(remover) == "unlink"  # it has the lock, and not yet removed the file
        _go_on(second)
        # Tries the lock in vain. It may try again, or look for the manifest.
        answer = _line(second)
        while answer == "flock" and remover.poll() is None:
            _go_on(remover)
            assert _line(remover) == "removed False"
            remover.wait(timeout=10)
        if remover.poll() is None:
            _go_on(remover)
            assert _line(remover) == "removed False"
        while not answer.startswith("begun"):
            _go_on(second)
            answer = _line(second)
        if answer.startswith("begun True"):
            files = list(Path(generation.users_path).glob(f"{second.pid}-*"))
            assert files, "it believes to use the environment, and nobody can see it"
            descriptor = os.open(files[0], os.O_RDWR)
            assert not try_to_lock(descriptor)
            os.close(descriptor)
        else:
            assert answer == "begun False"
    finally:
        for process in (second, remover):
            process.kill()
            process.communicate()
        first.end()


# A user that looks for the manifest late, and a remover that has seen no user and removes late: in between, that user
# takes its lock, and its file is removed.
_LATE = "os.path.exists = lambda path, real=os.path.exists: time.sleep(0.03) or real(path)"


@pytest.mark.slow
@pytest.mark.parametrize("late", ["", _LATE], ids=["", "late"])
def test_users_that_begin_while_a_remover_works_are_always_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """Three processes begin and end, a fourth one removes and makes again, for a few seconds."""
    if late:
        real = shutil.rmtree

        def remove_late(*words: Any, **more: Any) -> None:
            time.sleep(0.01)
            real(*words, **more)

        monkeypatch.setattr(shutil, "rmtree", remove_late)
    program = f"import os, sys, time\nlate = {bool(late)}\n{late}\n" + textwrap.dedent(
        """
        from lockbuild.environments.store import *
        generation = Generation(sys.argv[1], "1")
        stop = time.time() + 3
        begun = 0
        while time.time() < stop:
            user = User(generation)
            if not user.begin():
                continue
            begun += 1
            for _ in range(20):
                assert os.path.isdir(generation.path), "removed while it was used"
                if late:
                    time.sleep(0.002)
            user.end()
        print(begun)
        """
    )
    from lockbuild.environments.store import Generation, Manifest

    generation = Generation(str(tmp_path), "1")
    users = [_python(program, str(tmp_path)) for _ in range(3)]
    removed = 0
    while any(user.poll() is None for user in users):
        # Only one process removes and makes: that is done under the key's lock.
        if generation.remove():
            removed += 1
            os.mkdir(generation.path)
        if generation.read_manifest() is None:
            generation.write_manifest(Manifest(1.0, "python", "scripts", (), {}, "digest", "sources"))
        time.sleep(0.002)
    answers = [user.communicate() for user in users]
    assert not any(error for _, error in answers), answers
    least = 1 if late else 10
    assert all(int(out) > least for out, _ in answers)
    assert removed > least


def _python(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_frontend_that_fails_while_it_is_given_an_environment_leaves_none_behind() -> None:
    """Ctrl-C, say, while it starts a hook host there."""
    request = BuildRequest(".", use_cache=False)
    candidates = candidate_environments(EnvironmentRequest((), "", request, 0.0, (), Reporter(), gettempdir))
    environment = next(candidates)
    temporary = Path(tempfile.gettempdir())
    assert Path(environment.python_executable).is_relative_to(temporary)
    candidates.close()
    assert list(temporary.iterdir()) == []
