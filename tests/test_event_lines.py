"""Events as JSON lines: what ``lockbuild --json`` writes, and that all of it is what it was when it is read again."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import MappingProxyType
from typing import Any

import build
import jsonschema  # type: ignore[import-untyped]
import pytest
from event_schema import assert_documented
from pyproject_hooks import HookMissing

from lockbuild import errors
from lockbuild.errors import LockbuildError
from lockbuild.event_lines import EventWriter, read_event, read_request, request_line
from lockbuild.events import Holder, LockWait, Reporter
from lockbuild.locks import SourceTreeLock
from lockbuild.request import Artifact, BuildRequest, BuildResult, Timing
from witness import LOCKBUILD, PATIENCE, WitnessTree

METHODS = [name for name in vars(Reporter) if not name.startswith("_")]

HOLDER = Holder(7, "make", 2.0)

CALLS: dict[str, list[tuple[Any, ...]]] = {
    "log": [("words\nin \udcff lines", ("subprocess", "cmd")), ("words", None)],
    "detail": [("words",)],
    "warn": [("words",)],
    "waiting": [
        (LockWait("tree", "file", HOLDER, 1.5, None, "building"),),
        (LockWait("tree", "file", None, 1.5, 3.0),),
    ],
    "got_lock": [("tree", 1.5)],
    "began": [("lock",)],
    "progress": [(1, 2)],
    "ended": [("lock", 1.5)],
}

OUR_ERRORS: list[LockbuildError] = [
    errors.LockTimeoutError("tree", "file", HOLDER, 3.0),
    errors.LockTimeoutError("tree", "file", None, 3.0),
    errors.LockUnavailableError("tree", "file", "problem"),
    errors.SourceTreeMovedError("tree"),
    errors.WheelError("x.whl", "problem"),
    errors.SettingsError("a message"),
]

PROCESS = subprocess.CalledProcessError(3, ["python", "hook.py"])

# What a request may ask for, other than by default.
FIELDS: dict[str, list[Any]] = {
    "source": ["-source", "with \udcff"],
    "distributions": [("sdist",), ("wheel", "sdist")],
    "out_dir": ["-out"],
    "sources": [{"tool": "/dist/tool = 1.whl", "base": None}],
    "config_settings": [{"--key": "value", "list": ["a", "b"], "": {"é": True}}],
    "isolation": [False],
    "skip_dependency_check": [True],
    "constraints_file": ["--constraints"],
    "installer": ["uv"],
    "link_mode": ["hardlink", "copy"],
    "tree": ["private", "clean", "auto"],
    "env_dir": ["env dir"],
    "sdist_extract_dir": ["=extract"],
    "lock": ["auto", "always", "never"],
    "lock_timeout": [0, 0.1, 1e6],
    "cache_dir": ["cache"],
    "use_cache": [False],
    "env_max_age": [0, 1e-07, float("inf")],
    "refresh": [True],
    "preimport": [False],
    "reuse": [True],
    "coalesce": [True],
    "max_sdist_size": [1.0, 1e22, float("inf")],
    "clear": [True],
    "verbosity": [-2, -1, 1, 3],
}


class Recorder(Reporter):
    """Remembers all calls of its methods."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattribute__(self, name: str) -> Any:
        if name in METHODS:
            return lambda *values, **named: self.calls.append((name, (*values, *named.values())))
        return super().__getattribute__(name)


def lines_of(write: Any) -> list[bytes]:
    """Return the lines that are written when something is done with a writer."""
    readable, writable = os.pipe()
    with open(readable, "rb") as stream:
        write(EventWriter(writable))
        os.close(writable)
        return stream.readlines()


def restored(error: Exception) -> Exception:
    [line] = lines_of(lambda writer: writer.failed(error))
    assert_documented(json.loads(line))
    with pytest.raises(type(error)) as caught:
        read_event(json.loads(line), Reporter())
    assert str(caught.value) == str(error)
    return caught.value


@pytest.mark.parametrize("method", METHODS)
def test_each_method_of_a_reporter_is_called_as_it_was(method: str) -> None:
    for arguments in CALLS[method]:
        [line] = lines_of(lambda writer, arguments=arguments: getattr(writer, method)(*arguments))
        assert json.loads(line)["event"] == method
        assert_documented(json.loads(line))
        recorder = Recorder()
        assert read_event(json.loads(line), recorder) is None
        assert recorder.calls == [(method, arguments)]


def test_an_event_of_a_later_version_is_passed_over() -> None:
    assert read_event({"event": "__init__", "self": 1}, Recorder()) is None


def test_a_field_that_no_schema_describes_is_noticed() -> None:
    assert_documented({"event": "began", "step": "lock"})
    for event in ({"event": "began"}, {"event": "began", "step": 1}, {"event": "else"}):
        with pytest.raises(jsonschema.ValidationError):
            assert_documented(event)
    with pytest.raises(AssertionError):
        assert_documented({"event": "began", "step": "lock", "more": 1})


def test_a_result_is_what_it_was() -> None:
    result = BuildResult((Artifact("x.whl", "out/x.whl", "wheel", 3, "00"),), (Timing("lock", 0.5),))
    for each in (result, result._replace(timings=())):
        [line] = lines_of(lambda writer, each=each: writer.succeeded(each))
        assert_documented(json.loads(line))
        assert read_event(json.loads(line), Reporter()) == each


@pytest.mark.parametrize("error", OUR_ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_of_ours_has_its_class_and_its_attributes(error: LockbuildError) -> None:
    error.add_note("a note")
    again = restored(error)
    assert type(again) is type(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "a\udcff"),
        OSError(28, "No space left on device"),
        OSError("x"),
    ],
    ids=repr,
)
def test_an_error_of_the_system_is_of_the_class_for_its_number(error: OSError) -> None:
    again = restored(error)
    assert isinstance(again, OSError)
    assert type(again) is type(error)
    assert (again.errno, again.filename) == (error.errno, error.filename)


def test_errors_of_the_library_build_have_their_class_and_what_has_caused_them() -> None:
    assert type(restored(build.BuildException("words"))) is build.BuildException
    assert type(restored(build.BuildSystemTableValidationError("words"))) is build.BuildSystemTableValidationError
    for error in (build.BuildBackendException(PROCESS), build.FailedProcessError(PROCESS, "words")):
        again = restored(error)
        assert isinstance(again, (build.BuildBackendException, build.FailedProcessError))
        assert isinstance(again.exception, subprocess.CalledProcessError)
        assert (again.exception.returncode, again.exception.cmd) == (3, ["python", "hook.py"])


def test_an_exception_of_a_backend_needs_no_class_on_the_other_side() -> None:
    class OfTheBackendError(Exception):
        def __init__(self) -> None:
            super().__init__(open(os.devnull))  # noqa: SIM115 - what no pickle takes

    for cause in (OfTheBackendError(), HookMissing("build_sdist")):
        error = build.BuildBackendException(cause)
        error.add_note("a hint")
        again = restored(error)
        assert isinstance(again, build.BuildBackendException)
        assert again.__notes__ == ["a hint"]
        assert str(again.exception) == repr(cause)
        assert type(cause).__name__ in again.exception.__notes__[0]


def test_a_mistake_of_ours_is_named() -> None:
    [line] = lines_of(lambda writer: writer.failed(KeyError("x")))
    with pytest.raises(LockbuildError, match="KeyError: 'x'"):
        read_event(json.loads(line), Reporter())


def test_every_field_of_a_request_survives_its_line() -> None:
    assert FIELDS.keys() == set(BuildRequest._fields)
    for field, values in FIELDS.items():
        for value in values:
            request = BuildRequest("tree")._replace(**{field: value})
            line = request_line(request, "a\nlog")
            assert line.index(b"\n") == len(line) - 1
            assert read_request(line) == (request, "a\nlog")


def test_mappings_and_paths_of_a_request_become_plain() -> None:
    settings = MappingProxyType({"key": ["value"]})
    request = BuildRequest(Path("tree"), config_settings=settings)  # type: ignore[arg-type]
    assert read_request(request_line(request, None)) == (
        BuildRequest("tree", config_settings={"key": ["value"]}),
        None,
    )


def start_json(tree: WitnessTree, *words: str, **options: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*LOCKBUILD, "-n", "--wheel", "--outdir", str(tree.out_dir), "--json", *words, str(tree.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **{"env": tree.environ()} | options,
    )
    tree.started.append(process)
    return process


def events_of(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    out, err = process.communicate(timeout=PATIENCE)
    return [json.loads(line) for line in out.splitlines()], err


def test_standard_output_has_events_in_their_order_and_nothing_else(tree_that_prints: WitnessTree) -> None:
    events, err = events_of(start_json(tree_that_prints, "--timings"))
    steps = [event["step"] for event in events if event["event"] == "began"]
    assert steps[-2:] == ["build_wheel", "publish"]
    ended = [event["step"] for event in events if event["event"] == "ended"]
    assert ended == steps
    assert events[-1]["event"] == "result"
    assert events[-1]["artifacts"][0]["name"] == "witness-1.0-py3-none-any.whl"
    assert [timing["step"] for timing in events[-1]["timings"]] == ["start", *steps]
    assert "printed at the import" in err
    assert err.count("printed by the hook") == 1


@pytest.fixture
def tree_that_prints(witness_tree: WitnessTree) -> WitnessTree:
    """A witness tree whose backend prints when it is imported and when it builds."""
    backend = witness_tree.path / "witness_backend.py"
    backend.write_text(
        f"{backend.read_text()}\nprint('printed at the import')\n_build_wheel = build_wheel\n"
        "def build_wheel(*arguments):\n    print('printed by the hook')\n    return _build_wheel(*arguments)\n"
    )
    return witness_tree


def test_an_error_is_the_last_line_and_the_exit_status_is_its_own(witness_tree: WitnessTree) -> None:
    with SourceTreeLock(witness_tree.path):
        process = start_json(witness_tree, "--lock-timeout", "0")
        events, err = events_of(process)
    assert process.returncode == 75
    assert err == ""
    error = events[-1]
    assert (error["event"], error["type"], error["exit_status"]) == ("error", "LockTimeoutError", 75)
    assert error["data"]["holder"]["pid"] == os.getpid()


def test_metadata_is_a_result(witness_tree: WitnessTree) -> None:
    process = subprocess.run(
        [*LOCKBUILD, "-n", "--metadata", "--json", str(witness_tree.path)],
        env=witness_tree.environ(),
        capture_output=True,
        check=True,
    )
    last = json.loads(process.stdout.splitlines()[-1])
    assert (last["event"], last["metadata"]["name"]) == ("result", "witness")
    assert_documented(last)


def test_a_build_whose_reader_is_gone_fails(witness_tree: WitnessTree) -> None:
    gate = witness_tree.make_gate()
    process = start_json(witness_tree, env=witness_tree.environ(gate=gate.path))
    witness_tree.wait_for_entry("build_wheel")
    assert process.stdout is not None
    process.stdout.close()
    gate.open()
    assert process.wait(PATIENCE) == 1
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
