"""Calls the hooks of a backend through pyproject-hooks, with the steps and errors of ``build.ProjectBuilder``.

Importing ``build`` takes longer than all other work of a frontend for a build with a kept environment. So this module
imports it only after a failure, to raise its exceptions.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

from pyproject_hooks import BackendUnavailable, BuildBackendHookCaller, HookMissing

from lockbuild.errors import ArtifactError, LockLostError, TreeViewError
from lockbuild.files import FULL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from build import BuildBackendException

    from lockbuild.events import Reporter
    from lockbuild.hooks import HookEnvironment
    from lockbuild.hooks.runner import HookRunner
    from lockbuild.project import Project
    from lockbuild.request import Distribution


class BackendCaller:
    """The backend of a project, in a build environment or the frontend's own. Its methods call hooks."""

    def __init__(
        self, project: Project, environment: HookEnvironment | None, hooks: HookRunner, reporter: Reporter
    ) -> None:
        self.project = project
        self._reporter = reporter
        self._environment = environment
        self._hooks = hooks
        self._exchange = ""
        """The folder of the files that pyproject-hooks exchanged with the last hook."""
        self._caller = BuildBackendHookCaller(
            project.tree,
            project.backend,
            backend_path=project.backend_path,
            runner=self._run,
            python_executable=environment.python_executable if environment else None,
        )

    def get_requires(self, kind: Distribution, config_settings: Mapping[str, Any]) -> set[str]:
        """Return the extra requirements for a distribution. Raises `build.BuildBackendException`."""
        self._reporter.log(f"Getting build dependencies for {kind}...", ("step",))
        hook = f"get_requires_for_build_{kind}"
        with self._errors_of_build(hook):
            return set(getattr(self._caller, hook)(config_settings))

    def build(self, kind: Distribution, folder: str, config_settings: Mapping[str, Any]) -> str:
        """
        Build a distribution into a folder; return its name, as the backend gives it.

        Raises `build.BuildBackendException`, and `ArtifactError` when the backend gives no name.
        """
        self._reporter.log(f"Building {kind}...", ("step",))
        hook = f"build_{kind}"
        with self._errors_of_build(hook):
            name = getattr(self._caller, hook)(folder, config_settings)
        if not isinstance(name, str):
            raise ArtifactError("The backend did not return the name of an artifact")
        return name

    def metadata_path(self, folder: str) -> str:
        """
        Write the metadata of the wheel into a folder, building the wheel if there is no other way; return its path.

        Raises what ``build.ProjectBuilder.metadata_path`` raises.
        """
        from build import BuildBackendException, ProjectBuilder

        python = self._environment.python_executable if self._environment else sys.executable
        try:
            with self._nothing_exchanged_is_left():
                return ProjectBuilder(self.project.tree, python, self._run).metadata_path(folder)
        except BuildBackendException as error:
            if isinstance(error.exception, (TreeViewError, LockLostError)):
                raise error.exception from None
            raise self._failed(error.exception, str(error)) from None

    def _isolation(self) -> dict[str, str]:
        return dict((self._environment.make_extra_environ() if self._environment else None) or {})

    def _run(self, cmd: Sequence[str], cwd: str | None = None, extra_environ: Mapping[str, str] | None = None) -> None:
        self._exchange = cmd[-1]
        self._hooks(cmd, cwd, {**self._isolation(), **(extra_environ or {})})

    @contextlib.contextmanager
    def _nothing_exchanged_is_left(self) -> Iterator[None]:
        """Remove the exchange folder where pyproject-hooks could not: it was interrupted, or a system call failed."""
        try:
            yield
        finally:
            if self._exchange and os.path.lexists(self._exchange):
                import shutil

                shutil.rmtree(self._exchange, ignore_errors=True)

    @contextlib.contextmanager
    def _errors_of_build(self, hook: str) -> Iterator[None]:
        """Turn errors of the backend into those that ``ProjectBuilder`` would raise; let the system's through."""
        description: str | None
        failure: Exception
        try:
            with self._nothing_exchanged_is_left():
                yield
        except BackendUnavailable as error:
            description = f"Backend {self.project.backend!r} is not available."
            failure = error
        except HookMissing as error:
            description = f"Backend {self.project.backend!r} has no hook {hook}"
            failure = error
        except subprocess.CalledProcessError as error:
            description = f"Backend subprocess exited when trying to invoke {hook}"
            failure = error
        except (TreeViewError, LockLostError):
            raise
        except Exception as error:  # noqa: BLE001 - any other error of the hook call is the backend's failure
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                # It is the system's. A backend that leaves no output misses a file.
                raise _naming_folder(error) from None
            description = None
            failure = error
        else:
            return
        raise self._failed(failure, description) from None

    def _failed(self, failure: Exception, description: str | None) -> BuildBackendException:
        """Return the error of `build` for a failed hook call, with the reason at its end, and a hint as its note."""
        from build import BuildBackendException

        reason = _reason(failure)
        if description and reason:
            description = f"{description.rstrip('.')}: {reason}"
        error = BuildBackendException(failure, description)
        if missing := re.match(r"ModuleNotFoundError: No module named '([^'.]+)", reason):
            place = (
                "add what has it to build-system.requires in pyproject.toml"
                if self._environment
                else "install what has it, because --no-isolation uses the environment of lockbuild"
            )
            error.add_note(f"the build environment has no module {missing[1]}: {place}")
        return error


def _naming_folder(error: OSError) -> OSError:
    """Have a full disk name the folder of the exchange, because what is written to has no name any more."""
    if error.errno in FULL and error.filename is None:
        return OSError(error.errno, error.strerror, tempfile.gettempdir())
    return error


def _reason(failure: Exception) -> str:
    if isinstance(failure, subprocess.CalledProcessError):
        return failure.stderr or ""
    lines = str(getattr(failure, "traceback", "")).splitlines()
    return lines[-1] if lines else ""
