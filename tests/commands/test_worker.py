"""A process that builds one request after the other: what its builds share, and what they do not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lockbuild.event_lines import request_line
from lockbuild.locks import SourceTreeLock
from lockbuild.request import BuildRequest
from machine import is_running, linux_only
from witness import PATIENCE, WitnessTree, make_witness_tree, wait_until

# Stands in for a backend that is imported ahead. It says which host has imported it for a hook, and warns there.
_BACKEND = """
import os, sys, warnings, witness_backend
from witness_backend import *
imported_by = os.getpid()

def build_wheel(*arguments):
    print("host", os.getppid(), "imported by", imported_by, flush=True)
    sys.stderr.write(f"built in {os.getcwd()}\\n")
    return witness_backend.build_wheel(*arguments)
"""


class Worker:
    """The process, and the other side of it."""

    def __init__(self, tree: WitnessTree, **variables: str) -> None:
        self.process = tree.start_process(
            sys.executable, "-P", "-m", "lockbuild.commands.worker", env=variables, stdin=subprocess.PIPE
        )

    def ask(self, request: BuildRequest, output: Path | None = None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(request_line(request, None if output is None else str(output)).decode())
        self.process.stdin.flush()

    def last_event(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["event"] in ("result", "error"):
                return event
        raise AssertionError(f"it ended with status {self.process.wait()}")

    def build(self, request: BuildRequest, output: Path | None = None) -> dict[str, Any]:
        self.ask(request, output)
        return self.last_event()

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None
        return self.process.wait(PATIENCE)


@pytest.fixture
def trees(witness_tree: WitnessTree, monkeypatch: pytest.MonkeyPatch) -> list[WitnessTree]:
    """Two trees with one backend, which is installed and imported ahead."""
    monkeypatch.delenv("LOCKBUILD_PREIMPORT", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(witness_tree.install_backend()))
    witness_tree.use_backend("mesonpy", _BACKEND)
    other = make_witness_tree(witness_tree.control / "other")
    other.site = witness_tree.site
    other.use_backend("mesonpy")
    for each in (witness_tree, other):
        (each.path / "witness_backend.py").unlink(missing_ok=True)
    return [witness_tree, other]


def request_for(tree: WitnessTree, **fields: Any) -> BuildRequest:
    return BuildRequest(
        str(tree.path), ("wheel",), out_dir=str(tree.out_dir), isolation=False, skip_dependency_check=True, **fields
    )


def hosts_of(log: Path) -> tuple[int, int]:
    """Return the host of a build, and the process that has imported its backend, as the build's log has them."""
    [line] = [line for line in log.read_text().splitlines() if line.startswith("host ")]
    words = line.split()
    return int(words[1]), int(words[-1])


pytestmark = pytest.mark.skipif(os.name != "posix", reason="elsewhere there is no hook host")


def test_builds_share_a_host_and_each_writes_to_its_own_log(trees: list[WitnessTree], tmp_path: Path) -> None:
    worker = Worker(trees[0])
    logs = [tmp_path / "first", tmp_path / "second"]
    for tree, log in zip(trees, logs, strict=True):
        event = worker.build(request_for(tree), log)
        assert event["event"] == "result", event
        assert Path(event["artifacts"][0]["path"]).is_file()
        assert f"built in {tree.path}" in log.read_text()
    assert hosts_of(logs[0]) == hosts_of(logs[1])
    host, importer = hosts_of(logs[0])
    assert host == importer
    assert worker.end() == 128 + signal.SIGTERM
    assert not is_running(host)


def test_a_quiet_build_collects_the_output_of_a_host_that_another_build_has_started(
    trees: list[WitnessTree], tmp_path: Path
) -> None:
    worker = Worker(trees[0])
    logs = [tmp_path / "first", tmp_path / "second"]
    for tree, log in zip(trees, logs, strict=True):
        event = worker.build(request_for(tree, verbosity=-1), log)
        assert event["event"] == "result", event
        assert log.read_text() == ""


def test_the_tree_is_free_between_two_builds(trees: list[WitnessTree]) -> None:
    worker = Worker(trees[0])
    assert worker.build(request_for(trees[0]))["event"] == "result"
    with SourceTreeLock(trees[0].path, timeout=0):
        event = worker.build(request_for(trees[0], lock_timeout=0))
        assert (event["event"], event["type"]) == ("error", "LockTimeoutError")
    assert worker.build(request_for(trees[0]))["event"] == "result"
    trees[0].assert_no_overlap()


def test_a_host_does_not_go_on_with_another_backend_or_after_a_failure(
    trees: list[WitnessTree], tmp_path: Path
) -> None:
    worker = Worker(trees[0])
    logs = [tmp_path / name for name in ("first", "second", "third")]
    assert worker.build(request_for(trees[0]), logs[0])["event"] == "result"
    trees[1].use_backend("another", f"{_BACKEND}\nprint(1 / 0)")
    assert worker.build(request_for(trees[1]), logs[1])["type"] == "BuildBackendException"
    assert "ZeroDivisionError" in logs[1].read_text()
    assert worker.build(request_for(trees[0]), logs[2])["event"] == "result"
    assert hosts_of(logs[0]) != hosts_of(logs[2])
    assert not is_running(hosts_of(logs[0])[0])


def test_a_host_that_was_killed_between_two_builds_is_replaced(trees: list[WitnessTree], tmp_path: Path) -> None:
    worker = Worker(trees[0])
    assert worker.build(request_for(trees[0]), tmp_path / "first")["event"] == "result"
    host, _ = hosts_of(tmp_path / "first")
    os.kill(host, signal.SIGKILL)
    wait_until(lambda: not is_running(host), "the end of the host")
    assert worker.build(request_for(trees[0]), tmp_path / "second")["event"] == "result"
    assert hosts_of(tmp_path / "second")[0] != host


def test_a_log_that_cannot_be_written_fails_its_build_alone(trees: list[WitnessTree], tmp_path: Path) -> None:
    worker = Worker(trees[0])
    event = worker.build(request_for(trees[0]), tmp_path / "missing" / "log")
    assert (event["type"], event["data"]["filename"]) == ("OSError", str(tmp_path / "missing" / "log"))
    assert worker.build(request_for(trees[0]), tmp_path / "log")["event"] == "result"


def test_each_build_gives_its_warnings(trees: list[WitnessTree]) -> None:
    pyproject = trees[0].path / "pyproject.toml"
    pyproject.write_text(f'{pyproject.read_text()}[project]\nname = "witness"\nrequires-python = "<3"\n')
    worker = Worker(trees[0])
    for _ in range(2):
        worker.ask(request_for(trees[0]))
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            event = json.loads(line)
            if event["event"] == "warn":
                break
            assert event["event"] not in ("result", "error")
        assert worker.last_event()["event"] == "result"


@linux_only
def test_the_end_of_standard_input_ends_the_build_and_its_hook(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    worker = Worker(witness_tree, WITNESS_GATE=str(gate.path))
    worker.ask(request_for(witness_tree))
    hook = witness_tree.wait_for_entry("build_wheel")
    assert os.readlink(f"/proc/{hook}/fd/0") == os.devnull
    assert worker.end() == 128 + signal.SIGTERM
    assert not is_running(hook)
    with SourceTreeLock(witness_tree.path, timeout=0):
        pass


def test_a_signal_ends_a_process_that_waits_for_a_request(witness_tree: WitnessTree) -> None:
    worker = Worker(witness_tree)
    worker.build(request_for(witness_tree))
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert worker.process.stderr is not None
    assert worker.process.stderr.read() == ""


@linux_only
def test_a_killed_process_takes_the_host_that_it_has_kept_along(trees: list[WitnessTree], tmp_path: Path) -> None:
    worker = Worker(trees[0])
    worker.build(request_for(trees[0]), tmp_path / "log")
    host, _ = hosts_of(tmp_path / "log")
    assert is_running(host)
    worker.process.kill()
    wait_until(lambda: not is_running(host), "the end of the host")
