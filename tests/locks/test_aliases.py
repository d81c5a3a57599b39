"""Builds that reach one tree by different names exclude each other; a tree that goes while a build waits is an error.

Names: links, relative paths, bind mounts, mount and process namespaces ("another container on the same kernel").
What a waiting build says of the holder is true: where it cannot see the holder, it says that.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from machine import after_setup, as_root, bind, error_line, linux_only, parent, second_tree, wait_until_it_waits
from witness import WitnessTree, wait_until

pytestmark = linux_only


def link_to_the_tree(tree: Path) -> str:
    link = tree.with_name("link")
    link.symlink_to(tree)
    return str(link)


def link_in_a_parent(tree: Path) -> str:
    link = tree.parent.with_name("parent-link")
    link.symlink_to(tree.parent)
    return str(link / tree.name)


SPELLINGS: dict[str, Callable[[Path], str]] = {
    "link": link_to_the_tree,
    "parent link": link_in_a_parent,
    "relative": lambda tree: os.path.relpath(tree, tree.parent),
    "dot": lambda tree: f"{tree}/.",
    "dot dot": lambda tree: f"{tree}/../{tree.name}",
    "slash": lambda tree: f"{tree}/",
    "slashes": lambda tree: f"{tree.parent}//{tree.name}//",
}


@pytest.mark.parametrize(
    "spelling", ["link", *(pytest.param(name, marks=pytest.mark.slow) for name in SPELLINGS if name != "link")]
)
def test_another_spelling_of_the_path_is_the_same_tree_with_the_same_lock_file(
    witness_tree: WitnessTree, tmp_path: Path, spelling: str
) -> None:
    gate = witness_tree.make_gate()
    witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    source = SPELLINGS[spelling](witness_tree.path)
    waiter = witness_tree.start("--wheel", "--lock-timeout", "0", source=source, cwd=witness_tree.path.parent)
    [(status, _, error)] = witness_tree.finish(waiter)
    assert status == 75, error
    gate.open()
    witness_tree.assert_all_succeed(witness_tree.started[0])
    assert len(list((tmp_path / "cache" / "locks").glob("*.lock"))) == 1
    witness_tree.assert_all_succeed(witness_tree.start(source=source, cwd=witness_tree.path.parent))


@pytest.mark.slow
@pytest.mark.parametrize("other_folders", [False, True], ids=["same folders", "other folders"])
@as_root
def test_a_bind_mount_is_the_same_tree(witness_tree: WitnessTree, tmp_path: Path, other_folders: bool) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    env = {}
    if other_folders:
        (tmp_path / "tmp2").mkdir()
        env = {"TMPDIR": str(tmp_path / "tmp2"), "LOCKBUILD_CACHE_DIR": str(tmp_path / "cache2")}
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    command = after_setup(bind(witness_tree.path, mounted))
    waiter = witness_tree.start(command=command, source=mounted, env=env)
    assert f"{mounted}, held by {holder.pid} (" in wait_until_it_waits(waiter)
    gate.open()
    witness_tree.assert_all_succeed()
    # And the other way round: the build of the mount holds the lock.
    holder = witness_tree.start(command=command, source=mounted, env=env, gate=gate.path)
    witness_tree.wait_for_entry(count=3)
    waiter = witness_tree.start()
    assert f", held by {holder.pid} (" in wait_until_it_waits(waiter)
    gate.open()
    witness_tree.assert_all_succeed(holder, waiter)


@as_root
def test_a_waiting_build_in_another_container_names_the_holder_with_its_host(
    witness_tree: WitnessTree,
) -> None:
    gate = witness_tree.make_gate()
    witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    waiter = witness_tree.start(command=after_setup("", "--pid"))
    # Only its host can tell whether the process of a record still runs.
    named = f"held by {witness_tree.started[0].pid} on {os.uname().nodename} ("
    assert named in wait_until_it_waits(waiter)
    timed_out = witness_tree.start("--wheel", "--lock-timeout", "0", command=after_setup("", "--pid"))
    [(status, _, error)] = witness_tree.finish(timed_out)
    assert status == 75
    assert "is " + named in error
    gate.open()
    witness_tree.assert_all_succeed(witness_tree.started[0], waiter)


@pytest.mark.slow
@as_root
def test_builds_in_two_containers_with_the_same_process_number_do_not_take_each_other_for_themselves(
    witness_tree: WitnessTree,
) -> None:
    gate = witness_tree.make_gate()
    # Both frontends are process 1; the record of the holder, which both can read, says so.
    witness_tree.start(command=after_setup("", "--pid"), gate=gate.path)
    witness_tree.wait_for_entry()
    [record] = Path(os.environ["LOCKBUILD_CACHE_DIR"], "locks").glob("*.holder")
    assert '"pid": 1,' in record.read_text()
    waiter = witness_tree.start(command=after_setup("", "--pid"))
    assert f"held by 1 on {os.uname().nodename} (" in wait_until_it_waits(waiter)
    gate.open()
    witness_tree.assert_all_succeed()


@pytest.mark.slow
@as_root
def test_a_holder_in_a_container_is_named_by_the_number_that_it_has_outside(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    container = witness_tree.start(command=after_setup("", "--pid"), gate=gate.path)
    witness_tree.wait_for_entry()
    waiter = witness_tree.start()
    message = wait_until_it_waits(waiter)
    named = re.search(r"held by (\d+) \(", message)
    assert named, message
    assert parent(int(named[1])) == container.pid
    gate.open()
    witness_tree.assert_all_succeed()


def rename(tree: Path) -> None:
    tree.rename(tree.with_name("renamed"))


def replace(tree: Path) -> None:
    tree.rename(tree.with_name("renamed"))
    shutil.copytree(tree.with_name("renamed"), tree)


def remove(tree: Path) -> None:
    shutil.rmtree(tree)


def replace_by_a_file(tree: Path) -> None:
    tree.rename(tree.with_name("renamed"))
    tree.touch()


def rename_its_parent(tree: Path) -> None:
    tree.parent.rename(tree.parent.with_name("renamed"))


@pytest.mark.parametrize("other_cache", [False, True], ids=["waits for the lock file", "waits for the directory"])
@pytest.mark.parametrize("change", [rename, replace, remove, replace_by_a_file, rename_its_parent])
@pytest.mark.slow
def test_a_tree_that_goes_while_a_build_waits_for_it_is_an_error(
    witness_tree: WitnessTree, tmp_path: Path, change: Callable[[Path], None], other_cache: bool
) -> None:
    tree = second_tree(witness_tree, witness_tree.control / "parent" / "tree")
    check_that_a_change_while_waiting_is_an_error(witness_tree, tree.path, change, tmp_path if other_cache else None)


@pytest.mark.slow
def test_a_tree_that_is_renamed_while_a_build_waits_for_it_is_an_error(witness_tree: WitnessTree) -> None:
    check_that_a_change_while_waiting_is_an_error(witness_tree, witness_tree.path, rename, None)


def check_that_a_change_while_waiting_is_an_error(
    witness_tree: WitnessTree, tree: Path, change: Callable[[Path], None], cache: Path | None
) -> None:
    gate = witness_tree.make_gate()
    holder = witness_tree.start(source=tree, gate=gate.path)
    witness_tree.wait_for_entry()
    env = {"LOCKBUILD_CACHE_DIR": str(cache / "cache2")} if cache else {}
    waiter = witness_tree.start(source=tree, env=env, out_dir=witness_tree.control / "second")
    wait_until_it_waits(waiter)
    change(tree)
    gate.open()
    witness_tree.assert_all_succeed(holder)
    message = error_line(witness_tree.finish(waiter)[0])
    assert f"{tree} was moved, replaced or removed" in message
    assert not (witness_tree.control / "second").exists()
    assert len([word for word, _, _ in witness_tree.log() if word == "enter"]) == 2, "only the holder may run hooks"


@pytest.mark.slow
@pytest.mark.parametrize("other_cache", [False, True], ids=["waits for the lock file", "waits for the directory"])
def test_a_link_that_points_elsewhere_after_a_wait_is_an_error(
    witness_tree: WitnessTree, tmp_path: Path, other_cache: bool
) -> None:
    other = second_tree(witness_tree, tmp_path / "other")
    link = tmp_path / "link"
    link.symlink_to(witness_tree.path)
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    env = {"LOCKBUILD_CACHE_DIR": str(tmp_path / "cache2")} if other_cache else {}
    waiter = witness_tree.start(source=link, env=env)
    wait_until_it_waits(waiter)
    point(link, other.path)
    gate.open()
    witness_tree.assert_all_succeed(holder)
    assert f"{link} was moved, replaced or removed" in error_line(witness_tree.finish(waiter)[0])
    assert len(witness_tree.entered("build_wheel")) == 1


def test_a_tree_that_is_renamed_while_it_is_built_is_still_locked(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path)
    witness_tree.wait_for_entry()
    rename(witness_tree.path)
    renamed = witness_tree.path.with_name("renamed")
    waiter = witness_tree.start(source=renamed)
    assert f"{renamed}, held by {holder.pid} (" in wait_until_it_waits(waiter)
    gate.open()
    witness_tree.assert_all_succeed()
    assert len(witness_tree.entered("build_wheel")) == 2


@pytest.mark.parametrize("how", ["link", "rename"])
def test_hooks_run_in_no_other_tree_than_the_one_that_is_locked(
    witness_tree: WitnessTree, tmp_path: Path, how: str
) -> None:
    """
    The path is given to another tree between two hooks of one build, while that tree is built, too.

    The first build may end with an error or finish in its own tree; it may not run its second hook in the other one.
    """
    add_gate_to_the_first_hook(witness_tree.path)
    other = second_tree(witness_tree, tmp_path / "other")
    path = tmp_path / "path"
    if how == "link":
        path.symlink_to(witness_tree.path)
    else:
        witness_tree.path.rename(path)
    first_gate, gate = witness_tree.make_gate("first"), witness_tree.make_gate()
    # Hooks run with the tree as their working directory: so each tree has a log of its own.
    log = {"WITNESS_LOG": "witness.log"}
    first = witness_tree.start(source=path, env=log | {"FIRST_GATE": str(first_gate.path)})
    wait_until(lambda: entries_in(path) == 1, "the first hook of the first build")
    second = witness_tree.start(
        source=other.path, gate=gate.path, env=log | {"LOCKBUILD_CACHE_DIR": str(tmp_path / "cache2")}
    )
    wait_until(lambda: entries_in(other.path) == 2, "the second hook of the second build")
    if how == "link":
        point(path, other.path)
    else:
        path.rename(tmp_path / "away")
        other.path.rename(path)
    first_gate.open()
    [(status, _, error)] = witness_tree.finish(first)
    assert entries_in(path) == 2, "the first build ran a hook in the tree of the second one"
    assert status == 0 or error.splitlines()[-1].startswith("ERROR ")
    gate.open()
    witness_tree.assert_all_succeed(second)


def entries_in(tree: Path) -> int:
    log = tree / "witness.log"
    return log.read_text().count("enter ") if log.exists() else 0


def add_gate_to_the_first_hook(tree: Path) -> None:
    with (tree / "witness_backend.py").open("a") as file:
        file.write(
            "\n\ndef get_requires_for_build_wheel(config_settings=None):\n"
            '    with _witness("get_requires_for_build_wheel"):\n'
            '        if "FIRST_GATE" in os.environ:\n'
            '            with open(os.environ["FIRST_GATE"]) as file:\n'
            "                file.read()\n"
            "        return []\n"
        )


def point(link: Path, target: Path) -> None:
    new = link.with_name("new-link")
    new.symlink_to(target)
    os.replace(new, link)
