"""The slots of a run: those of a jobserver, its own or that of an outer make."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from monorepo import Monorepo
from witness import PATIENCE, end_all, wait_until

# What a make with many jobs does: it takes all the slots that are free.
_TAKE_ALL = """import os, re
    fifo = re.search("fifo:(.+)", os.environ["MAKEFLAGS"])[1]
    descriptor = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    taken = b""
    while True:
        try:
            taken += os.read(descriptor, 1)
        except BlockingIOError:
            break
    open("taken", "w").write(str(len(taken)))
"""
_GIVE_BACK = "    os.write(descriptor, taken)\n"

# A compiler that tells when it begins and ends, and that ends when the test lets it.
_COMPILER = """#!/bin/sh
echo "enter $1" >>"$MONOREPO_LOG.compilers"
cat {gate}
echo "leave $1" >>"$MONOREPO_LOG.compilers"
touch "$1"
"""
_COMPILERS = 6


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Monorepo]:
    monkeypatch.delenv("MAKEFLAGS", raising=False)
    folder = tmp_path / "repo"
    folder.mkdir()
    repo = Monorepo(folder)
    _use_make(repo, monkeypatch, "GNU Make 4.4.1")
    yield repo
    end_all(repo.started)


def _use_make(repo: Monorepo, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    folder = repo.folder / "bin"
    folder.mkdir(exist_ok=True)
    for name in ("make", "gmake"):
        (folder / name).write_text(f"#!/bin/sh\necho '{version}'\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join((str(folder), os.environ["PATH"])))


def _taken(repo: Monorepo, name: str) -> str:
    return (repo.folder / name / "taken").read_text()


def test_a_build_that_is_alone_may_use_all_other_slots(repo: Monorepo) -> None:
    repo.add("one", act=_TAKE_ALL + _GIVE_BACK)
    repo.build("-j3", "one")
    assert _taken(repo, "one") == "2"


def test_builds_that_run_leave_no_slot_for_more(repo: Monorepo) -> None:
    ready, gate = repo.folder / "ready", repo.folder / "gate"
    os.mkfifo(ready)
    os.mkfifo(gate)
    repo.add(
        "one", act=f"open({str(ready)!r}).close()\n    {_TAKE_ALL}{_GIVE_BACK}    open({str(gate)!r}, 'w').close()"
    )
    repo.add("two", act=f"open({str(ready)!r}, 'w').close(); open({str(gate)!r}).close()")
    repo.build("-j2", "one", "two")
    assert _taken(repo, "one") == "0"


def test_slots_that_a_killed_compiler_has_not_given_back_are_free_again(repo: Monorepo) -> None:
    repo.add("one", act=_TAKE_ALL)
    repo.add("two", requires=["one"], act=_TAKE_ALL)
    repo.build("-j3", "one", "two")
    assert (_taken(repo, "one"), _taken(repo, "two")) == ("2", "2")


def test_a_run_below_a_make_uses_the_slots_of_that(repo: Monorepo, monkeypatch: pytest.MonkeyPatch) -> None:
    outer, gate = repo.folder / "outer", repo.folder / "gate"
    os.mkfifo(outer)
    os.mkfifo(gate)
    descriptor = os.open(outer, os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(descriptor, b"x")
        monkeypatch.setenv("MAKEFLAGS", f" -j2 --jobserver-auth=fifo:{outer}")
        for name in ("one", "two", "three"):
            repo.add(name, act=f"open({str(gate)!r}).read()")
        process = repo.start("-w", "-j3", "-o", str(repo.out_dir), "one", "two", "three")
        # One slot is the run's own, the other one is in the FIFO.
        wait_until(lambda: len(repo.events()) == 2, "two builds are in their hooks")
        with pytest.raises(BlockingIOError):
            os.read(descriptor, 1)
        while process.poll() is None:
            wait_until(
                lambda: _open_if_read(gate) or process.poll() is not None, "a build reads the gate, or none is left"
            )
        assert process.returncode == 0, process.communicate(timeout=PATIENCE)
        assert _most_at_once(repo.events()) == 2
        assert os.read(descriptor, 2) == b"x"
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("outer", "slots"), [(False, 3), (True, 2)], ids=["our own slots", "those of an outer make"])
def test_all_ninjas_of_a_run_together_start_no_more_compilers_than_there_are_slots(
    repo: Monorepo, monkeypatch: pytest.MonkeyPatch, outer: bool, slots: int
) -> None:
    ninja = os.path.join(pytest.importorskip("ninja").BIN_DIR, "ninja")
    gate, compiler, fifo = repo.folder / "gate", repo.folder / "compiler", repo.folder / "fifo"
    os.mkfifo(gate)
    compiler.write_text(_COMPILER.format(gate=shlex.quote(str(gate))))
    compiler.chmod(0o755)
    names = ["one", "two"]
    for name in names:
        tree = repo.add(name, act=f"import subprocess; subprocess.run([{ninja!r}], check=True)")
        targets = "".join(f"build {name}{number}: compile\n" for number in range(_COMPILERS))
        (tree / "build.ninja").write_text(f"rule compile\n  command = {compiler} $out\n{targets}")
    os.mkfifo(fifo)
    descriptor = os.open(fifo, os.O_RDWR)
    os.write(descriptor, b"+" * (slots - 1))
    if outer:
        monkeypatch.setenv("MAKEFLAGS", f" -j{slots} --jobserver-auth=fifo:{fifo}")
    log = repo.folder / "log.compilers"
    try:
        process = repo.start("-w", f"-j{slots}", "-o", str(repo.out_dir), *names)
        wait_until(lambda: _compilers(log) >= slots and all(name in log.read_text() for name in names), "both compile")
        while process.poll() is None:
            wait_until(lambda: _open_if_read(gate) or process.poll() is not None, "a compiler runs, or none is left")
        assert process.returncode == 0, process.communicate(timeout=PATIENCE)
    finally:
        os.close(descriptor)
    events = log.read_text().splitlines()
    assert len(events) == 2 * len(names) * _COMPILERS
    assert _most_at_once(events) == slots


@pytest.mark.parametrize("flags", [" -j2 --jobserver-auth=fifo:/no/such/fifo", "k -j8 --jobserver-auth=-2,-2", "-j"])
def test_an_outer_jobserver_that_cannot_be_used_is_replaced(
    repo: Monorepo, monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    monkeypatch.setenv("MAKEFLAGS", flags)
    repo.add("one", act=_TAKE_ALL + _GIVE_BACK + "    open('flags', 'w').write(os.environ['MAKEFLAGS'])\n")
    repo.build("-j3", "one")
    assert _taken(repo, "one") == "2"
    seen = (repo.folder / "one" / "flags").read_text()
    assert seen.startswith("k") == flags.startswith("k")
    assert seen.count("--jobserver-auth") == 1
    assert " -j3 " in seen


def test_a_make_that_would_fail_at_a_fifo_is_not_told_of_one(repo: Monorepo, monkeypatch: pytest.MonkeyPatch) -> None:
    _use_make(repo, monkeypatch, "GNU Make 4.3")
    repo.add("one", act="import os; open('flags', 'w').write(os.environ.get('MAKEFLAGS', 'none'))")
    repo.build("-j2", "one")
    assert (repo.folder / "one" / "flags").read_text() == "none"


def _open_if_read(gate: Path) -> bool:
    """Let the processes that read a FIFO go on; false if there are none."""
    try:
        os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _compilers(log: Path) -> int:
    return log.read_text().count("enter") if log.exists() else 0


def _most_at_once(events: list[str]) -> int:
    running = most = 0
    for event in events:
        running += 1 if event.startswith("enter") else -1
        most = max(most, running)
    return most
