"""One build for all who ask for the same one at the same time: with real processes, whose backend counts its runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from build import BuildException

from lockbuild.errors import CircularRequirementsError
from lockbuild.events import Reporter
from lockbuild.frontend import build_shared_wheel
from lockbuild.request import BuildRequest
from lockbuild.sharing.build import SharedBuild, shared_build
from lockbuild.sharing.tickets import Ticket, read_outcome
from machine import ADOPTER, linux_only, parent, read_message
from sharing_project import WHEEL, SharingProject, wait_until_all_wait
from wheelhouse import CACHE_COMMAND
from witness import LOCKBUILD, PATIENCE, wait_until


@pytest.fixture(scope="module")
def common_cache() -> Iterator[str]:
    """One cache folder for the projects here, all of which need the same build environment."""
    path = tempfile.mkdtemp(prefix="lockbuild-test-cache-")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, common_cache: str) -> Iterator[SharingProject]:
    monkeypatch.setenv("LOCKBUILD_CACHE_DIR", common_cache)
    # What an earlier test has left is not what this one looks at.
    shutil.rmtree(Path(common_cache, "builds"), ignore_errors=True)
    project = SharingProject(tmp_path / "project")
    project.write()
    yield project
    for process in project.started:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=PATIENCE)


def start_builder(project: SharingProject, *options: str, **more: object) -> subprocess.Popen[str]:
    """Start a build and wait until its backend is at the gate."""
    before = len(project.runs())
    builder = project.start(*options, gated=True, **more)  # type: ignore[arg-type]
    project.wait_for_run(before + 1)
    return builder


# One build for many


@pytest.mark.slow
def test_eight_requests_of_one_sdist_run_its_backend_once_and_have_the_same_wheel(project: SharingProject) -> None:
    builder = start_builder(project)
    waiters = [project.start(gated=True) for _ in range(7)]
    wait_until_all_wait(waiters, builder)
    project.gate.touch()
    errors = project.finish()
    assert len(project.runs()) == 1
    assert len({project.wheel(process).read_bytes() for process in project.started}) == 1
    assert all(f"* Using {WHEEL}, which process {builder.pid} has built" in error for error in errors[1:])
    assert not any("on standard" in error for error in errors[1:]), "the backend's output is the builder's"
    assert project.left_behind() == []


@pytest.mark.slow
def test_eight_requests_of_an_sdist_that_fails_run_its_backend_once_and_are_eight_clear_errors(
    project: SharingProject,
) -> None:
    builder = start_builder(project, env={"SHARING_FAIL": "it is broken"})
    waiters = [project.start(gated=True, env={"SHARING_FAIL": "it is broken"}) for _ in range(7)]
    wait_until_all_wait(waiters, builder)
    project.gate.touch()
    errors = project.finish(status=1)
    assert len(project.runs()) == 1
    failure = "ERROR Backend subprocess exited when trying to invoke build_wheel"
    assert errors[0].splitlines()[-1] == failure
    for error in errors[1:]:
        assert [line for line in error.splitlines() if line.startswith("< ")] == [
            "< on standard output False",
            "< on standard error False",
            "< it is broken",
        ]
        note = f"(in process {builder.pid}, which was building shared-1.0.tar.gz for this one, too)"
        assert error.splitlines()[-1] == f"{failure} {note}"
    # The failure is nobody's who comes later.
    project.build(gated=True, env={"SHARING_FAIL": "it is broken"}, status=1)
    assert len(project.runs()) == 2
    assert project.left_behind() == []


def test_the_output_of_the_build_is_there_for_a_waiter_with_v(project: SharingProject) -> None:
    builder = start_builder(project)
    waiter = project.start("-v", gated=True)
    wait_until_all_wait([waiter], builder)
    project.gate.touch()
    assert builder.stdout is not None
    assert builder.stderr is not None
    # The builder's two streams are still two.
    assert "on standard output False\n" in builder.stdout.read()
    assert "on standard error False\n" in builder.stderr.read()
    assert builder.wait(PATIENCE) == 0
    [error] = project.finish(waiter)
    assert {"< on standard output False", "< on standard error False"} <= set(error.splitlines())


def test_a_builder_at_a_terminal_shows_its_hooks_one_and_its_waiter_the_output(project: SharingProject) -> None:
    terminal, end = os.openpty()
    builder = start_builder(project, stdout=end, stderr=end, env={"SHARING_FAIL": "broken", "NO_COLOR": "1"})
    os.close(end)
    waiter = project.start(gated=True, env={"SHARING_FAIL": "broken"})
    wait_until_all_wait([waiter], builder)
    project.gate.touch()
    assert builder.wait(PATIENCE) == 1
    seen = os.read(terminal, 1 << 16).decode().splitlines()
    os.close(terminal)
    told = ["on standard output True", "on standard error True", "broken"]
    assert [line for line in seen if line in told] == told
    [error] = project.finish(waiter, status=1)
    assert [line for line in error.splitlines() if line.startswith("< ")] == [f"< {line}" for line in told]


def test_a_wheel_that_is_changed_in_one_out_dir_is_as_it_was_in_the_others(project: SharingProject) -> None:
    builder = start_builder(project)
    waiters = [project.start(gated=True) for _ in range(2)]
    wait_until_all_wait(waiters, builder)
    project.gate.touch()
    project.finish()
    content = project.wheel(builder).read_bytes()
    for process in (builder, waiters[0]):
        with project.wheel(process).open("r+b") as file:
            file.write(b"changed in place")
    assert project.wheel(waiters[1]).read_bytes() == content
    project.build("--reuse", gated=True)
    assert project.wheel(project.started[-1]).read_bytes() == content


# Killed and interrupted


@pytest.mark.slow
def test_a_builder_that_is_killed_hands_over_to_one_waiter(project: SharingProject) -> None:
    builder = start_builder(project)
    waiters = [project.start(gated=True) for _ in range(3)]
    wait_until_all_wait(waiters, builder)
    builder.kill()
    project.wait_for_run(2)
    project.gate.touch()
    project.finish(*waiters)
    assert len(project.runs()) == 2
    assert len({project.wheel(process).read_bytes() for process in waiters}) == 1
    assert not project.wheel(builder).exists()


@linux_only
def test_nobody_takes_over_before_the_hook_of_a_killed_builder_has_ended(project: SharingProject) -> None:
    pid_file = project.folder / "builder"
    env = {"PID_FILE": str(pid_file)}
    start_builder(project, env=env, command=(sys.executable, "-c", ADOPTER, *LOCKBUILD))
    builder = int(pid_file.read_text())
    waiter = project.start(gated=True, env=env)
    wait_until_all_wait([waiter], builder)
    [hook] = project.runs()
    host = parent(hook)
    # The host would end the hook at once. Stopped, it cannot; it and the hook have inherited the lock.
    os.kill(host, signal.SIGSTOP)
    try:
        os.kill(builder, signal.SIGKILL)
        line = read_message(waiter, "Waiting for ")
        assert line in [f"* Waiting for {pid}, which is building shared-1.0.tar.gz" for pid in (host, hook)]
        assert project.runs() == [hook]
    finally:
        os.kill(host, signal.SIGCONT)
    project.wait_for_run(2)
    project.gate.touch()
    project.finish(waiter)


@pytest.mark.slow
def test_a_builder_that_is_killed_at_any_moment_of_its_end_leaves_whole_wheels_or_none(project: SharingProject) -> None:
    for number in range(8):
        builder = start_builder(project)
        waiters = [project.start(gated=True) for _ in range(2)]
        wait_until(lambda: len(project.tickets()) == 2, "their tickets")
        before = len(project.runs())
        project.gate.touch()
        project.wait_for_run(before, "leave")
        # What follows takes a few milliseconds. Where it is cut off is chance.
        time.sleep(number / 200)
        builder.kill()
        project.finish(*waiters)
        assert len({project.wheel(process).read_bytes() for process in waiters}) == 1
        assert project.content(waiters[0], "shared.txt") == "first"
        assert len(project.runs()) - before in (0, 1)
        # The next builder clears up what the killed one has left.
        project.gate.unlink()
        project.started.clear()
        shutil.rmtree(project.folder / "out0")
    project.build()
    assert project.left_behind() == []


def test_a_builder_that_is_interrupted_hands_over_and_shares_no_failure(project: SharingProject) -> None:
    builder = start_builder(project)
    waiter = project.start(gated=True)
    wait_until_all_wait([waiter], builder)
    builder.send_signal(signal.SIGINT)
    assert builder.wait(PATIENCE) == 130
    project.wait_for_run(2)
    project.gate.touch()
    project.finish(waiter)


def test_waiters_that_give_up_are_interrupted_or_killed_leave_nothing_and_disturb_nobody(
    project: SharingProject,
) -> None:
    builder = start_builder(project)
    interrupted, killed, patient = (project.start(gated=True) for _ in range(3))
    wait_until_all_wait([interrupted, killed, patient], builder)
    impatient = project.start("--lock-timeout", "0.2", gated=True)
    assert impatient.wait(PATIENCE) == 75
    assert impatient.stderr is not None
    assert "Gave up after 0.2 s: the lock on shared-1.0.tar.gz" in impatient.stderr.read()
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(PATIENCE) == 130
    killed.kill()
    killed.wait()
    assert project.tickets() == sorted(str(process.pid) for process in (killed, patient))
    project.gate.touch()
    project.finish(builder, patient)
    assert len(project.runs()) == 1
    assert project.left_behind() == []


def test_a_hook_that_builds_its_own_sdist_does_not_wait_for_itself(project: SharingProject) -> None:
    nested = [*LOCKBUILD, "--wheel", "-v", "-o", str(project.folder / "nested"), str(project.sdist)]
    environ = project.folder / "environ.json"
    # With the very environment that the outer build was started in, and so the same key.
    script = (
        "import json, os, sys\n"
        f"environ = json.load(open({str(environ)!r}))\n"
        "environ['LOCKBUILD_HELD_LOCKS'] = os.environ['LOCKBUILD_HELD_LOCKS']\n"
        f"os.execve({sys.executable!r}, {nested!r}, environ)"
    )
    run = {"SHARING_RUN": json.dumps([sys.executable, "-c", script])}
    environ.write_text(json.dumps(project.environ() | run))
    builder = project.start(env=run)
    [error] = project.finish(builder)
    assert f"Not waiting for shared-1.0.tar.gz: process {builder.pid}, which this runs in, builds it" in " ".join(
        error.split()
    )
    assert (project.folder / "nested" / WHEEL).exists()
    assert len(project.runs()) == 2


# What is not shared


@pytest.mark.slow
def test_builds_with_different_keys_run_in_parallel(project: SharingProject) -> None:
    different: list[dict[str, object]] = [
        {},
        {"options": ["-C", "key=value"]},
        {"env": {"SOURCE_DATE_EPOCH": "1700000000"}},
        {"env": {"CFLAGS": "-O1"}},
        {"umask": 0o077},
        {"options": ["--no-cache"]},
    ]
    for each in different:
        options = each.pop("options", [])
        assert isinstance(options, list)
        project.start(*options, gated=True, **each)  # type: ignore[arg-type]
    # All of them are inside: the gate has not been opened.
    project.wait_for_run(len(different))
    project.gate.touch()
    project.finish()
    assert len({project.content(process) for process in project.started}) == len(different)


def test_a_later_build_builds_again_and_with_reuse_takes_what_was_built(
    project: SharingProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.build()
    project.build()
    assert len(project.runs()) == 2
    assert "* Using shared-1.0-py3-none-any.whl, which was built " in project.build("--reuse")
    monkeypatch.setenv("LOCKBUILD_REUSE", "1")
    project.build()
    assert len(project.runs()) == 2
    first, second, third, fourth = map(project.content, project.started)
    assert second == third == fourth != first
    project.build("--no-reuse")
    project.build("-C", "key=value")
    assert len(project.runs()) == 4
    # Another environment could give another wheel.
    project.build("--refresh")
    project.build()
    assert len(project.runs()) == 5


def test_a_kept_wheel_that_was_changed_is_not_taken(project: SharingProject) -> None:
    project.build()
    [kept] = project.builds.glob("*/kept/*/artifacts/*")
    kept.write_bytes(b"something else")
    project.build("--reuse")
    assert len(project.runs()) == 2


def test_a_kept_wheel_is_listed_and_removed(project: SharingProject) -> None:
    def cache(*words: str) -> str:
        return subprocess.run([*CACHE_COMMAND, *words], check=True, capture_output=True, text=True).stdout

    project.build()
    [kept] = project.builds.glob("*/kept/*")
    listed = cache("list")
    assert f"{WHEEL}  0.0 MiB  " in listed
    assert str(kept / "artifacts" / WHEEL) in listed
    assert "Removed 0 built wheels; 1 left\n" in cache("prune")
    moment = kept.stat().st_mtime - 31 * 86400
    os.utime(kept / "outcome.json", (moment, moment))
    assert "Removed 1 built wheel; 0 left\n" in cache("prune")
    assert list(project.builds.iterdir()) == []


def test_a_value_of_the_variable_that_is_no_switch_is_an_error(project: SharingProject) -> None:
    error = project.build(env={"LOCKBUILD_REUSE": "perhaps"}, status=1)
    assert error == "ERROR LOCKBUILD_REUSE must be 1 or 0, not 'perhaps'\n"


# Builds of one tree


@pytest.mark.slow
def test_ten_builds_of_one_tree_become_two_when_they_are_asked_to(project: SharingProject) -> None:
    builder = start_builder(project, "--coalesce", source=project.tree)
    (project.tree / "source.txt").write_text("second")
    waiters = [project.start("--coalesce", source=project.tree, gated=True) for _ in range(9)]
    for waiter in waiters:
        assert f"Waiting for {builder.pid}, which is building the wheel of {project.tree}" in read_message(
            waiter, "Waiting for "
        )
    project.gate.touch()
    project.finish()
    assert len(project.runs()) == 2
    assert len({project.wheel(process).read_bytes() for process in waiters}) == 1
    assert project.content(builder, "shared.txt") == "first"
    assert project.content(waiters[0], "shared.txt") == "second"


@pytest.mark.slow
def test_an_edit_made_just_before_a_build_was_started_is_in_its_wheel(project: SharingProject) -> None:
    rounds = int(os.environ.get("LOCKBUILD_TEST_EDITS", "10"))
    # Builds follow each other closely, and each edit comes at another moment of the build that runs then.
    for number in range(rounds):
        (project.tree / "source.txt").write_text(str(number))
        project.start("--coalesce", source=project.tree)
        if number % 10 >= 6:
            project.wait_for_run(len(project.runs()) + 1)
    project.finish()
    assert len(project.runs()) < rounds
    for number, process in enumerate(project.started):
        assert int(project.content(process, "shared.txt")) >= number


def test_of_a_tree_an_error_before_the_first_hook_is_nobody_s_who_came_after_the_build_began(
    project: SharingProject, tmp_path: Path
) -> None:
    request = BuildRequest(str(project.tree), coalesce=True)

    def shared() -> SharedBuild:
        made = shared_build(str(project.tree), "wheel", request, Reporter(), str(tmp_path), 0.0)
        assert made is not None
        return made

    folder = shared().lock.path
    with Ticket(folder) as earlier, contextlib.ExitStack() as stack:
        with pytest.raises(BuildException), shared():  # noqa: PT012 - the context is what is tested
            later = stack.enter_context(Ticket(folder))
            raise BuildException("no environment")
        told = read_outcome(earlier.mailbox)
        assert told is not None
        assert told.error == "no environment"
        assert read_outcome(later.mailbox) is None


def test_builds_of_one_tree_that_do_not_ask_for_it_are_not_shared(project: SharingProject) -> None:
    builder = start_builder(project, "--coalesce", source=project.tree)
    other = project.start(source=project.tree, gated=True)
    project.wait_for_run(2)
    project.gate.touch()
    project.finish(builder, other)


def test_without_isolation_a_build_that_was_to_be_shared_says_that_it_is_not(project: SharingProject) -> None:
    error = project.build("--coalesce", "--no-isolation", source=project.tree)
    assert "WARNING Not sharing this build with others: with --no-isolation nobody knows" in error


# Wheels for build environments


def test_an_sdist_that_a_build_environment_needs_is_shared_too(project: SharingProject) -> None:
    builder = start_builder(project)
    script = (
        "import sys\nfrom lockbuild.frontend import build_shared_wheel\nfrom lockbuild.request import BuildRequest\n"
        "from lockbuild.console import Console\n"
        "print(build_shared_wheel(sys.argv[1], sys.argv[2], BuildRequest('unused'), Console(0)))"
    )
    waiter = subprocess.Popen(
        [sys.executable, "-c", script, str(project.sdist), str(project.folder / "wheels")],
        env=project.environ(gated=True),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    project.started.append(waiter)
    wait_until_all_wait([waiter], builder)
    project.gate.touch()
    out, _ = waiter.communicate(timeout=PATIENCE)
    assert out == f"{project.folder / 'wheels' / WHEEL}\n"
    project.finish(builder)
    assert Path(out.strip()).read_bytes() == project.wheel(builder).read_bytes()


def test_an_sdist_that_is_needed_to_build_itself_is_an_error(project: SharingProject) -> None:
    digest = hashlib.sha256(project.sdist.read_bytes()).hexdigest()
    request = BuildRequest("unused", building=("0" * 64, digest))
    with pytest.raises(CircularRequirementsError, match=r"form a circle: shared-1.0.tar.gz is needed"):
        build_shared_wheel(str(project.sdist), str(project.folder / "wheels"), request, Reporter())


def test_two_processes_whose_sdists_need_each_other_do_not_wait_for_ever(
    project: SharingProject, tmp_path: Path
) -> None:
    other = SharingProject(tmp_path / "other", project.started)
    other.write()
    # What making a build environment comes to: while the first sdist is being built, the second one is asked for.
    script = """
import sys
from pathlib import Path
from lockbuild.errors import CircularRequirementsError
from lockbuild.events import Reporter
from lockbuild.frontend import build_shared_wheel
from lockbuild.request import BuildRequest
from lockbuild.sharing.build import SharedBuild, shared_build
from lockbuild.sharing.tickets import Ticket, read_outcome
from lockbuild.sdist import read_sdist
from lockbuild.sharing.build import shared_build
from witness import wait_until
ours, theirs, folder, mine, other = sys.argv[1:]
Path(folder).mkdir()
sdist = read_sdist(ours, folder)
request = BuildRequest("unused", building=(sdist.sha256,))
with shared_build(sdist, "wheel", request, Reporter(), folder, 0.0) as shared:
    assert shared.delivery is None
    Path(mine).touch()
    wait_until(Path(other).exists, "the other one")
    build_shared_wheel(theirs, folder, request, Reporter())
"""
    processes = []
    for number, (ours, theirs) in enumerate(((project, other), (other, project))):
        words = [str(ours.sdist), str(theirs.sdist), *(str(tmp_path / name) for name in (f"work{number}", f"{number}"))]
        process = subprocess.Popen(
            [sys.executable, "-c", script, *words, str(tmp_path / str(1 - number))],
            # The same for both, as everything in their keys has to be.
            env=project.environ() | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
    project.started += processes
    errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    assert any("CircularRequirementsError: The build requirements form a circle: shared-1.0" in each for each in errors)
