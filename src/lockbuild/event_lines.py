"""A build's events as JSON lines, which carry everything that leaves its process.

`EventWriter` is the reporter of ``lockbuild --json``; `read_event` is the other side. Each line is one object:

- ``{"event": METHOD, ...}`` for each call of a method of `Reporter`, with its arguments by name. ``waiting`` has the
  fields of `LockWait`, and ``holder`` those of `Holder`.
- The last line of a build that succeeds is ``{"event": "result", ...}`` with the content of ``--report``; with
  ``--metadata``, it is ``{"event": "result", "metadata": {...}}``.
- The last line of a build that fails is ``{"event": "error", "type": ..., "message": ..., "exit_status": ..., "notes":
  [...], "data": {...}}``. ``data`` has the attributes of the error.

A build that is interrupted or killed has no last line, and its final line may be cut off.

A run of many builds has other lines. ``source`` is the source of a build as it was named, ``python`` the path of its
Python, or null:

- ``{"event": "started", "source": ..., "python": ...}``, and ``"activity"`` with what the build begins to do.
- ``{"event": "built", "source": ..., "python": ..., "seconds": ..., "log": ..., "artifacts": [...], "error": ...}`` for
  each build that is over. ``artifacts`` are as in ``--report``; ``error`` is null, or has the fields of an ``error``.
- The last line is ``{"event": "result", "artifacts": [...], "failed": ..., "not_started": ...}``. The latter two are
  numbers of builds.

`request_line` and `read_request` are for the way there: what a process that builds for another one is asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lockbuild import errors
from lockbuild.artifacts import report
from lockbuild.errors import LockbuildError, restored_exception
from lockbuild.events import Holder, LockWait, Reporter
from lockbuild.request import Artifact, BuildRequest, BuildResult, Timing

if TYPE_CHECKING:
    from packaging.metadata import RawMetadata

# The methods of a reporter whose arguments need no conversion to JSON.
_PLAIN_EVENTS = frozenset({"detail", "warn", "got_lock", "began", "progress", "ended"})


class EventWriter(Reporter):
    """A reporter that writes lines to a descriptor. Its methods raise `OSError` when that fails."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._writing = threading.Lock()
        """Held while a line is written: while pip runs, another thread reports waits."""

    def log(self, message: str, kind: tuple[str, ...] | None = None) -> None:
        """Write a message of the library ``build``."""
        self.write("log", message=message, kind=kind)

    def detail(self, message: str) -> None:
        """Write a detail."""
        self.write("detail", message=message)

    def warn(self, message: str) -> None:
        """Write a warning."""
        self.write("warn", message=message)

    def waiting(self, wait: LockWait) -> None:
        """Write that the build still waits for a lock."""
        self.write("waiting", **wait._asdict() | {"holder": wait.holder._asdict() if wait.holder else None})

    def got_lock(self, subject: str, waited: float) -> None:
        """Write that a wait is over."""
        self.write("got_lock", subject=subject, waited=waited)

    def began(self, step: str) -> None:
        """Write that a step has begun."""
        self.write("began", step=step)

    def progress(self, done: int, total: int) -> None:
        """Write how much of a step is done."""
        self.write("progress", done=done, total=total)

    def ended(self, step: str, seconds: float) -> None:
        """Write that a step is over."""
        self.write("ended", step=step, seconds=seconds)

    def succeeded(self, result: BuildResult) -> None:
        """Write the last line of a build that has succeeded."""
        self.write("result", **report(result.artifacts, result.timings))

    def metadata(self, fields: RawMetadata) -> None:
        """Write metadata as the last line."""
        self.write("result", metadata=fields)

    def failed(self, error: Exception) -> None:
        """Write the last line of a build that has failed."""
        self.write("error", **error_fields(error))

    def write(self, event: str, **fields: object) -> None:
        """Write a line for an event."""
        # In ASCII: a path may contain bytes that are not text, which JSON can carry only as escapes.
        line = memoryview(json.dumps({"event": event, **fields}, default=str).encode("ascii") + b"\n")
        with self._writing:
            while line:
                line = line[os.write(self._descriptor, line) :]


def read_event(fields: dict[str, Any], reporter: Reporter) -> BuildResult | None:
    """
    Pass the event of a line, whose fields are given, to a reporter, or return the result of the build.

    For an error, raise the build's exception with its message, notes and data: a `LockbuildError`, an exception of the
    library ``build``, or `OSError`. An exception in a backend has its traceback as a note. Any other exception, which
    is a bug in lockbuild, becomes a `LockbuildError` that names it.
    """
    event = fields.pop("event")
    if event == "result":
        return BuildResult(
            tuple(Artifact(sha256=each.pop("hashes")["sha256"], **each) for each in fields["artifacts"]),
            tuple(Timing(**each) for each in fields.get("timings", ())),
        )
    if event == "error":
        raise restored_error(fields)
    if event == "log":
        reporter.log(fields["message"], tuple(fields["kind"]) if fields["kind"] is not None else None)
    elif event == "waiting":
        reporter.waiting(LockWait(**fields | {"holder": _holder(fields["holder"])}))
    elif event in _PLAIN_EVENTS:
        getattr(reporter, event)(**fields)
    return None


def request_line(request: BuildRequest, output: str | None) -> bytes:
    """
    Return the line that asks the process of ``commands/worker.py`` for a build.

    ``output`` is the path of the file to whose end its hooks write; ``None`` is the standard error of the process.
    """
    return json.dumps({"request": request._asdict(), "output": output}, default=_plain).encode() + b"\n"


def read_request(line: bytes) -> tuple[BuildRequest, str | None]:
    """Return what a `request_line` was made of."""
    fields = json.loads(line)
    request = BuildRequest(**fields["request"])
    return request._replace(distributions=tuple(request.distributions)), fields["output"]


def error_fields(error: Exception) -> dict[str, Any]:
    """Return all that is known of an error, as plain data."""
    return {
        "type": "OSError" if isinstance(error, OSError) else type(error).__name__,
        "message": str(error),
        "exit_status": getattr(error, "exit_status", 1),
        "notes": getattr(error, "__notes__", []),
        "data": _data_of(error),
    }


def restored_error(fields: Mapping[str, Any]) -> Exception:
    """Return the error of which these are the fields."""
    error = _restored(fields["type"], fields["message"], fields["data"])
    for note in fields["notes"]:
        error.add_note(note)
    return error


def _data_of(error: Exception) -> dict[str, Any]:
    """Return what `_restored` needs in addition to the message."""
    if isinstance(error, LockbuildError):
        attributes = {name: value for name, value in vars(error).items() if not name.startswith("_")}
        return {name: each._asdict() if isinstance(each, Holder) else each for name, each in attributes.items()}
    if isinstance(error, OSError):
        return {"errno": error.errno, "strerror": error.strerror, "filename": error.filename}
    cause = getattr(error, "exception", error)
    if isinstance(cause, subprocess.CalledProcessError):
        return {"returncode": cause.returncode, "cmd": cause.cmd}
    return {"args": error.args, "cause": repr(cause), "traceback": "".join(traceback.format_exception(cause))}


def _restored(kind: str, message: str, data: Mapping[str, Any]) -> Exception:
    ours = getattr(errors, kind, None)
    if isinstance(ours, type) and issubclass(ours, LockbuildError):
        attributes = {name: _holder(value) if name == "holder" else value for name, value in data.items()}
        return restored_exception(ours, (message,), attributes)
    if kind == "OSError":
        # With an errno, the constructor returns the subclass for it.
        return OSError(message) if data["errno"] is None else OSError(data["errno"], data["strerror"], data["filename"])
    import build

    cause: Exception
    if "returncode" in data:
        cause = subprocess.CalledProcessError(data["returncode"], data["cmd"])
        if kind == "FailedProcessError":
            return build.FailedProcessError(cause, message)
    else:
        cause = RuntimeError(data["cause"])
        cause.add_note(data["traceback"])
    if kind == "BuildBackendException":
        return build.BuildBackendException(cause, message)
    theirs = getattr(build, kind, None)
    if isinstance(theirs, type) and issubclass(theirs, build.BuildException):
        return theirs(*data["args"])
    return cause if "returncode" in data else restored_exception(LockbuildError, (f"{kind}: {message}",), {})


def _plain(value: Any) -> Any:
    """Return a part of a request as JSON knows it."""
    return dict(value) if isinstance(value, Mapping) else os.fspath(value)


def _holder(fields: Mapping[str, Any] | None) -> Holder | None:
    return Holder(**{**fields, "others": tuple(fields.get("others", ()))}) if fields else None
