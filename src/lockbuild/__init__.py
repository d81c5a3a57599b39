"""A PEP 517 build frontend that is safe to run any number of times at once.

The names of the Python API are imported from their modules when they are first used, so `import lockbuild` is cheap.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lockbuild.api import BuildOptions, async_build, build, build_many, project_wheel_metadata
    from lockbuild.errors import (
        ArtifactError,
        CacheFolderError,
        CircleError,
        EnvironmentFolderError,
        InstallerError,
        LockbuildError,
        LockTimeoutError,
        LockUnavailableError,
        NeededBuildFailedError,
        OutDirError,
        PlanError,
        PythonNotFoundError,
        SdistError,
        SettingsError,
        SourceNotBuiltError,
        SourceTreeMovedError,
        UnmetDependenciesError,
        WheelError,
        WorkerError,
    )
    from lockbuild.events import Holder, LockWait, Reporter
    from lockbuild.locks import SourceTreeLock
    from lockbuild.many.plan import PlannedBuild
    from lockbuild.many.run import Outcome
    from lockbuild.request import Artifact, BuildRequest, BuildResult, Timing
    from lockbuild.wheels import install_wheels

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "ArtifactError",
    "BuildOptions",
    "BuildRequest",
    "BuildResult",
    "CacheFolderError",
    "CircleError",
    "EnvironmentFolderError",
    "Holder",
    "InstallerError",
    "LockTimeoutError",
    "LockUnavailableError",
    "LockWait",
    "LockbuildError",
    "NeededBuildFailedError",
    "OutDirError",
    "Outcome",
    "PlanError",
    "PlannedBuild",
    "PythonNotFoundError",
    "Reporter",
    "SdistError",
    "SettingsError",
    "SourceNotBuiltError",
    "SourceTreeLock",
    "SourceTreeMovedError",
    "Timing",
    "UnmetDependenciesError",
    "WheelError",
    "WorkerError",
    "async_build",
    "build",
    "build_many",
    "install_wheels",
    "project_wheel_metadata",
]

# The modules of the names that are not errors.
_MODULES = {
    "Artifact": "request",
    "BuildOptions": "api",
    "BuildRequest": "request",
    "BuildResult": "request",
    "Holder": "events",
    "LockWait": "events",
    "Outcome": "many.run",
    "PlannedBuild": "many.plan",
    "Reporter": "events",
    "SourceTreeLock": "locks",
    "Timing": "request",
    "async_build": "api",
    "build": "api",
    "build_many": "api",
    "install_wheels": "wheels",
    "project_wheel_metadata": "api",
}


if not TYPE_CHECKING:
    # A type checker would take every name for one that is there.
    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
