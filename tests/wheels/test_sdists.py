"""Build requirements that are only there as sdists are built by lockbuild, once, whoever makes an environment."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lockbuild.locks import DirectoryLock
from lockbuild.paths import builds_folder
from lockbuild.sharing.tickets import Ticket, Wish
from machine import read_message
from wheelhouse import ProbeTree, end_all, make_probe_tree, processes_naming
from witness import PATIENCE, wait_until


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[ProbeTree]:
    tree = make_probe_tree(tmp_path / "probe")
    yield tree
    end_all(tree)


def start_builds(tree: ProbeTree, count: int, sdist: str, env: Mapping[str, str]) -> list[subprocess.Popen[str]]:
    """Start builds of projects that need the same sdist and each another wheel; return them, the builder first."""
    builds = []
    for number in range(count):
        tree.wheelhouse.add_wheel(f"other{number}")
        project = tree.require(sdist, f"other{number}", path=tree.path.with_name(f"project{number}"))
        builds.append(tree.start(source=project, env=env))
        tree.wait_for_sdist(sdist)
    for build in builds[1:]:
        assert f", which is building {sdist}-1.0.tar.gz" in read_message(build, "Waiting for ")
    return builds


def runs(tree: ProbeTree) -> int:
    return tree.sdist_log.read_text().count("enter")


def rewrite(sdist: Path, *, without: str, suffix: str) -> None:
    """Replace an sdist by another that lacks a file; a ``.zip`` or a ``.tar.gz``."""
    with tarfile.open(sdist) as archive:
        found = [(member.name, archive.extractfile(member)) for member in archive]
        files = {name: file.read() for name, file in found if file is not None and not name.endswith(f"/{without}")}
    sdist.unlink()
    path = sdist.with_name(sdist.name.removesuffix(".tar.gz") + suffix)
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for name, content in files.items():
                zipped.writestr(name, content)
        return
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.slow
def test_an_sdist_that_eight_environments_need_at_the_same_time_is_built_once(tree: ProbeTree) -> None:
    tree.wheelhouse.add_sdist("slow")
    gate = tree.make_gate()
    builds = start_builds(tree, 8, "slow", {"SDIST_GATE_SLOW": str(gate.path)})
    gate.open()
    tree.finish(*builds)
    assert runs(tree) == 1
    assert len(tree.environments()) == 8
    assert all("slow 1.0" in told["distributions"] for told in tree.hooks())
    assert tree.debris() == []


@pytest.mark.slow
def test_an_sdist_whose_build_fails_fails_once_and_everybody_is_told_why(tree: ProbeTree) -> None:
    gate = tree.make_gate()
    script = f"import sys; open({str(gate.path)!r}).read(); sys.exit('the compiler is missing')"
    tree.wheelhouse.add_sdist("broken", runs=[sys.executable, "-c", script])
    builds = start_builds(tree, 3, "broken", {})
    gate.open()
    for build in builds:
        _, error = build.communicate(timeout=PATIENCE)
        assert build.returncode == 1
        assert "the compiler is missing" in error
        assert "broken" in error
    assert runs(tree) == 1
    assert tree.environments() == tree.debris() == []


@pytest.mark.slow
def test_when_the_maker_of_an_environment_is_killed_another_one_has_the_wheel(tree: ProbeTree) -> None:
    """With all that it has started: what pip has started, nobody else would end."""
    tree.wheelhouse.add_sdist("slow")
    gate = tree.make_gate()
    maker, other = start_builds(tree, 2, "slow", {"SDIST_GATE_SLOW": str(gate.path)})
    children = descendants_of(maker.pid)
    for pid in (maker.pid, *children):
        os.kill(pid, signal.SIGKILL)
    maker.wait()
    wait_until(lambda: runs(tree) == 2, "the other one's build")
    gate.open()
    tree.finish(other)
    assert len(tree.environments()) == 1


def descendants_of(pid: int) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [each for child in map(int, listed) for each in (child, *descendants_of(child))]


@pytest.mark.slow
@pytest.mark.parametrize(("without", "suffix"), [("nothing", ".zip"), ("PKG-INFO", ".tar.gz")])
def test_an_sdist_of_another_form_is_built_all_the_same(tree: ProbeTree, without: str, suffix: str) -> None:
    rewrite(tree.wheelhouse.add_sdist("odd"), without=without, suffix=suffix)
    tree.require("odd")
    tree.build()
    assert runs(tree) == 1
    assert "odd 1.0" in tree.hooks()[0]["distributions"]


@pytest.mark.slow
def test_a_requirement_of_an_sdist_that_is_an_sdist_itself_is_built_for_it(tree: ProbeTree) -> None:
    tree.wheelhouse.add_sdist("inner")
    tree.wheelhouse.add_sdist("outer", requires=["inner"])
    tree.require("outer")
    tree.build()
    lines = tree.sdist_log.read_text().splitlines()
    assert [line.split()[::2] for line in lines] == [
        ["enter", "inner"],
        ["leave", "inner"],
        ["enter", "outer"],
        ["leave", "outer"],
    ]


@pytest.mark.slow
def test_sdists_that_need_each_other_are_an_error_and_no_hang(tree: ProbeTree) -> None:
    """Two builds at once, one of which begins with the one and one with the other."""
    tree.wheelhouse.add_sdist("one", requires=["two"])
    tree.wheelhouse.add_sdist("two", requires=["one"])
    projects = [tree.require(name, path=tree.path.with_name(name)) for name in ("one", "two")]
    builds = [tree.start("--lock-timeout", "30", source=project) for project in projects]
    for build in builds:
        _, error = build.communicate(timeout=PATIENCE)
        assert build.returncode == 1
        error = " ".join(error.replace("<", "").split())
        assert "Gave up after" not in error
        assert "The build requirements form a circle: " in error
    assert not tree.sdist_log.exists()
    assert not processes_naming(tree.store)


@pytest.mark.slow
def test_processes_that_wait_for_each_other_s_environments_are_a_circle(tree: ProbeTree) -> None:
    """One makes an environment and needs another one for an sdist in it; who makes that needs the first one."""
    tree.build()
    [key] = tree.keys()
    for manifest in key.glob("*.json"):
        manifest.unlink()
    first = "1" * 24
    script = (
        "import sys\nfrom lockbuild.frontend import build\nfrom lockbuild.request import BuildRequest\n"
        f"build(BuildRequest(sys.argv[1], ('wheel',), building=({first!r}, 'sdist'), lock_timeout=20))"
    )
    wish = Wish(first, (key.name, "another sdist"))
    with DirectoryLock(str(key)), Ticket(os.path.join(builds_folder(None), first), wish):
        run = [sys.executable, "-c", script, str(tree.path)]
        build = subprocess.run(run, env=tree.environ(), capture_output=True, text=True, check=False)
    assert "CircularRequirementsError: The build requirements form a circle: the build environment for" in build.stderr
