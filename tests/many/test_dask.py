"""Builds on the workers of a dask scheduler: two processes on this machine, which share only their witnesses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import lockbuild
from machine import is_running
from monorepo import Monorepo
from wheelhouse import Wheelhouse
from witness import PATIENCE, end_all, wait_until

pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="the tests hold builds at FIFOs"),
]


@dataclass
class Cluster:
    """A dask scheduler, and workers each of which builds one project at a time. They have a folder of their own."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    workers: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def _file(self) -> Path:
        return self.folder / "scheduler.json"

    @property
    def address(self) -> str:
        return str(json.loads(self._file.read_text())["address"])

    def start_scheduler(self) -> None:
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        wait_until(lambda: self._file.exists() and self._file.read_text().endswith("}"), "the scheduler")

    def start_worker(self, name: str) -> None:
        """Start a worker. Its builds see its name in WORKER."""
        self.workers[name] = self._start(
            "worker",
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
            "--local-directory",
            str(self.folder),
            name=name,
        )
        log = self.folder / f"{name}.log"
        wait_until(lambda: "Registered to" in log.read_text(), f"the worker {name}")

    def end(self) -> None:
        end_all(self.started)

    def _start(self, kind: str, *words: str, name: str = "scheduler") -> subprocess.Popen[str]:
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        variables = {"TMPDIR": str(temporary), "LOCKBUILD_CACHE_DIR": str(self.folder / "cache"), "WORKER": name}
        unset = ("PIP_", "UV_", "LOCKBUILD_", "SOURCE_DATE_EPOCH", "MONOREPO_LOG")
        environ = {key: value for key, value in os.environ.items() if not key.startswith(unset)}
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{kind}", *words, "--scheduler-file", str(self._file)],
                env={**environ, "PIP_NO_INDEX": "1", **variables, **self.variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        self.started.append(process)
        return process


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start_scheduler()
        for name in ("first", "second"):
            cluster.start_worker(name)
        yield cluster
    finally:
        cluster.end()


def _on(cluster: Cluster, *words: str) -> tuple[str, ...]:
    return ("--executor", f"dask:{cluster.address}", "--pass-env", "MONOREPO_LOG", *words)


def test_builds_run_on_both_workers_at_once_and_leave_wheels_and_logs_here(repo: Monorepo, cluster: Cluster) -> None:
    # Each one waits for the other one.
    first, second = repo.folder / "fifo1", repo.folder / "fifo2"
    os.mkfifo(first)
    os.mkfifo(second)
    tell = "print('I run on', os.environ['WORKER'], flush=True); "
    repo.add("one", act=f"{tell}open({str(first)!r}, 'w').close(); open({str(second)!r}).close()")
    repo.add("two", act=f"{tell}open({str(first)!r}).close(); open({str(second)!r}, 'w').close()")
    repo.build(*_on(cluster, "--logs", "logs"), "one", "two")
    assert repo.artifacts() == ["one-1.0-py3-none-any.whl", "two-1.0-py3-none-any.whl"]
    logs = "".join(path.read_text() for path in (repo.folder / "logs").iterdir())
    assert {name for name in cluster.workers if f"I run on {name}\n" in logs} == {"first", "second"}
    version = ".".join(map(str, sys.version_info[:2]))
    assert logs.count(f"(lockbuild {lockbuild.__version__}, Python {version}, ") == 2


def test_an_sdist_is_built_here_and_published_with_the_wheel(repo: Monorepo, cluster: Cluster) -> None:
    tree = repo.add("one")
    process = repo.start(*_on(cluster, "-o", "out", "one"))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert repo.artifacts() == ["one-1.0-py3-none-any.whl", "one-1.0.tar.gz"]
    with tarfile.open(repo.out_dir / "one-1.0.tar.gz") as archive:
        assert "one-1.0/one_backend.py" in archive.getnames()
    # The sdist is a source as well.
    shutil.rmtree(tree)
    (repo.out_dir / "one-1.0-py3-none-any.whl").unlink()
    repo.build(*_on(cluster), "out/one-1.0.tar.gz")
    assert "one-1.0-py3-none-any.whl" in repo.artifacts()


def test_an_error_comes_back_as_itself(repo: Monorepo, cluster: Cluster) -> None:
    repo.add("bad", act="raise RuntimeError('out of luck')")
    out, _ = repo.build(*_on(cluster, "--json"), "bad", status=1)
    [built] = [event for event in map(json.loads, out.splitlines()) if event["event"] == "built"]
    assert built["error"]["type"] == "BuildBackendException"
    assert "out of luck" in Path(built["log"]).read_text()
    assert repo.artifacts() == []


def test_the_wheel_of_another_project_travels_to_the_worker(repo: Monorepo, cluster: Cluster) -> None:
    repo.add("app", requires=["tool"], act="import tool; assert tool.new")
    repo.add("tool", runtime_requires=["base"], content="import base; new = base.new\n")
    repo.add("base", content="new = True\n")
    repo.build(*_on(cluster), "app", "tool", "base")
    assert repo.built()[-1] == "app"


def test_a_constraints_file_travels_to_the_worker(repo: Monorepo, cluster: Cluster, tmp_path: Path) -> None:
    house = Wheelhouse(tmp_path / "house")
    house.folder.mkdir()
    for version in ("1.0", "2.0"):
        house.add_wheel("tool", version=version)
    (repo.folder / "constraints.txt").write_text("tool < 2\n")
    repo.add("app", requires=["tool"], act="import importlib.metadata as m; assert m.version('tool') == '1.0'")
    words = _on(cluster, "--pass-env", "PIP_FIND_LINKS", "--dependency-constraints-txt", "constraints.txt")
    environ = {**os.environ, "PIP_FIND_LINKS": str(house.folder), "MONOREPO_LOG": str(repo.log), "PIP_NO_INDEX": "1"}
    process = repo.start("-w", *words, "app", env=environ)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert repo.built() == ["app"]


def test_variables_reach_the_worker(repo: Monorepo, cluster: Cluster) -> None:
    act = "print([os.environ.get(name) for name in ('SOURCE_DATE_EPOCH', 'CHOSEN', 'OTHER')], flush=True)"
    repo.add("one", act=act)
    environ = {
        **os.environ,
        "SOURCE_DATE_EPOCH": "12345",
        "CHOSEN": "yes",
        "OTHER": "no",
        "MONOREPO_LOG": str(repo.log),
    }
    words = ("-w", "--logs", "logs", "--pass-env", "CHOSEN", "--pass-env", "ABSENT", "one")
    process = repo.start(*_on(cluster), *words, env=environ)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    [log] = (repo.folder / "logs").iterdir()
    assert "['12345', 'yes', None]" in log.read_text()


def _held_build(repo: Monorepo, cluster: Cluster) -> tuple[subprocess.Popen[str], str, int]:
    """Start a build that waits at a gate; return the run, the worker's name, and the number of the hook's process."""
    gate, told = repo.folder / "gate", repo.folder / "told"
    os.mkfifo(gate)
    tell = f"open({f'{told}.new'!r}, 'w').write(os.environ['WORKER'] + ' ' + str(os.getpid()))"
    act = f"{tell}; os.rename({f'{told}.new'!r}, {str(told)!r}); open({str(gate)!r}).read()"
    repo.add("one", act=act)
    process = repo.start("-w", "-o", str(repo.out_dir), *_on(cluster), "one")
    wait_until(lambda: told.exists() or process.poll() is not None, "the build is in its hook")
    worker, number = told.read_text().split()
    told.unlink()
    return process, worker, int(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_ends_its_builds_on_workers(
    repo: Monorepo, cluster: Cluster, number: signal.Signals
) -> None:
    process, _, hook = _held_build(repo, cluster)
    process.send_signal(number)
    status = process.wait(PATIENCE)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not is_running(hook), "the hook has ended")
    assert repo.artifacts() == []
    temporary = cluster.folder / "tmp"
    wait_until(lambda: not list(temporary.glob("lockbuild-worker-*")), "the worker has removed its files")


def test_the_build_of_a_killed_worker_is_done_again_by_the_other(repo: Monorepo, cluster: Cluster) -> None:
    process, worker, hook = _held_build(repo, cluster)
    cluster.workers[worker].kill()
    try:
        wait_until(lambda: not is_running(hook), "the hook of the killed worker has ended")
        told = repo.folder / "told"
        wait_until(told.exists, "the build is in its hook again")
        assert told.read_text().split()[0] != worker
        (repo.folder / "gate").write_text("")
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        assert repo.artifacts() == ["one-1.0-py3-none-any.whl"]
    finally:
        cluster.start_worker(worker)


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--python", sys.executable), "A worker builds with its own Python"), (("--editable",), "An editable wheel")],
    ids=["python", "editable"],
)
def test_what_workers_cannot_do_is_an_error(
    repo: Monorepo, cluster: Cluster, words: tuple[str, ...], message: str
) -> None:
    repo.add("one")
    _, err = repo.build(*_on(cluster), *words, "one", status=1)
    assert f": {message}" in err.splitlines()[-1]
    assert repo.events() == []


def test_a_scheduler_that_cannot_be_reached_is_one_line(repo: Monorepo) -> None:
    repo.add("one")
    _, err = repo.build("--executor", "dask:tcp://127.0.0.1:1", "one", status=1)
    assert "Cannot reach the dask scheduler at tcp://127.0.0.1:1" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert repo.events() == []


@pytest.mark.parametrize("has_lockbuild", [True, False])
def test_a_worker_without_this_version_of_lockbuild_is_an_error(
    repo: Monorepo, tmp_path: Path, has_lockbuild: bool
) -> None:
    package = tmp_path / "other" / "lockbuild"
    if has_lockbuild:
        shutil.copytree(Path(lockbuild.__file__).parent, package)
        module = package / "__init__.py"
        module.write_text(module.read_text().replace(f'"{lockbuild.__version__}"', '"0.0.9"'))
    else:
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError('no lockbuild here')\n")
    cluster = Cluster(tmp_path, {"PYTHONPATH": str(package.parent)})
    try:
        cluster.start_scheduler()
        cluster.start_worker("old")
        repo.add("one")
        _, err = repo.build(*_on(cluster), "one", status=1)
    finally:
        cluster.end()
    line = err.splitlines()[-1]
    if has_lockbuild:
        assert "The worker tcp://127.0.0.1:" in line
        assert f"has lockbuild 0.0.9, Python {sys.version_info[0]}.{sys.version_info[1]}" in line
    else:
        assert "The workers cannot run the build: no lockbuild here" in line
    assert repo.events() == []
