"""File systems without flock: a library that is loaded before the C library has the system call fail there.

With every error by which a file system may say that it has no flock: another folder, a warning, or an error that names
``--lock never``; never a build that says nothing and has no lock.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path

import pytest

from machine import error_line, linux_only, wait_until_it_waits, warnings_in
from witness import WitnessTree

pytestmark = linux_only

NO_FLOCK_HERE = {"ENOSYS": errno.ENOSYS, "ENOTSUP": errno.ENOTSUP, "ENOLCK": errno.ENOLCK, "ENOTSUPP of NFS": 524}

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* flock fails with NO_FLOCK_ERROR on every file whose path begins with one of NO_FLOCK_PATHS (colons between). */
int flock(int descriptor, int operation)
{
    char link[64], path[PATH_MAX];
    const char *prefix = getenv("NO_FLOCK_PATHS");
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    while (prefix && *prefix && length >= 0) {
        size_t end = strcspn(prefix, ":");
        if ((size_t)length >= end && !strncmp(path, prefix, end)) {
            errno = atoi(getenv("NO_FLOCK_ERROR"));
            return -1;
        }
        prefix += end + (prefix[end] == ':');
    }
    int (*next)(int, int) = dlsym(RTLD_NEXT, "flock");
    return next(descriptor, operation);
}
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without-flock")
    (folder / "no_flock.c").write_text(SOURCE)
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(folder / "no_flock.so"), str(folder / "no_flock.c"), "-ldl"],
        check=True,
    )
    return folder / "no_flock.so"


def without_flock(library: Path, *paths: Path, number: int = errno.ENOSYS) -> dict[str, str | None]:
    """Return an environment in which flock fails below these paths."""
    return {
        "LD_PRELOAD": str(library),
        "NO_FLOCK_PATHS": ":".join(map(str, paths)),
        "NO_FLOCK_ERROR": str(number),
    }


@pytest.mark.parametrize(
    "number",
    [NO_FLOCK_HERE["ENOSYS"], *(pytest.param(n, marks=pytest.mark.slow) for n in [*NO_FLOCK_HERE.values()][1:])],
    ids=NO_FLOCK_HERE,
)
def test_a_cache_folder_without_flock_is_one_warning_and_another_folder(
    witness_tree: WitnessTree, tmp_path: Path, library: Path, number: int
) -> None:
    env = without_flock(library, tmp_path / "cache", number=number)
    # An sdist and the wheel from it: two trees are locked.
    [(status, _, error)] = witness_tree.finish(witness_tree.start("-x", env=env))
    assert status == 0, error
    [warning] = warnings_in(error)
    assert "no locks" in warning
    locks = next((tmp_path / "tmp").glob("lockbuild-*")) / "locks"
    assert str(locks.parent) in warning
    # That of the tree. What the sdist was unpacked into is this build's alone.
    assert len(list(locks.glob("setuptools-*.lock"))) == 1
    assert len(witness_tree.entered("build_sdist")) == len(witness_tree.entered("build_wheel")) == 1


@pytest.mark.slow
def test_a_build_with_the_other_folder_excludes_one_whose_cache_has_flock(
    witness_tree: WitnessTree, tmp_path: Path, library: Path
) -> None:
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path, env=without_flock(library, tmp_path / "cache"))
    witness_tree.wait_for_entry()
    waiter = witness_tree.start()
    assert f"held by {holder.pid} (" in wait_until_it_waits(waiter)
    gate.open()
    witness_tree.assert_all_succeed()


@pytest.mark.parametrize(
    "number",
    [NO_FLOCK_HERE["ENOSYS"], *(pytest.param(n, marks=pytest.mark.slow) for n in [*NO_FLOCK_HERE.values()][1:])],
    ids=NO_FLOCK_HERE,
)
def test_without_flock_for_any_lock_file_the_error_names_lock_never_and_that_builds(
    witness_tree: WitnessTree, tmp_path: Path, library: Path, number: int
) -> None:
    env = without_flock(library, tmp_path / "cache", tmp_path / "tmp", number=number)
    [result] = witness_tree.finish(witness_tree.start(env=env))
    message = error_line(result)
    assert "--lock never" in message
    assert str(witness_tree.path) in message
    assert witness_tree.log() == []
    assert not witness_tree.out_dir.exists()
    build = witness_tree.start("--wheel", "--lock", "never", env=env)
    [(status, _, error)] = witness_tree.finish(build)
    assert status == 0, error
    assert not warnings_in(error)
    assert len(witness_tree.entered("build_wheel")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EBADF, errno.EINVAL], ids=["ENOSYS", "EBADF", "EINVAL"])
def test_a_directory_without_flock_is_a_warning_and_the_lock_file_still_excludes(
    witness_tree: WitnessTree, tmp_path: Path, library: Path, number: int
) -> None:
    """EBADF is what NFSv4 says of an exclusive lock on a descriptor that is not open for writing."""
    env = without_flock(library, witness_tree.path, number=number)
    # In another TMPDIR, because uv's lock file alone would do.
    (tmp_path / "tmp2").mkdir()
    gate = witness_tree.make_gate()
    holder = witness_tree.start(gate=gate.path, env=env)
    witness_tree.wait_for_entry()
    waiter = witness_tree.start(env=env | {"TMPDIR": str(tmp_path / "tmp2")})
    assert f"held by {holder.pid} (" in wait_until_it_waits(waiter)
    gate.open()
    for status, _, error in witness_tree.finish():
        assert status == 0, error
        [warning] = warnings_in(error)
        assert str(witness_tree.path) in warning
        assert "builds by other users or with other cache folders do not" in warning
    witness_tree.assert_no_overlap()


@pytest.mark.slow
def test_who_waited_for_a_lock_file_that_was_removed_takes_the_new_one_of_the_name(
    witness_tree: WitnessTree, tmp_path: Path, library: Path
) -> None:
    """Without flock for the directory and for uv's lock file, all depends on which file the lock is on."""
    env = without_flock(library, witness_tree.path, tmp_path / "tmp")
    gate = witness_tree.make_gate()
    witness_tree.start(gate=gate.path, env=env)
    witness_tree.wait_for_entry()
    second = witness_tree.start(gate=gate.path, env=env)
    wait_until_it_waits(second)
    for file in (tmp_path / "cache" / "locks").iterdir():
        file.unlink()
    gate.open()
    witness_tree.wait_for_entry(count=2)
    third = witness_tree.start(env=env)
    assert f"held by {second.pid} (" in wait_until_it_waits(third)
    gate.open()
    witness_tree.assert_all_succeed()


@pytest.mark.slow
def test_without_flock_for_uvs_lock_file_the_build_goes_on(
    witness_tree: WitnessTree, tmp_path: Path, library: Path
) -> None:
    env = without_flock(library, tmp_path / "tmp") | {"COLUMNS": "2000"}
    [(status, _, error)] = witness_tree.finish(witness_tree.start("--wheel", "-v", env=env))
    assert status == 0, error
    assert "Not sharing uv's lock" in error
    assert not warnings_in(error)


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS], ids=["EIO", "EROFS"])
@pytest.mark.parametrize("where", ["lock file", "directory"])
def test_another_error_is_one_clear_line_and_nothing_is_built(
    witness_tree: WitnessTree, tmp_path: Path, library: Path, where: str, number: int
) -> None:
    path = tmp_path / "cache" if where == "lock file" else witness_tree.path
    [result] = witness_tree.finish(witness_tree.start(env=without_flock(library, path, number=number)))
    message = error_line(result)
    assert f"Cannot lock {witness_tree.path}" in message
    assert ("Input/output error" if number == errno.EIO else "Read-only file system") in message
    assert witness_tree.log() == []
