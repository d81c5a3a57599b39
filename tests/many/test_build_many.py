"""`lockbuild.build_many`, in this process and on executors."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import build
import pytest

import lockbuild
from lockbuild import BuildRequest
from monorepo import Monorepo
from witness import end_all, wait_until

# Each of them takes a second or more, and there are many.
pytestmark = pytest.mark.slow


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Monorepo]:
    folder = tmp_path / "repo"
    folder.mkdir()
    repo = Monorepo(folder)
    monkeypatch.setenv("MONOREPO_LOG", str(repo.log))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    yield repo
    end_all(repo.started)


def _requests(repo: Monorepo, *names: str) -> list[BuildRequest]:
    return [BuildRequest(str(repo.folder / name), ("wheel",), out_dir=str(repo.out_dir)) for name in names]


@pytest.fixture(params=[None, "threads", "processes"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor | None]:
    if request.param is None:
        yield None
    elif request.param == "threads":
        with ThreadPoolExecutor(2) as threads:
            yield threads
    else:
        with ProcessPoolExecutor(2, get_context("spawn")) as processes:
            yield processes


def test_each_outcome_has_its_request_and_a_result_or_an_error(repo: Monorepo, executor: Executor | None) -> None:
    repo.add("tool")
    repo.add("app", requires=["tool"], act="import tool")
    repo.add("bad", act="raise SystemExit('out of luck')")
    requests = _requests(repo, "app", "bad", "tool")
    outcomes = {outcome.build.request.source: outcome for outcome in lockbuild.build_many(requests, executor=executor)}
    app, bad, tool = (outcomes[request.source] for request in requests)
    assert app.error is None
    assert app.result is not None
    assert app.result.artifacts[0].name == "app-1.0-py3-none-any.whl"
    assert tool.result is not None
    assert bad.result is None
    assert isinstance(bad.error, build.BuildBackendException)
    assert bad.log is not None
    assert "out of luck" in Path(bad.log).read_text()


def test_closing_the_iterator_ends_the_builds_that_run(repo: Monorepo) -> None:
    gate = repo.folder / "gate"
    os.mkfifo(gate)
    repo.add("quick")
    repo.add("slow", act=f"open({str(gate)!r}).read()")
    outcomes = lockbuild.build_many(_requests(repo, "quick", "slow"), jobs=2)
    assert next(outcomes).error is None
    wait_until(lambda: "enter slow" in repo.events(), "the other build is in its hook")
    outcomes.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "lockbuild run"]
    assert repo.built() == ["quick"]
    repo.add("slow")
    [outcome] = lockbuild.build_many([_requests(repo, "slow")[0]._replace(lock="always", lock_timeout=0.0)])
    assert outcome.error is None


def test_an_error_of_the_plan_comes_before_anything_is_built(repo: Monorepo) -> None:
    repo.add("one", path="first")
    repo.add("one", path="second")
    with pytest.raises(lockbuild.PlanError, match="would both write one"):
        lockbuild.build_many(_requests(repo, "first", "second"))
    with pytest.raises(lockbuild.PythonNotFoundError):
        lockbuild.build_many(_requests(repo, "first"), pythons=["/no/such/python"])
    assert repo.events() == []


def test_no_requests_have_no_outcomes() -> None:
    assert list(lockbuild.build_many([])) == []
