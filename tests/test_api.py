"""The Python API: builds in threads and in event loops, metadata, and what an import costs."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import hashlib
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import build as build_library
import build.util
import pytest

import lockbuild
from lockbuild import BuildRequest, Reporter, SourceTreeLock
from lockbuild.build_process import BuildProcess
from lockbuild.events import Holder
from lockbuild.processes import descendants
from machine import second_tree, wait_until_it_waits
from wheelhouse import Wheelhouse, processes_naming
from witness import LOCKBUILD, PATIENCE, Gate, WitnessTree, wait_until


class Recorder(Reporter):
    """Remembers what it has heard, and in which threads."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.threads: set[int] = set()

    def log(self, message: str, kind: tuple[str, ...] | None = None) -> None:  # noqa: ARG002
        self.heard.append(message)
        self.threads.add(threading.get_ident())

    def waiting(self, wait: lockbuild.LockWait) -> None:
        self.heard.append(f"waiting for {wait.holder.pid if wait.holder else None}")


@pytest.fixture
def tree(witness_tree: WitnessTree, monkeypatch: pytest.MonkeyPatch) -> WitnessTree:
    """A witness tree that is built by this process."""
    monkeypatch.setenv("WITNESS_LOG", str(witness_tree.log_file))
    return witness_tree


async def until(condition: Callable[[], object], build: asyncio.Task[Any]) -> None:
    """Wait, while the event loop runs on, for something that a build brings about."""
    while not condition():
        assert not build.done(), build.result()
        await asyncio.sleep(0.01)


def let_through(gate: Gate) -> bool:
    """Let through those who wait at a gate, if somebody does."""
    with contextlib.suppress(OSError):
        os.close(os.open(gate.path, os.O_WRONLY | os.O_NONBLOCK))
    return True


def run(script: str, *arguments: str) -> str:
    finished = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_import_loads_nothing_until_a_name_is_used() -> None:
    script = "import sys; before = set(sys.modules); import lockbuild; print(sorted(set(sys.modules) - before)); "
    assert run(script) == "['__future__', 'lockbuild']\n"
    used = run(f"{script} lockbuild.SourceTreeLock; print([m for m in ('build', 'asyncio') if m in sys.modules])")
    assert used.endswith("[]\n")


def test_every_name_is_there_and_typed_and_listed() -> None:
    for name in lockbuild.__all__:
        assert getattr(lockbuild, name) is not None
        assert name in dir(lockbuild)
    assert not hasattr(lockbuild, "no_such_name")
    source = ast.parse(Path(lockbuild.__file__).read_text())
    imported = [node for node in ast.walk(source) if isinstance(node, ast.ImportFrom) and node.module != "__future__"]
    typed = [alias.name for node in imported for alias in node.names if alias.name != "import_module"]
    assert sorted(typed) == sorted(lockbuild.__all__)


def test_the_options_are_the_fields_of_a_request() -> None:
    assert (
        set(BuildRequest._fields)
        # What a build is for is said by builds for build environments alone.
        == {"source", "distributions", "out_dir"} | lockbuild.BuildOptions.__annotations__.keys()
    )


def test_a_build_returns_what_it_has_put_into_the_out_dir(tree: WitnessTree) -> None:
    recorder = Recorder()
    result = lockbuild.build(tree.path, ["sdist", "wheel"], tree.out_dir, isolation=False, reporter=recorder)
    assert [(each.kind, each.name) for each in result.artifacts] == [
        ("sdist", "witness-1.0.tar.gz"),
        ("wheel", "witness-1.0-py3-none-any.whl"),
    ]
    for artifact in result.artifacts:
        content = Path(artifact.path).read_bytes()
        assert artifact.path == str(tree.out_dir / artifact.name)
        assert (artifact.size, artifact.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert recorder.heard[0] == "Getting build dependencies for sdist..."
    assert recorder.threads == {threading.get_ident()}
    steps = [timing.step for timing in result.timings]
    assert [step for step in steps if step.startswith("build_")] == ["build_sdist", "build_wheel"]
    assert all(timing.seconds >= 0 for timing in result.timings)


def test_a_request_can_be_built_and_its_fields_replaced(tree: WitnessTree) -> None:
    request = BuildRequest(str(tree.path), ("sdist",), isolation=False)
    assert lockbuild.build(request).artifacts[0].path == str(tree.path / "dist" / "witness-1.0.tar.gz")
    [artifact] = lockbuild.build(request, ["wheel"], tree.out_dir, lock="never").artifacts
    assert artifact.path == str(tree.out_dir / "witness-1.0-py3-none-any.whl")


def test_an_editable_wheel_is_a_kind_of_its_own(tree: WitnessTree) -> None:
    for build_it in (lockbuild.build, lambda *args, **named: asyncio.run(lockbuild.async_build(*args, **named))):
        [sdist, editable] = build_it(tree.path, ["sdist", "editable"], tree.out_dir, isolation=False).artifacts
        assert (sdist.kind, editable.kind) == ("sdist", "editable")
        assert editable.name == "witness-1.0-py3-none-any.whl"
        with pytest.raises(lockbuild.SdistError, match="no source tree"):
            build_it(sdist.path, ["editable"], isolation=False)
    assert len(tree.entered("get_requires_for_build_editable")) == 2
    tree.assert_no_overlap()


@pytest.mark.slow
def test_an_editable_wheel_of_setuptools_leads_to_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, house = tmp_path / "project", tmp_path / "wheelhouse"
    (project / "src" / "demo").mkdir(parents=True)
    house.mkdir()
    (project / "src" / "demo" / "__init__.py").touch()
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "demo"\nversion = "1.0"\n'
    )
    Wheelhouse(house).add_installed("setuptools")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(house), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    [artifact] = lockbuild.build(project, ["editable"], tmp_path / "out").artifacts
    with zipfile.ZipFile(artifact.path) as wheel:
        [link] = [name for name in wheel.namelist() if name.endswith(".pth")]
        assert wheel.read(link).decode().strip() == str(project / "src")


def test_a_backend_without_the_hook_for_editable_wheels_is_named(tree: WitnessTree) -> None:
    with (tree.path / "witness_backend.py").open("a") as file:
        file.write("\ndel build_editable\n")
    with pytest.raises(build_library.BuildBackendException, match="'witness_backend' has no hook build_editable"):
        lockbuild.build(tree.path, ["editable"], tree.out_dir, isolation=False)


def test_what_is_to_be_built_is_checked(tree: WitnessTree) -> None:
    with pytest.raises(ValueError, match="sdist, wheel, editable, not weel"):
        lockbuild.build(tree.path, ["weel"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"\['wheel'\]"):
        lockbuild.build(tree.path, "wheel")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no option lock_timout"):
        lockbuild.build(tree.path, lock_timout=3)  # type: ignore[call-arg]
    assert not tree.log()


def state_of_the_process() -> tuple[object, ...]:
    umask = os.umask(0o22)
    os.umask(umask)
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    return handlers, dict(os.environ), os.getcwd(), umask, list(warnings.filters), warnings.showwarning, sys.path[:]


def test_builds_in_threads_go_on_at_once_in_two_trees_and_leave_the_process_as_it_is(
    tree: WitnessTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = second_tree(tree, tmp_path / "other")
    gate = tree.make_gate()
    monkeypatch.setenv("WITNESS_GATE", str(gate.path))
    before = state_of_the_process()
    with ThreadPoolExecutor(2) as pool:
        builds = [
            pool.submit(lockbuild.build, each.path, ["wheel"], tree.out_dir / str(number), isolation=False)
            for number, each in enumerate((tree, other))
        ]
        # Both are inside, and nobody has been let out.
        tree.wait_for_entry("build_wheel", 2)
        assert state_of_the_process() == before
        wait_until(lambda: let_through(gate) and all(build.done() for build in builds), "the end of both")
        assert [build.result().artifacts[0].kind for build in builds] == ["wheel", "wheel"]
    assert state_of_the_process() == before


def test_builds_of_one_tree_in_threads_wait_for_each_other(tree: WitnessTree) -> None:
    with ThreadPoolExecutor(4) as pool:
        builds = [pool.submit(lockbuild.build, tree.path, ["wheel"], tree.out_dir, isolation=False) for _ in range(4)]
        for build in builds:
            build.result()
    assert len(tree.entered("build_wheel")) == 4
    tree.assert_no_overlap()


def test_an_awaited_build_gives_the_same_and_tells_the_reporter_in_the_event_loop(tree: WitnessTree) -> None:
    options: dict[str, Any] = {"isolation": False, "lock_timeout": 60, "cache_dir": tree.control / "cache"}
    expected, awaited = Recorder(), Recorder()
    result = lockbuild.build(tree.path, ["wheel"], tree.control / "sync", reporter=expected, **options)
    other = asyncio.run(
        lockbuild.async_build(tree.path, ["wheel"], tree.control / "async", reporter=awaited, **options)
    )
    assert awaited.heard == expected.heard
    assert awaited.threads == {threading.get_ident()}
    [artifact], [same] = result.artifacts, other.artifacts
    assert (same.name, same.kind) == (artifact.name, artifact.kind)
    assert same.path == str(tree.control / "async" / same.name)
    assert same.sha256 == hashlib.sha256(Path(same.path).read_bytes()).hexdigest()


def test_the_event_loop_runs_on_while_two_builds_do(
    tree: WitnessTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = second_tree(tree, tmp_path / "other")
    gate = tree.make_gate()
    monkeypatch.setenv("WITNESS_GATE", str(gate.path))

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            builds = [
                group.create_task(lockbuild.async_build(each.path, ["wheel"], tree.out_dir, isolation=False))
                for each in (tree, other)
            ]
            # Nobody but this coroutine opens the gate.
            await until(lambda: len(tree.entered("build_wheel")) == 2, builds[0])
            while let_through(gate) and not all(build.done() for build in builds):
                await asyncio.sleep(0.01)

    # If a build blocks the loop: it has to go on for the test to end, and to fail.
    ended = threading.Event()
    rescued: list[bool] = []

    def let_all_through() -> None:
        while not ended.wait(0.01 if rescued else PATIENCE):
            rescued.append(let_through(gate))

    rescue = threading.Thread(target=let_all_through)
    rescue.start()
    try:
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
    finally:
        ended.set()
        rescue.join()
    assert not rescued


@pytest.mark.parametrize("cancellations", [1, 3])
def test_a_cancelled_build_has_ended_its_backend_and_freed_its_lock(
    tree: WitnessTree, monkeypatch: pytest.MonkeyPatch, cancellations: int
) -> None:
    gate = tree.make_gate()
    monkeypatch.setenv("WITNESS_GATE", str(gate.path))

    async def main() -> None:
        build = asyncio.create_task(lockbuild.async_build(tree.path, ["wheel"], tree.out_dir, isolation=False))
        await until(lambda: tree.entered("build_wheel"), build)
        for _ in range(cancellations):
            build.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await build
        [hook] = tree.entered("build_wheel")
        with pytest.raises(ProcessLookupError):
            os.kill(hook, 0)
        async with SourceTreeLock(tree.path, timeout=0):
            assert not processes_naming(tree.path)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert list(tree.out_dir.iterdir()) == []


def test_a_build_that_waits_for_the_lock_can_be_cancelled_and_nothing_is_left(tree: WitnessTree) -> None:
    recorder = Recorder()

    async def main() -> None:
        async with SourceTreeLock(tree.path):
            build = asyncio.create_task(
                lockbuild.async_build(tree.path, ["wheel"], tree.out_dir, isolation=False, reporter=recorder)
            )
            await until(lambda: f"waiting for {os.getpid()}" in recorder.heard, build)
            build.cancel()
            with pytest.raises(asyncio.CancelledError):
                await build
            assert not processes_naming(tree.path)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert not tree.log()


def test_when_the_program_is_killed_its_awaited_build_ends(tree: WitnessTree) -> None:
    gate = tree.make_gate()
    script = (
        "import asyncio, lockbuild, sys; asyncio.run(lockbuild.async_build(sys.argv[1], ['wheel'], isolation=False))"
    )
    program = subprocess.Popen([sys.executable, "-c", script, str(tree.path)], env=tree.environ(gate=gate.path))
    tree.started.append(program)  # type: ignore[arg-type]
    tree.wait_for_entry()
    program.kill()
    program.wait()
    with SourceTreeLock(tree.path, timeout=PATIENCE):
        pass
    wait_until(lambda: not processes_naming(tree.path), "the end of the build")


def test_the_errors_of_an_awaited_build_are_those_of_a_build(tree: WitnessTree) -> None:
    def failure(**options: Any) -> tuple[Exception, Exception]:
        errors = []
        for attempt in (lockbuild.build, lambda *args, **kw: asyncio.run(lockbuild.async_build(*args, **kw))):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - compared below
                attempt(tree.path, ["wheel"], tree.out_dir, isolation=False, **options)
            errors.append(caught.value)
        return errors[0], errors[1]

    with SourceTreeLock(tree.path):
        error, awaited = failure(lock_timeout=0)
    assert isinstance(awaited, lockbuild.LockTimeoutError)
    assert isinstance(error, lockbuild.LockTimeoutError)
    assert (awaited.subject, awaited.timeout) == (error.subject, error.timeout)
    assert awaited.holder is not None
    assert awaited.holder.pid == os.getpid()

    (tree.path / "witness_backend.py").write_text("def build_wheel(*_): raise SystemExit(3)")
    error, awaited = failure()
    assert type(error) is type(awaited) is build_library.BuildBackendException
    assert str(error) == str(awaited)
    assert isinstance(awaited.exception, subprocess.CalledProcessError)
    assert awaited.exception.returncode == 3

    (tree.path / "pyproject.toml").unlink()
    error, awaited = failure()
    assert type(error) is type(awaited) is build_library.BuildException
    assert str(error) == str(awaited)


def test_a_build_whose_process_is_killed_is_an_error_of_its_own(
    tree: WitnessTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tree.make_gate()
    monkeypatch.setenv("WITNESS_GATE", str(gate.path))

    async def main() -> None:
        build = asyncio.create_task(lockbuild.async_build(tree.path, ["wheel"], tree.out_dir, isolation=False))
        await until(lambda: tree.entered("build_wheel"), build)
        [process] = [
            each.pid
            for each in descendants()
            if b"lockbuild.commands.worker" in Path(f"/proc/{each.pid}/cmdline").read_bytes().split(b"\0")
        ]
        os.kill(process, signal.SIGKILL)
        with pytest.raises(lockbuild.WorkerError, match="status -9"):
            await build

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_half_a_line_of_a_process_that_was_killed_is_no_event() -> None:
    script = 'import os; os.write(1, b\'{"event": "beg\'); os.kill(os.getpid(), 9)'

    async def main() -> None:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdin=pipe, stdout=pipe)
        with pytest.raises(lockbuild.WorkerError, match="status -9"):
            await BuildProcess(process).build(BuildRequest("tree"), Reporter())

    asyncio.run(main())


def test_an_awaited_build_of_an_argument_that_no_command_line_has_is_that_of_a_build(tree: WitnessTree) -> None:
    hyphens = tree.path.rename(tree.path.parent / "--wheel")
    options: dict[str, Any] = {"isolation": False, "installer": "uv", "preimport": False, "verbosity": -1}
    with contextlib.chdir(hyphens.parent):
        [artifact] = asyncio.run(lockbuild.async_build("--wheel", ["wheel"], "--out", **options)).artifacts
    assert artifact.path == "--out/witness-1.0-py3-none-any.whl"


def test_variables_do_not_change_what_an_awaited_build_is_asked_for(
    tree: WitnessTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCK_TIMEOUT", "ENV_MAX_AGE", "INSTALLER", "LINK_MODE", "REUSE", "PREIMPORT"):
        monkeypatch.setenv(f"LOCKBUILD_{name}", "not a value")
    asyncio.run(lockbuild.async_build(tree.path, ["wheel"], tree.out_dir, isolation=False))
    assert tree.entered("build_wheel")


def test_errors_survive_the_way_to_another_process() -> None:
    error = lockbuild.LockTimeoutError("tree", "lock", Holder(1, "make", 2.0), 3.0)
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is lockbuild.LockTimeoutError
    assert (str(other), other.__dict__) == (str(error), error.__dict__)


def test_builds_that_a_program_starts_under_its_lock_go_on_when_it_is_lent(tree: WitnessTree) -> None:
    words = [*LOCKBUILD, "-n", "--wheel", "--outdir", str(tree.out_dir), str(tree.path)]
    with SourceTreeLock(tree.path) as lock:
        with lock.lent() as variables:
            lent = subprocess.run(words, env=os.environ | variables, capture_output=True, text=True)
        assert lent.returncode == 0, lent.stderr
        # It was lent for that time only.
        stranger = tree.start(env=variables)
        wait_until_it_waits(stranger)
    tree.assert_all_succeed(stranger)
    with pytest.raises(RuntimeError, match="is not held"):
        lock.lent()


def test_the_metadata_is_that_of_the_library_build(tree: WitnessTree) -> None:
    expected = build.util.project_wheel_metadata(tree.path, isolated=False)
    found = lockbuild.project_wheel_metadata(tree.path, isolated=False)
    assert found["Name"] == "witness"
    assert found.json == expected.json
    assert found.get_all("Classifier") is None
    assert type(found) is type(expected)
    wheel = lockbuild.build(tree.path, ["wheel"], tree.out_dir, isolation=False).artifacts[0].path
    assert lockbuild.project_wheel_metadata(wheel).json == expected.json


def test_the_metadata_needs_no_installed_requirements_without_isolation(tree: WitnessTree) -> None:
    pyproject = tree.path / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('"setuptools"', '"setuptools", "no-such-package"'))
    assert lockbuild.project_wheel_metadata(tree.path, isolated=False)["Version"] == "1.0"


@pytest.mark.slow
def test_the_examples_of_the_documentation_run(tmp_path: Path) -> None:
    page = Path(__file__).parent.parent / "docs" / "python.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) > 5
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    )
    (project / "setup.py").write_text("from setuptools import setup\nsetup(name='demo', version='1.0', packages=[])\n")
    script = "\n".join(blocks)
    house = tmp_path / "wheelhouse"
    house.mkdir()
    Wheelhouse(house).add_installed("setuptools")
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(house), "PIP_CONFIG_FILE": os.devnull}
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=project, env=os.environ | pip, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    assert "wheel demo-1.0-py3-none-any.whl" in finished.stdout
    assert "demo 1.0 None" in finished.stdout
