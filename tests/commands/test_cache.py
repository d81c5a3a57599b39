"""The console script lockbuild-cache: what it lists, and what it removes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lockbuild.environments.contents import look_at
from machine import after_setup, as_root, bind
from wheelhouse import CACHE_COMMAND, ProbeTree, a_made_up_environment, created, make_unused, served
from witness import LOCKBUILD, PATIENCE, wait_until


def cache(*words: str, status: int = 0, command: tuple[str, ...] = CACHE_COMMAND) -> str:
    """Run lockbuild-cache; return what it printed: on standard output, or after a failure on standard error."""
    answer = subprocess.run([*command, *words], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert answer.returncode == status, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    return answer.stderr if status else answer.stdout


# The command


def test_the_script_is_installed_beside_lockbuild() -> None:
    script = Path(sys.executable).with_name("lockbuild-cache")
    assert script.exists()
    assert "prune" in cache("--help", command=(str(script),))


def told_of_removals(environments: tuple[str, int], unpacked_wheels: tuple[str, int]) -> str:
    """Return what prune and clear print: how many of each kind were removed and are left; there are no built wheels."""
    return (
        f"Removed {environments[0]}; {environments[1]} left\n"
        f"Removed {unpacked_wheels[0]}; {unpacked_wheels[1]} left\n"
        "Removed 0 built wheels; 0 left\n"
    )


def test_dir_prints_the_cache_folder(tmp_path: Path) -> None:
    assert cache("dir") == f"{tmp_path / 'cache'}\n"
    assert cache("--cache-dir", str(tmp_path / "other"), "dir") == f"{tmp_path / 'other'}\n"
    assert not (tmp_path / "cache").exists()


def test_an_empty_or_missing_cache_is_no_error(tmp_path: Path) -> None:
    for make in (False, True):
        if make:
            (tmp_path / "cache").mkdir()
        assert cache("list") == "The cache is empty.\n"
        for command in ("prune", "clear"):
            assert cache(command) == told_of_removals(("0 environments", 0), ("0 unpacked wheels", 0))


def test_wrong_usage_is_exit_status_2() -> None:
    for words in ((), ("unknown",), ("prune", "--older-than", "soon"), ("prune", "--older-than", "-1")):
        cache(*words, status=2)


@pytest.mark.slow
def test_list_shows_size_age_last_use_and_packages(tree: ProbeTree) -> None:
    tree.wheelhouse.add_wheel("other", "2.5", files={"other.py": "#" * 2 * 1024**2})
    tree.build()
    tree.require("other")
    tree.build()
    small, large = sorted(tree.environments(), key=lambda each: len(Path(f"{each}.json").read_text()))
    make_unused(small, 3)
    header, first, second, wheel_header, *wheels = cache("list").splitlines()
    assert re.split(r"\s{2,}", header) == ["ENVIRONMENT", "SIZE", "MADE", "LAST USED", "PACKAGES"]
    name, size, made, used, packages = re.split(r"\s{2,}", first)
    assert name == str(large.relative_to(tree.store))
    # Half of two megabytes: the store of wheels has the other half, by hard links.
    assert re.fullmatch(r"[12]\.[0-9] MiB", size)
    assert re.fullmatch(r"\d+ s ago", made)
    assert re.fullmatch(r"\d+ s ago", used)
    assert packages == "other 2.5, probe-backend 1.0"
    assert second.startswith(str(small.relative_to(tree.store)))
    assert "  3 d ago  " in second
    assert re.split(r"\s{2,}", wheel_header) == ["UNPACKED WHEEL", "SIZE", "LAST USED"]
    shown = sorted(re.split(r"\s{2,}", line) for line in wheels)
    assert [name for name, *_ in shown] == ["other 2.5", "probe_backend 1.0"]
    assert all(re.fullmatch(r"\d+ s ago", used) for _, _, used in shown)


@pytest.mark.slow
def test_clear_removes_unpacked_wheels_but_those_of_an_environment_in_use(tree: ProbeTree) -> None:
    tree.wheelhouse.add_wheel("other")
    tree.build()
    tree.require("other")
    tree.build()
    tree.require()
    assert cache("prune") == told_of_removals(("0 environments", 2), ("0 unpacked wheels", 2))
    gate = tree.make_gate()
    running = tree.start(env={"PROBE_GATE": str(gate.path)})
    tree.wait_for_hook(3)
    assert cache("clear") == told_of_removals(("1 environment", 1), ("1 unpacked wheel", 1))
    gate.open()
    tree.finish(running)
    assert created(tree.build()) == 0
    assert cache("clear") == told_of_removals(("1 environment", 0), ("1 unpacked wheel", 0))
    assert list((tree.cache / "wheels").iterdir()) == []


@pytest.mark.slow
def test_prune_keeps_the_unpacked_wheels_of_kept_environments(tree: ProbeTree) -> None:
    tree.build()
    [wheel] = (tree.cache / "wheels").glob("*/manifest.json")
    os.utime(wheel, (1, 1))
    assert cache("prune") == told_of_removals(("0 environments", 1), ("0 unpacked wheels", 1))


@pytest.mark.slow
def test_prune_for_ci_keeps_the_newest_environments_and_what_makes_them_again_without_a_network(
    tree: ProbeTree, tmp_path: Path
) -> None:
    with served(tree.wheelhouse) as index:
        env = {"PIP_NO_INDEX": None, "PIP_FIND_LINKS": None, "PIP_INDEX_URL": index.url, "PIP_RETRIES": "0"}
        tree.build(env=env)
        [older] = tree.environments()
        # An older generation stays as long as it is used. This one is put back as if a build had ended only now.
        kept = shutil.copytree(older.parent, tmp_path / "kept", symlinks=True)
        tree.wheelhouse.add_backend("2.0")
        tree.build("--refresh", env=env)
    [newest] = tree.environments()
    for path in kept.iterdir():
        path.rename(newest.parent / path.name)
    assert len(tree.environments()) == len(list((tree.cache / "wheels").iterdir())) == 2
    assert cache("prune") == told_of_removals(("0 environments", 2), ("0 unpacked wheels", 2))
    assert cache("prune", "--ci") == told_of_removals(("1 environment", 1), ("1 unpacked wheel", 1))
    assert tree.environments() == [newest]
    assert created(tree.build(env=env)) == 0
    env["LOCKBUILD_CACHE_DIR"] = str(tree.cache.rename(tmp_path / "moved"))
    assert created(tree.build(env=env)) == 1


@pytest.mark.slow
def test_prune_removes_what_was_not_used_for_thirty_days(tree: ProbeTree) -> None:
    tree.wheelhouse.add_wheel("other")
    tree.build()
    tree.require("other")
    tree.build()
    young, old = tree.environments()
    make_unused(young, 29.9)
    make_unused(old, 30.1)
    assert cache("prune").startswith("Removed 1 environment; 1 left\n")
    assert tree.environments() == [young]
    assert tree.keys() == [young.parent]
    # A build is a use.
    tree.require()
    tree.build()
    tree.require("other")
    tree.build()
    assert cache("prune", "--older-than", "1d").startswith("Removed 0 environments; 2 left\n")


@pytest.mark.parametrize(("time", "removed"), [("3h", 0), ("1.5h", 1), ("120m", 1), ("7000", 1), ("1d", 0), ("0", 1)])
def test_prune_understands_units_of_time(tree: ProbeTree, time: str, removed: int) -> None:
    environment = a_made_up_environment(tree)
    make_unused(environment, 2.5 / 24)
    assert cache("prune", "--older-than", time).startswith(f"Removed {removed} environment")
    assert environment.exists() != bool(removed)


@pytest.mark.slow
def test_clear_removes_everything_and_builds_go_on(tree: ProbeTree) -> None:
    tree.build()
    assert cache("clear").startswith("Removed 1 environment; 0 left\n")
    assert tree.keys() == []
    assert created(tree.build()) == 1


@pytest.mark.slow
def test_clear_leaves_what_a_build_uses_and_removes_it_after_a_kill(tree: ProbeTree) -> None:
    gate = tree.make_gate()
    build = tree.start(env={"PROBE_GATE": str(gate.path)})
    hook = tree.wait_for_hook()
    [environment] = tree.environments()
    contents = look_at(str(environment)).digest
    assert cache("clear").startswith("Removed 0 environments; 1 left\n")
    assert look_at(str(environment)).digest == contents
    # It is complete still: others use it.
    assert created(tree.build()) == 0
    assert cache("prune", "--older-than", "0").startswith("Removed 0 environments; 1 left\n")
    build.kill()
    build.wait()
    wait_until(lambda: not Path(f"/proc/{hook['pid']}").exists(), "the end of the orphaned hook")
    wait_until(lambda: cache("clear").endswith("; 0 left\n"), "the end of its host")
    assert tree.keys() == []


@pytest.mark.slow
def test_clear_leaves_an_environment_that_is_just_being_made(tree: ProbeTree) -> None:
    tree.wheelhouse.add_sdist("slow")
    tree.require("slow")
    gate = tree.make_gate()
    build = tree.start(env={"SDIST_GATE_SLOW": str(gate.path)})
    tree.wait_for_sdist("slow")
    assert cache("clear").startswith("Removed 0 environments; 0 left\n")
    gate.open()
    tree.finish(build)
    assert len(tree.environments()) == 1


def test_what_a_killed_maker_left_is_removed_by_prune(tree: ProbeTree) -> None:
    environment = a_made_up_environment(tree)
    manifest = Path(f"{environment}.json")
    # Killed while it wrote the manifest.
    manifest.rename(f"{manifest}.0123abcd")
    shutil.rmtree(f"{environment}.users")
    cache("prune")
    assert tree.keys() == []


@pytest.mark.slow
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_who_removes_the_cache_by_hand_while_an_environment_is_made_is_told_and_the_next_build_makes_it(
    tree: ProbeTree, installer: str
) -> None:
    tree.wheelhouse.add_sdist("slow")
    tree.require("slow")
    gate = tree.make_gate()
    build = tree.start("--installer", installer, env={"SDIST_GATE_SLOW": str(gate.path)})
    tree.wait_for_sdist("slow")
    shutil.rmtree(tree.cache)
    gate.open()
    _, err = build.communicate(timeout=PATIENCE)
    assert build.returncode == 1
    last_line = err.splitlines()[-1]
    assert re.fullmatch(r"ERROR \S+ was removed meanwhile; start the build again", last_line), err
    tree.build("--installer", installer)


@pytest.mark.slow
def test_six_builds_in_a_loop_all_succeed_while_the_cache_is_cleared_in_a_loop(tree: ProbeTree) -> None:
    """
    For twenty seconds, and until something was removed twice. What is removed under a build would make its hook fail.

    Six builds together may use the environment without a gap. So after every third build they wait for each other and
    until it is gone, and begin the next ones at the same time.
    """
    started = time.monotonic()
    errors: list[str] = []
    builds: list[int] = []
    removals: list[int] = []

    def is_over() -> bool:
        lasted = time.monotonic() - started
        return bool(errors) or (lasted > 20 and len(removals) >= 2) or lasted > 2 * PATIENCE

    def wait_for_the_removal() -> None:
        wait_until(lambda: not any(tree.store.glob("*/*.json")), "the removal")

    gap = threading.Barrier(6, wait_for_the_removal)

    def build_again_and_again(number: int) -> None:
        count = 0
        while not is_over():
            command = [*LOCKBUILD, "--wheel", "-o", str(tree.control / f"loop{number}"), str(tree.path)]
            answer = subprocess.run(command, env=tree.environ(), capture_output=True, text=True, check=False)
            builds.append(number)
            if answer.returncode:
                errors.append(answer.stderr)
            count += 1
            if count % 3 == 0:
                with contextlib.suppress(threading.BrokenBarrierError):
                    gap.wait()
        # Nobody waits for one that has ended.
        gap.abort()

    threads = [threading.Thread(target=build_again_and_again, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    program = """
from lockbuild.garbage_collection import prune_environments as prune
while True:
    if removed := prune(-1.0):
        print(removed, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as clearing:
        assert clearing.stdout is not None
        reader = threading.Thread(target=lambda lines: removals.extend(map(int, lines)), args=(clearing.stdout,))
        reader.start()
        for thread in threads:
            thread.join()
        clearing.kill()
        reader.join()
    assert errors == []
    assert len(builds) >= 6
    assert len(removals) >= 2
    tree.build()


# Whose cache it is


# Another user, who may read what root may, because the interpreter can be in a closed folder.
_NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


@as_root
def test_a_store_of_another_user_is_left_alone(tree: ProbeTree) -> None:
    environment = a_made_up_environment(tree)
    for folder in (tree.store, tree.cache / f"environments-{os.getuid()}"):
        folder.mkdir(exist_ok=True)
        os.chown(folder, 65534, 65534)
    for command in ("list", "prune", "clear"):
        assert "is not a folder that only you can write" in cache(command, status=1)
    assert environment.exists()


@as_root
def test_a_cache_that_cannot_be_written_is_one_line(tree: ProbeTree) -> None:
    a_made_up_environment(tree)
    tree.cache.chmod(0o755)
    for command in ("list", "prune", "clear"):
        error = cache(command, status=1, command=(*_NOBODY, *CACHE_COMMAND))
        assert error.startswith("ERROR "), error
        assert error.count("\n") == 1
    assert len(tree.environments()) == 1


@as_root
def test_a_cache_on_a_read_only_disk_is_listed_and_cannot_be_pruned(tree: ProbeTree) -> None:
    environment = a_made_up_environment(tree)
    command = after_setup(bind(tree.cache, tree.cache, "ro"), command=CACHE_COMMAND)
    assert f"{environment.parent.name}/1 " in cache("list", command=command)
    error = cache("clear", status=1, command=command)
    assert re.fullmatch(r"ERROR \S+ cannot be used: Read-only file system\n", error)
    assert environment.exists()


def test_a_cache_that_is_a_file_is_one_line(tree: ProbeTree) -> None:
    tree.cache.write_text("")
    for command in ("list", "prune", "clear"):
        assert cache(command).startswith(("The cache is empty.\n", "Removed 0 environments; 0 left\n"))
