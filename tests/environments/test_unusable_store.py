"""Where no environment can be kept, a build goes on with one that it removes again, and says so once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from machine import after_setup, as_root, bind, warnings_in
from wheelhouse import ProbeTree, created
from witness import LOCKBUILD

pytestmark = as_root


def on_tmpfs(cache: Path, options: str, *more: str) -> tuple[str, ...]:
    """Return the command of builds that see the cache folder with its contents, on a small disk; ``more`` fills it."""
    script = f"""
        mkdir -p {cache}
        mkdir {cache}.disk
        mount -t tmpfs -o {options} lockbuild-test {cache}.disk
        cp -a {cache}/. {cache}.disk
        mount --move {cache}.disk {cache}
    """
    return after_setup("\n".join((script, *more)), command=LOCKBUILD)


def assert_made_elsewhere(tree: ProbeTree, error: str) -> None:
    """Assert that one warning tells why the last build has kept no environment, and that nothing of one is left."""
    [warning] = warnings_in(error)
    assert warning.startswith("WARNING Not keeping the build environment: ")
    assert "Traceback" not in error
    assert not tree.prefixes()[-1].startswith(str(tree.cache))
    assert os.listdir(os.environ["TMPDIR"]) == []


@pytest.mark.slow
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_disk_without_room_for_an_environment(tree: ProbeTree, installer: str) -> None:
    tree.wheelhouse.add_wheel("large", files={"large.txt": "1" * 2**20})
    tree.require("large")
    error = tree.build("--installer", installer, command=on_tmpfs(tree.cache, "size=700k"))
    assert_made_elsewhere(tree, error)
    assert f"{tree.store}/" in error or f"{tree.cache}/wheels/" in error
    assert "No space left on device" in error


@pytest.mark.slow
def test_a_disk_that_is_full(tree: ProbeTree) -> None:
    fill = f"! dd if=/dev/zero of={tree.cache}/filler bs=4k count=1k status=none 2>&-"
    error = tree.build(command=on_tmpfs(tree.cache, "size=100k", fill))
    assert_made_elsewhere(tree, error)
    assert "No space left on device" in error


@pytest.mark.slow
def test_an_inode_table_that_is_full_also_where_an_environment_is_kept(tree: ProbeTree) -> None:
    tree.build()
    fill = f"touch {tree.cache}/filler-$(seq -s ' {tree.cache}/filler-' 1000) 2>&- || true"
    error = tree.build(command=on_tmpfs(tree.cache, "nr_inodes=500", fill))
    assert_made_elsewhere(tree, error)
    assert "No space left on device" in error
    # The kept one is as it was.
    assert created(tree.build()) == 0


@pytest.mark.slow
def test_a_cache_that_is_read_only(tree: ProbeTree) -> None:
    tree.build()
    error = tree.build(command=after_setup(bind(tree.cache, tree.cache, "ro")))
    assert_made_elsewhere(tree, error)
    assert "Read-only file system" in error
    assert created(tree.build()) == 0


@pytest.mark.slow
def test_a_shared_build_on_an_inode_table_that_is_full_is_not_shared(tree: ProbeTree) -> None:
    tree.build()
    fill = f"touch {tree.cache}/filler-$(seq -s ' {tree.cache}/filler-' 1000) 2>&- || true"
    error = tree.build("--coalesce", command=on_tmpfs(tree.cache, "nr_inodes=500", fill))
    sharing, keeping = warnings_in(error)
    assert sharing.startswith("WARNING Not sharing this build with others: ")
    assert keeping.startswith("WARNING Not keeping the build environment: ")
