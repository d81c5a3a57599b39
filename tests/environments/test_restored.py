"""A cache that was packed and unpacked, as CI and images do: what is in it is used, and without a network.

Each test fills the cache from an index that is gone afterwards. An installer that is run then fails, so a build that
succeeds ran none.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import installed
from lockbuild.environments.contents import look_at
from machine import as_root
from wheelhouse import ProbeTree, created, served, site_packages
from witness import PATIENCE

NOBODY = 65534

# Commands that pack and unpack the folder "cache".
_WAYS = {
    "tar with whole seconds": ("tar --format=gnu -cf packed cache", "tar -xf packed"),
    "tar that restores no time": ("tar -cf packed cache", "tar -xmf packed"),
    "tar without hard links": ("tar --hard-dereference --format=ustar -cf packed cache", "tar -xf packed"),
    "tar with other permissions": ("tar -cf packed cache", "umask 077; tar --no-same-permissions -xf packed"),
    "zip": ("zip -qry packed.zip cache", "unzip -q packed.zip"),
    "zip with the times of DOS": ("zip -qryX packed.zip cache", "unzip -q packed.zip"),
    "cp without times": ("cp -r cache packed", "cp -r packed cache"),
}
ways = pytest.mark.parametrize(("pack", "unpack"), _WAYS.values(), ids=_WAYS)


def _shell(command: str, folder: Path) -> None:
    if command.startswith("zip") and shutil.which("zip") is None:
        pytest.skip("there is no zip")
    subprocess.run(["sh", "-ec", command], cwd=folder, check=True, timeout=PATIENCE)


def _fill_cache(tree: ProbeTree) -> dict[str, str | None]:
    """Build twice with an index that is gone afterwards; return the settings that name it."""
    tree.wheelhouse.add_wheel("other", files={"other/__init__.py": "", "other/module.py": "VALUE = 1\n"})
    tree.require("other")
    with served(tree.wheelhouse) as index:
        env: dict[str, str | None] = {
            "PIP_NO_INDEX": None,
            "PIP_FIND_LINKS": None,
            "PIP_INDEX_URL": index.url,
            "PIP_RETRIES": "1",
            "PIP_TIMEOUT": "2",
            "PIP_NO_CACHE_DIR": "1",
        }
        assert created(tree.build(env=env), tree.build(env=env)) == 1
    return env


def _the_environment(tree: ProbeTree) -> Path:
    [environment] = tree.environments()
    return environment


def _bytecode(environment: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in environment.rglob("*.pyc")}


@pytest.mark.slow
@ways
def test_a_restored_environment_is_used_without_a_network_and_compared_by_content_once(
    tree: ProbeTree, pack: str, unpack: str
) -> None:
    env = _fill_cache(tree)
    environment = _the_environment(tree)
    before, bytecode = look_at(str(environment)).digest, _bytecode(environment)
    assert bytecode
    _shell(pack, tree.cache.parent)
    shutil.rmtree(tree.cache)
    _shell(unpack, tree.cache.parent)
    after = look_at(str(environment)).digest
    assert after != before, "nothing was lost; this test would prove nothing"
    assert created(tree.build(env=env)) == 0
    # The next build only looks.
    assert json.loads(Path(f"{environment}.json").read_text())["seen"] == after
    assert created(tree.build(env=env)) == 0
    assert {*tree.prefixes()} == {str(environment)}
    assert _bytecode(environment).keys() == bytecode.keys()
    assert tree.debris() == []


@pytest.mark.slow
@ways
def test_at_another_path_an_environment_is_made_again_without_a_network(
    tree: ProbeTree, pack: str, unpack: str, tmp_path: Path
) -> None:
    env = _fill_cache(tree)
    environment = _the_environment(tree)
    made, before = _made(environment), installed.contents(environment)
    _shell(pack, tree.cache.parent)
    shutil.rmtree(tree.cache)
    _shell(unpack, tree.cache.parent)
    again = _build_elsewhere(tree, tmp_path / "elsewhere", env)
    # It is as old as its resolution, and has the same files.
    assert _made(again) == made
    assert installed.contents(again) == before


def _made(environment: Path) -> float:
    made: float = json.loads(Path(f"{environment}.json").read_text())["made"]
    return made


def _build_elsewhere(tree: ProbeTree, cache: Path, env: dict[str, str | None]) -> Path:
    """Move the cache and build twice; return the environment, which was made again once."""
    tree.cache.rename(cache)
    env["LOCKBUILD_CACHE_DIR"] = str(cache)
    error = tree.build(env=env)
    assert created(error) == 1
    assert "from the same wheels" in error
    assert created(tree.build(env=env)) == 0
    [again] = {Path(prefix) for prefix in tree.prefixes()[-2:]}
    assert again.is_relative_to(cache)
    assert [path.name for path in again.parent.iterdir() if path.suffix == ".json"] == [f"{again.name}.json"]
    return again


@pytest.mark.slow
def test_links_that_an_archive_has_followed_make_an_environment_anew_without_a_network(tree: ProbeTree) -> None:
    env = _fill_cache(tree)
    _shell("zip -qr packed.zip cache", tree.cache.parent)
    shutil.rmtree(tree.cache)
    _shell("unzip -q packed.zip", tree.cache.parent)
    assert not (_the_environment(tree) / "bin" / "python").is_symlink()
    assert created(tree.build(env=env)) == 1
    assert created(tree.build(env=env)) == 0
    assert tree.debris() == []


@pytest.mark.slow
def test_a_changed_environment_is_made_again_without_a_network(tree: ProbeTree) -> None:
    env = _fill_cache(tree)
    environment = _the_environment(tree)
    before = installed.contents(environment)
    module = site_packages(environment) / "other" / "module.py"
    module.unlink()
    module.write_text("VALUE = 2\n")
    assert created(tree.build(env=env)) == 1
    assert installed.contents(_the_environment(tree)) == before


@pytest.mark.slow
def test_a_change_of_the_same_size_is_noticed_where_times_were_lost(tree: ProbeTree) -> None:
    env = _fill_cache(tree)
    environment = _the_environment(tree)
    module = site_packages(environment) / "other" / "module.py"
    times = module.stat()
    module.unlink()
    module.write_text("VALUE = 2\n")
    os.utime(module, ns=(times.st_atime_ns, times.st_mtime_ns - 1))
    assert created(tree.build(env=env)) == 1
    assert (site_packages(_the_environment(tree)) / "other" / "module.py").read_text() == "VALUE = 1\n"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["removed", "edited"])
def test_wheels_that_are_not_unpacked_as_they_were_are_fetched_again(
    tree: ProbeTree, tmp_path: Path, what: str
) -> None:
    env = _fill_cache(tree)
    [module] = (tree.cache / "wheels").glob("*/*/purelib/other/module.py")
    module.unlink()
    if what == "edited":
        module.write_text("VALUE = 2\n")
    elsewhere = tree.cache.rename(tmp_path / "elsewhere")
    env["LOCKBUILD_CACHE_DIR"] = str(elsewhere)
    assert "ERROR" in tree.build(env=env, status=1)
    assert [*elsewhere.glob("environments/*/*/bin")] == []
    # With a network it comes back.
    with served(tree.wheelhouse) as index:
        tree.build(env={**env, "PIP_INDEX_URL": index.url})
    assert (site_packages(Path(tree.prefixes()[-1])) / "other" / "module.py").read_text() == "VALUE = 1\n"


@pytest.mark.slow
def test_an_old_environment_at_another_path_is_made_again_and_used_while_the_index_cannot_be_reached(
    tree: ProbeTree, tmp_path: Path
) -> None:
    env = {**_fill_cache(tree), "LOCKBUILD_ENV_MAX_AGE": "0"}
    env["LOCKBUILD_CACHE_DIR"] = str(tree.cache.rename(tmp_path / "elsewhere"))
    error = tree.build(env=env)
    assert "The index cannot be reached; using the build environment made " in " ".join(error.split())
    assert Path(tree.prefixes()[-1]).is_relative_to(tmp_path / "elsewhere")


@as_root
@pytest.mark.slow
def test_a_cache_that_is_restored_as_that_of_another_user_is_not_used(tree: ProbeTree) -> None:
    env = _fill_cache(tree)
    environment = _the_environment(tree)
    _shell(f"chown -Rh {NOBODY} cache; tar --format=gnu -cf packed cache", tree.cache.parent)
    shutil.rmtree(tree.cache)
    _shell("tar -xf packed", tree.cache.parent)
    assert "ERROR" in tree.build(env=env, status=1)
    # As the archive's owner says, or as ours: only what is ours is used.
    shutil.rmtree(tree.cache)
    _shell("tar --no-same-owner -xf packed", tree.cache.parent)
    assert created(tree.build(env=env)) == 0
    assert tree.prefixes()[-1] == str(environment)
