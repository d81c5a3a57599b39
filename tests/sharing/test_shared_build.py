"""One build for all processes that ask for it at the same time: real processes, whose backend counts its runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockbuild.environments.store import Generation, generations
from lockbuild.events import Reporter
from lockbuild.request import BuildRequest
from lockbuild.sdist import read_sdist
from lockbuild.sharing.build import SharedBuild, shared_build
from machine import ADOPTER, linux_only, parent, read_message
from sharing_project import WHEEL, SharingProject, wait_until_all_wait
from wheelhouse import CACHE_COMMAND, Wheelhouse
from witness import LOCKBUILD, PATIENCE, end_all

# Each of them takes a second or more, and there are many.
pytestmark = pytest.mark.slow


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
    end_all(project.started)


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
    assert all(f"* Using {WHEEL}, which process {builder.pid} built " in error for error in errors[1:])
    assert not any("on standard" in error for error in errors[1:]), "the backend's output is the builder's"
    assert project.left_behind() == []


@pytest.mark.slow
@pytest.mark.parametrize("of_tree", [False, True], ids=["sdist", "tree"])
def test_a_build_that_fails_is_tried_again_by_each_process_that_has_waited_for_it(
    project: SharingProject, of_tree: bool
) -> None:
    options, source = (["--coalesce"], project.tree) if of_tree else ([], project.sdist)
    start = {"source": source, "gated": True, "env": {"SHARING_FAIL": "it is broken"}}
    builder = start_builder(project, *options, source=source, env=start["env"])
    waiters = [project.start(*options, **start) for _ in range(3)]  # type: ignore[arg-type]
    for waiter in waiters:
        assert f"Waiting for {builder.pid}, which is building " in read_message(waiter, "Waiting for ")
    project.gate.touch()
    for error in project.finish(status=1):
        lines = error.splitlines()
        assert lines.count("it is broken") == 1
        assert lines[-1].startswith("ERROR Backend subprocess exited when trying to invoke build_wheel: ")
    assert len(project.runs()) == 4
    assert list(project.builds.glob("*/*")) == []


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
        wait_until_all_wait(waiters, builder)
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
        project.gate.unlink()
        project.started.clear()
        shutil.rmtree(project.folder / "out0")
    # The next build clears up what the killed ones have left.
    project.gate.touch()
    project.build(gated=True)
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
    assert f"Not waiting for shared-1.0.tar.gz: this runs in process {builder.pid}, which builds it" in " ".join(
        error.split()
    )
    assert (project.folder / "nested" / WHEEL).exists()
    assert len(project.runs()) == 2


@pytest.mark.slow
def test_an_installer_whose_sdist_builds_what_its_environment_is_for_does_not_wait_for_that(
    project: SharingProject, tmp_path: Path
) -> None:
    """The wheel is built for the wish of an installer, below the process that has it locked."""
    environ = tmp_path / "environ.json"
    nested = [*LOCKBUILD, "--wheel", "--lock-timeout", "20", "-o", str(tmp_path / "nested"), str(project.sdist)]
    script = (
        "import json, os\n"
        f"environ = json.load(open({str(environ)!r}))\n"
        "environ['LOCKBUILD_HELD_LOCKS'] = os.environ['LOCKBUILD_HELD_LOCKS']\n"
        f"os.execve({sys.executable!r}, {nested!r}, environ)"
    )
    house = Wheelhouse(tmp_path / "house")
    house.folder.mkdir()
    house.add_sdist("circular", runs=[sys.executable, "-c", script])
    pyproject = project.tree / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace("requires = []", 'requires = ["circular"]'))
    project.pack()
    env = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(house.folder), "PIP_NO_CACHE_DIR": "1"}
    environ.write_text(json.dumps(project.environ() | env))
    error = project.build(env=env, status=1)
    assert "Gave up after" not in error
    assert "The build requirements form a circle: the build environment for circular " in " ".join(
        error.replace("<", "").split()
    )


@pytest.mark.slow
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_builds_in_threads_leave_the_variables_and_the_umask_of_their_process_alone(
    project: SharingProject, tmp_path: Path, installer: str
) -> None:
    other = SharingProject(tmp_path / "other", project.started)
    other.write()
    house = Wheelhouse(tmp_path / "house")
    house.folder.mkdir()
    for number, each in enumerate((project, other)):
        house.add_wheel(f"required{number}")
        pyproject = each.tree / "pyproject.toml"
        pyproject.write_text(pyproject.read_text().replace("requires = []", f'requires = ["required{number}"]'))
        each.pack()
    script = textwrap.dedent("""
        import os, re, sys, threading
        from pathlib import Path
        import lockbuild
        installer, gate, log, out, *sdists = sys.argv[1:]
        def state():
            return dict(os.environ), re.search("Umask:.*", Path("/proc/self/status").read_text()).group()
        before = state()
        seen, built, over = [], [], threading.Event()
        def sample():
            while not over.wait(0.001):
                if (now := state()) not in (before, *seen):
                    seen.append(now)
        def run(sdist, number):
            out_dir = os.path.join(out, str(number))
            built.append(lockbuild.build(sdist, ["wheel"], out_dir, installer=installer, refresh=True))
        sampler = threading.Thread(target=sample)
        sampler.start()
        builds = [threading.Thread(target=run, args=(sdist, number)) for number, sdist in enumerate(sdists)]
        for build in builds:
            build.start()
        # They overlap: the gate lets neither through before both are inside.
        while all(build.is_alive() for build in builds) and (
            not os.path.exists(log) or Path(log).read_text().count("enter") < 2
        ):
            over.wait(0.01)
        Path(gate).touch()
        for build in builds:
            build.join()
        over.set()
        sampler.join()
        assert len(built) == 2
        assert not seen, [set(environ.items()) ^ set(before[0].items()) for environ, _ in seen] + [m for _, m in seen]
        assert state() == before
    """)
    words = [
        str(project.gate),
        str(project.folder / "log"),
        str(tmp_path / "out"),
        str(project.sdist),
        str(other.sdist),
    ]
    run = [sys.executable, "-c", script, installer, *words]
    only_here = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(house.folder),
        "PIP_CONFIG_FILE": os.devnull,
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(house.folder),
        "UV_NO_CONFIG": "1",
    }
    subprocess.run(run, env=project.environ(gated=True) | only_here, check=True, timeout=2 * PATIENCE)


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
    assert f"* Using {WHEEL}, which process {project.started[-1].pid} built " in project.build("--reuse")
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


@pytest.mark.parametrize(
    "content",
    ["", "[]", '"text"', "{}", "[" * 100_000, None, "artifact", "name", "environments", "made", "future"],
)
def test_an_outcome_that_is_damaged_is_not_there(project: SharingProject, content: str | None) -> None:
    project.build()
    [outcome] = project.builds.glob("*/*/outcome.json")
    known = json.loads(outcome.read_text())
    outcome.unlink()
    wrong: dict[str, dict[str, object]] = {
        "artifact": {"artifact": f"../artifacts/{WHEEL}"},
        "name": {"artifact": "\0"},
        "environments": {"environments": [[1, 2]]},
        "made": {"made": 10**400},
        "future": {"unknown": 1},
    }
    if content is None:
        outcome.mkdir()
    elif content in wrong:
        outcome.write_text(json.dumps({**known, **wrong[content]}))
    else:
        outcome.write_text(content)
    assert f"Using {WHEEL}" not in project.build("--reuse")
    assert len(project.runs()) == 2
    assert len(list(project.builds.glob("*/*"))) == 1


def test_a_kept_wheel_that_was_changed_is_not_taken(project: SharingProject) -> None:
    project.build()
    [kept] = project.builds.glob("*/*/artifacts/*")
    kept.write_bytes(b"something else")
    project.build("--reuse")
    assert len(project.runs()) == 2


def test_a_kept_wheel_is_listed_and_removed(project: SharingProject) -> None:
    def cache(*words: str) -> str:
        return subprocess.run([*CACHE_COMMAND, *words], check=True, capture_output=True, text=True).stdout

    project.build()
    [kept] = project.builds.glob("*/*")
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


# Which outcome is recent enough


@pytest.fixture
def environment(project: SharingProject) -> Generation:
    """The kept environment that a build of the project uses; other tests have left other ones."""
    project.build(source=project.tree)
    stores = Path(os.environ["LOCKBUILD_CACHE_DIR"], "environments").iterdir()
    return max((found[0] for folder in stores if (found := generations(str(folder)))), key=Generation.last_used)


def ask(project: SharingProject, tmp_path: Path, *, of_tree: bool = False, reuse: bool = False) -> SharedBuild:
    folder = tempfile.mkdtemp(dir=tmp_path)
    source = str(project.tree) if of_tree else read_sdist(str(project.sdist), folder)
    shared = shared_build(source, "wheel", BuildRequest("unused", coalesce=True, reuse=reuse), Reporter())
    assert shared is not None
    return shared


def take(shared: SharedBuild, tmp_path: Path) -> str | None:
    with shared.lock:
        return shared.take(tempfile.mkdtemp(dir=tmp_path), 0.0)


def artifact_of(tmp_path: Path, content: str = "wheel") -> str:
    path = Path(tempfile.mkdtemp(dir=tmp_path), WHEEL)
    path.write_text(content)
    return str(path)


@pytest.mark.parametrize("of_tree", [False, True], ids=["sdist", "tree"])
def test_what_began_after_the_asking_is_taken_and_of_an_sdist_what_was_under_way(
    project: SharingProject, tmp_path: Path, environment: Generation, of_tree: bool
) -> None:
    before, builder = (ask(project, tmp_path, of_tree=of_tree) for _ in range(2))
    with builder.lock, builder.begun():
        meanwhile = ask(project, tmp_path, of_tree=of_tree)
        builder.keep(artifact_of(tmp_path), [environment])
    afterwards = ask(project, tmp_path, of_tree=of_tree)
    taken = take(before, tmp_path)
    assert taken is not None
    assert Path(taken).read_text() == "wheel"
    assert (take(meanwhile, tmp_path) is None) == of_tree
    assert take(afterwards, tmp_path) is None
    assert (take(ask(project, tmp_path, of_tree=of_tree, reuse=True), tmp_path) is None) == of_tree


def test_of_two_builds_of_a_tree_a_process_takes_that_which_began_after_it_asked(
    project: SharingProject, tmp_path: Path, environment: Generation
) -> None:
    first, second = (ask(project, tmp_path, of_tree=True) for _ in range(2))
    with first.lock, first.begun():
        waiter = ask(project, tmp_path, of_tree=True)
        first.keep(artifact_of(tmp_path, "too old"), [environment])
    with second.lock, second.begun():
        second.keep(artifact_of(tmp_path, "new"), [environment])
    taken = take(waiter, tmp_path)
    assert taken is not None
    assert Path(taken).read_text() == "new"


def test_when_the_cache_is_removed_nothing_is_kept_of_a_build_that_had_begun(
    project: SharingProject, tmp_path: Path, environment: Generation
) -> None:
    builder = ask(project, tmp_path, of_tree=True)
    with builder.lock, builder.begun():
        shutil.rmtree(builder.lock.path)
        # It cannot see that the other one has begun, and makes the folder again.
        later = ask(project, tmp_path, of_tree=True)
        assert os.path.isdir(builder.lock.path)
        builder.keep(artifact_of(tmp_path), [environment])
    assert take(later, tmp_path) is None
    assert project.left_behind() == []


def test_what_was_built_of_a_tree_is_removed_by_the_next_cleaning_up(
    project: SharingProject, tmp_path: Path, environment: Generation
) -> None:
    for of_tree in (True, False):
        builder = ask(project, tmp_path, of_tree=of_tree)
        with builder.lock, builder.begun():
            builder.keep(artifact_of(tmp_path), [environment])
    pruned = subprocess.run([*CACHE_COMMAND, "prune"], check=True, capture_output=True, text=True).stdout
    assert "Removed 1 built wheel; 1 left\n" in pruned


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


def test_builds_of_one_tree_that_do_not_ask_for_it_are_not_shared(project: SharingProject) -> None:
    builder = start_builder(project, "--coalesce", source=project.tree)
    other = project.start(source=project.tree, gated=True)
    project.wait_for_run(2)
    project.gate.touch()
    project.finish(builder, other)


def test_without_isolation_a_build_that_was_to_be_shared_says_that_it_is_not(project: SharingProject) -> None:
    error = project.build("--coalesce", "--no-isolation", source=project.tree)
    assert "WARNING Not sharing this build with others: with --no-isolation two builds may" in error
