"""A plugin for tox: the packages of a project that asks for it are built by lockbuild.

A project asks by naming lockbuild in ``requires``, or with ``lockbuild = true`` in tox's core settings; for all other
projects the plugin does nothing. It puts a class of its own, `LockbuildPackager`, in the place of the packaging
environments of tox and of tox-uv. They keep their names and settings. What changes is who builds:

- Sdists and wheels, editable ones too, are built by a process that runs lockbuild, with its lock on the source tree and
  its kept build environments. The file goes to a folder that belongs to this one tox process.
- For a Python that is too old for lockbuild an sdist is built, which that Python's pip builds outside of the tree.
- Other kinds of packages (external, skip, those of plugins) are none of our business.

It extends tox's own ``Pep517VenvPackager``, which is no public interface; CI runs its tests also with the oldest
version of tox that the extra ``lockbuild[tox]`` allows.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import shutil
import sys
import tempfile
from functools import cached_property
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packaging.metadata import parse_email
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tox.execute.request import StdinSource
from tox.plugin import impl
from tox.tox_env.api import ToxEnv
from tox.tox_env.errors import Fail
from tox.tox_env.python.api import Python
from tox.tox_env.python.package import EditableLegacyPackage, EditablePackage, SdistPackage, WheelPackage
from tox.tox_env.python.virtual_env.package.pyproject import Pep517VenvPackager
from tox.tox_env.register import REGISTER

from lockbuild.artifacts import metadata_of_wheel
from lockbuild.errors import ArtifactError
from lockbuild.settings import INSTALLER_VARIABLE

if TYPE_CHECKING:
    from packaging.metadata import RawMetadata
    from tox.config.main import Config
    from tox.config.sets import ConfigSet, EnvConfigSet
    from tox.execute.api import Outcome
    from tox.session.state import State
    from tox.tox_env.api import ToxEnvCreateArgs
    from tox.tox_env.package import Package

    from lockbuild.request import Distribution

# The packaging environments that build with a backend: tox's own and tox-uv's.
_PACKAGERS = ("virtualenv-pep-517", "uv-venv-pep-517")
_UV_PACKAGER = _PACKAGERS[1]

_OLDEST_PYTHON = (3, 11)

# How often the output of lockbuild is looked at for something that a person should see at once, in seconds.
_LOOK_SECONDS = 0.5

# What that is, by the words of the console.
_WORDS_OF_WAITS = ("Waiting for the lock on ", "Got the lock on ")

# What tox calls on its way to the interruption of a packaging environment. None of it touches what a build works with.
_METHODS_OF_INTERRUPTION = frozenset({"interrupt", "child_pkg_envs", "display_context", "_log_context"})

_log = logging.getLogger(__name__)


@impl
def tox_add_core_config(core_conf: ConfigSet) -> None:
    """Add the setting that switches the plugin on or off."""
    core_conf.add_config(
        keys="lockbuild",
        of_type=bool,
        default=_is_required,
        desc="build packages with lockbuild; by default so if requires names it",
    )


@impl
def tox_add_env_config(state: State) -> None:
    """Take the place of the packaging environments, before the first one is made, if the project asks for it."""
    if not state.conf.core["lockbuild"]:
        return
    for name in _PACKAGERS:
        with contextlib.suppress(KeyError):
            packager = REGISTER.package(name)
            if not issubclass(packager, LockbuildPackager):
                REGISTER.add_package_env(type(f"Lockbuild{packager.__name__}", (LockbuildPackager, packager), {}))


def _is_required(conf: Config, _env_name: str | None) -> bool:
    return any(canonicalize_name(requirement.name) == "lockbuild" for requirement in conf.core["requires"])


class LockbuildPackager(Pep517VenvPackager):
    """A packaging environment that has lockbuild build, to be mixed into one of tox or of a plugin for tox."""

    def __init__(self, create_args: ToxEnvCreateArgs) -> None:
        super().__init__(create_args)
        self._built: dict[tuple[Path, str], Path] = {}
        """The packages that were built, by source and kind."""
        self._metadata: dict[str, RawMetadata] = {}
        """The metadata of the package, by its kind in tox: an editable wheel may require more than another one."""
        self._session_folder: Path | None = None

    def __getattribute__(self, name: str) -> Any:
        """
        Let an interruption in while a package is built.

        tox has one thread at a time call methods of a packaging environment, also those by which it interrupts one:
        after a SIGINT for tox alone its main thread would wait for the end of the very build that it is to end.
        """
        if name in _METHODS_OF_INTERRUPTION:
            return object.__getattribute__(self, name)
        return super().__getattribute__(name)

    def perform_packaging(self, for_env: EnvConfigSet) -> list[Package]:
        """Build the package of a run environment. Raises `Fail`, and `SystemExit` where a program has failed."""
        kind: str = for_env["package"]
        if kind == "editable-legacy":
            # What else the backend may require pip asks it for.
            return [EditableLegacyPackage(self.root, [*self.requires(), *self.load_deps_for_env(for_env)])]
        if kind not in {"sdist", "wheel", "sdist-wheel", "editable"}:
            return super().perform_packaging(for_env)
        # Wheels are built by the Python that they are for.
        child = self._wheel_build_envs.get(for_env["wheel_build_env"]) if kind != "sdist" else None
        builder = child if isinstance(child, LockbuildPackager) else self
        if kind != "sdist" and builder._python == "too old":
            kind = builder._kind_for_old_python(kind)
        if kind == "sdist":
            settings = self.conf["config_settings_build_wheel"]
            return [SdistPackage(self._build("sdist"), builder.load_deps_for_env(for_env), config_settings=settings)]
        if kind != "sdist-wheel" and builder is not self:
            with builder.display_context(self._has_display_suspended):
                return builder.perform_packaging(for_env)
        if kind == "sdist-wheel":
            with builder.display_context(self._has_display_suspended):
                wheel = builder._build("wheel", self._build("sdist"))
            self._metadata[kind] = _metadata_of_wheel(wheel)
            return [WheelPackage(wheel, self.load_deps_for_env(for_env))]
        if kind == "editable":
            return [EditablePackage(self._build("editable"), self.load_deps_for_env(for_env))]
        return [WheelPackage(self._build("wheel"), self.load_deps_for_env(for_env))]

    def get_package_dependencies(self, for_env: EnvConfigSet) -> list[Requirement]:
        """Return what the package requires, for all extras and markers."""
        return [Requirement(text) for text in self._package_metadata(for_env).get("requires_dist", ())]

    def get_package_name(self, for_env: EnvConfigSet) -> str:
        """Return the name that the package has for itself."""
        return self._package_metadata(for_env)["name"]

    def get_package_extras(self, for_env: EnvConfigSet) -> set[str]:
        """Return the extras of the package."""
        return set(self._package_metadata(for_env).get("provides_extra", ()))

    def _default_pass_env(self) -> list[str]:
        # lockbuild's settings, and where its cache is: locks and environments are those of builds without tox.
        return [*super()._default_pass_env(), "LOCKBUILD_*", "XDG_CACHE_HOME"]

    @property
    def _allow_externals(self) -> list[str]:
        return [*super()._allow_externals, glob.escape(sys.executable)]

    @cached_property
    def _python(self) -> Literal["ours", "other", "too old"]:
        """How the interpreter of this environment relates to the one that runs tox, and so lockbuild."""
        info = self.base_python
        executable = info.extra.get("executable")
        ours = {os.path.realpath(each) for each in (sys.executable, getattr(sys, "_base_executable", sys.executable))}
        if executable and os.path.realpath(executable) in ours:
            return "ours"
        return "other" if info.version_info[:2] >= _OLDEST_PYTHON else "too old"

    def _setup_env(self) -> None:
        """
        Set the environment up as far as the one who builds needs it.

        For lockbuild it is only a few folders, unless another Python has to build: that needs a virtual environment
        with lockbuild in it.
        """
        if self._python == "other":
            Python._setup_env(self)
            self.installer.install([_this_lockbuild()], LockbuildPackager.__name__, "lockbuild")
        else:
            ToxEnv._setup_env(self)

    def _teardown(self) -> None:
        # Without what ends tox's own frontend, which would first be made for that, and fails for a tree that is broken.
        super(Pep517VenvPackager, self)._teardown()
        if self._session_folder is not None:
            shutil.rmtree(self._session_folder, ignore_errors=True)

    def _kind_for_old_python(self, kind: str) -> Literal["sdist"]:
        version = ".".join(map(str, self.base_python.version_info[:2]))
        if kind == "editable":
            raise Fail(
                f"lockbuild cannot build an editable wheel for Python {version}: it needs Python 3.11 or newer; "
                "choose package = sdist for that environment"
            )
        _log.warning("lockbuild does not run under Python %s: its pip builds the wheel, from an sdist", version)
        return "sdist"

    def _build(self, kind: Distribution, source: Path | None = None) -> Path:
        """
        Have lockbuild build a distribution of the project, or of an sdist; return its path.

        It is in a folder of this process alone. Any number of others may build meanwhile, in this environment or with
        the same ``pkg_dir``, before we have installed it.
        """
        source = source or self.root
        if (source, kind) not in self._built:
            self.setup()
            folder = self._session() / str(len(self._built) + 1)
            options = [f"--{kind}", "--out-dir", str(folder), *self._config_settings(kind, "build")]
            self._run_lockbuild(f"build_{kind}", *options, str(source))
            suffix = ".tar.gz" if kind == "sdist" else ".whl"
            [built] = [path for path in folder.iterdir() if path.name.endswith(suffix)]
            _copy_whole(built, self.pkg_dir)
            self._built[source, kind] = built
        return self._built[source, kind]

    def _session(self) -> Path:
        if self._session_folder is None:
            self._session_folder = Path(tempfile.mkdtemp(prefix="lockbuild-", dir=self.core["temp_dir"]))
        return self._session_folder

    def _package_metadata(self, for_env: EnvConfigSet) -> RawMetadata:
        kind: str = for_env["package"]
        if kind not in self._metadata:
            if self._python != "too old" and kind in {"wheel", "editable"}:
                self._metadata[kind] = _metadata_of_wheel(self._build("editable" if kind == "editable" else "wheel"))
            else:
                self.setup()
                settings = self._config_settings("wheel", "prepare_metadata_for_build")
                # tox connects the output of other commands to the terminal when it is told to capture nothing.
                outcome = self._run_lockbuild(
                    "metadata", "--metadata", *settings, str(self.root), stdin=StdinSource.API
                )
                self._metadata[kind] = json.loads(outcome.out)
        return self._metadata[kind]

    def _config_settings(self, kind: Distribution, hook: str) -> list[str]:
        """Return the option for tox's settings for the backend. One build has the same ones for all its hooks."""
        settings: dict[str, Any] = {}
        for name in ("get_requires_for_build", hook):
            settings |= self.conf[f"config_settings_{name}_{kind}"] or {}
        return ["--config-json", json.dumps(settings)] if settings else []

    def _run_lockbuild(self, run_id: str, *words: str, stdin: StdinSource = StdinSource.OFF) -> Outcome:
        """Run lockbuild; what it says is shown when it fails, and at once when it waits for somebody."""
        python = str(self.env_python()) if self._python == "other" else sys.executable
        options: list[str] = []
        if self.id() == _UV_PACKAGER and not self.environment_variables.get(INSTALLER_VARIABLE):
            options += ["--installer", "uv"]
        if self.conf["recreate"]:
            options.append("--refresh")
        # -P: a folder of the project that is named like a module of ours must not be taken for it.
        command = [python, "-P", "-m", "lockbuild", *options, *words]
        with self.execute_async(command, stdin=stdin, run_id=run_id) as status:
            read = 0
            while status.wait(_LOOK_SECONDS) is None:
                read = _tell_of_waits(status.err, read)
        _tell_of_waits(status.err, read)
        assert status.outcome is not None
        status.outcome.assert_success()
        return status.outcome


def _tell_of_waits(output: bytearray, read: int) -> int:
    """Log what an output says about locks that are waited for, from a position on; return where its lines end."""
    end = output.rfind(b"\n") + 1
    for line in bytes(output[read:end]).decode(errors="replace").splitlines():
        for words in _WORDS_OF_WAITS:
            if words in line:
                _log.warning("%s", line[line.index(words) :])
    return end


def _metadata_of_wheel(wheel: Path) -> RawMetadata:
    try:
        return parse_email(metadata_of_wheel(str(wheel)))[0]
    except ArtifactError as error:
        raise Fail(str(error)) from error


def _copy_whole(file: Path, folder: Path) -> None:
    """
    Copy a file into a folder, where it is whole as soon as it has its name.

    Not linked: tox without the plugin opens the file of that name, and writes into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, hidden = tempfile.mkstemp(dir=folder, prefix=f".{file.name}.")
    os.close(descriptor)
    try:
        shutil.copy(file, hidden)
        os.replace(hidden, folder / file.name)
    except BaseException:
        os.unlink(hidden)
        raise


def _this_lockbuild() -> Requirement:
    """
    Return a requirement for the very lockbuild that this is, to be installed for another Python.

    What was not installed from an index has a note of where it came from (PEP 610).
    """
    installed = distribution("lockbuild")
    origin = json.loads(installed.read_text("direct_url.json") or "null")
    if origin is None:
        return Requirement(f"lockbuild == {installed.version}")
    url: str = origin["url"]
    if commit := origin.get("vcs_info"):
        url = f"{commit['vcs']}+{url}@{commit['commit_id']}"
    if subdirectory := origin.get("subdirectory"):
        url += f"#subdirectory={subdirectory}"
    return Requirement(f"lockbuild @ {url}")
