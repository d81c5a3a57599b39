"""How files get into an environment: what the file systems allow, with the same contents, permissions and times."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lockbuild.request import LinkMode
from lockbuild.wheels import install_wheels
from machine import after_setup, as_root
from wheelhouse import Wheelhouse, site_packages


def installed(house: Wheelhouse, environment: Path, mode: LinkMode) -> tuple[Path, Path]:
    """Install a wheel; return a file of it in the store and in the environment."""
    install_wheels([house.add_wheel("alpha", files={"alpha.py": "VALUE = 1\n"})], environment, link_mode=mode)
    [stored] = Path(os.environ["LOCKBUILD_CACHE_DIR"], "wheels").rglob("alpha.py")
    return stored, site_packages(environment) / "alpha.py"


def test_a_hard_link_is_the_same_file(house: Wheelhouse, environment: Path) -> None:
    stored, file = installed(house, environment, "hardlink")
    assert stored.samefile(file)


def test_a_copy_is_another_file_with_the_same_contents_permissions_and_time(
    house: Wheelhouse, environment: Path
) -> None:
    stored, file = installed(house, environment, "copy")
    assert not stored.samefile(file)
    assert file.read_bytes() == stored.read_bytes()
    assert file.stat().st_mode == stored.stat().st_mode
    assert file.stat().st_mtime_ns == stored.stat().st_mtime_ns


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
@pytest.mark.parametrize("mode", ["auto", "hardlink", "copy"])
def test_between_file_systems_files_are_copied(
    house: Wheelhouse, environment: Path, monkeypatch: pytest.MonkeyPatch, mode: LinkMode
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as cache:
        monkeypatch.setenv("LOCKBUILD_CACHE_DIR", cache)
        stored, file = installed(house, environment, mode)
        assert stored.stat().st_dev != file.stat().st_dev
        assert file.read_bytes() == stored.read_bytes()
        assert file.stat().st_mtime_ns == stored.stat().st_mtime_ns


_REFLINK = """
import os, sys, venv
from lockbuild.wheels import install_wheels
folder, wheel = sys.argv[1:]
os.environ["LOCKBUILD_CACHE_DIR"] = folder + "/cache"
for name in ("one", "two"):
    venv.EnvBuilder(symlinks=True).create(folder + "/" + name)
    install_wheels([wheel], folder + "/" + name)
    [found] = [top + "/large.txt" for top, _, files in os.walk(folder + "/" + name) if "large.txt" in files]
    print(os.stat(found).st_nlink, os.path.getsize(found))
    # It is edited in place; only it.
    with open(found, "r+") as file:
        assert file.read(4) == "1111", name
        file.seek(0)
        file.write("2222")
print((os.statvfs(folder).f_blocks - os.statvfs(folder).f_bfree) * os.statvfs(folder).f_frsize // 2**20)
"""


@as_root
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mkfs.btrfs") is None, reason="makes a file system that has reflinks")
def test_where_there_are_reflinks_an_edit_in_one_environment_is_in_no_other(house: Wheelhouse, tmp_path: Path) -> None:
    wheel = house.add_wheel("large", files={"large.txt": "1" * 40 * 2**20})
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(300 * 2**20)
    subprocess.run(["mkfs.btrfs", "-q", "-m", "single", image], check=True)
    command = (sys.executable, "-c", _REFLINK, str(mounted), str(wheel))
    answer = subprocess.run(
        after_setup(f"mount -o loop {image} {mounted}", command=command), capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    one, two, used = answer.stdout.splitlines()
    assert one == two == f"1 {40 * 2**20}"
    # Three times 40 MiB, but for the blocks that were edited, are stored once.
    assert int(used) < 80
