"""A plugin for tox: lockbuild builds the packages of a project that asks for it.

A project asks by naming lockbuild in ``requires``, or with ``lockbuild = true`` in tox's core settings; for all other
projects the plugin does nothing. It puts a class of its own, `LockbuildPackager`, in the place of the packaging
environments of tox and of tox-uv. They keep their names and settings. What changes is who builds:

- Sdists and wheels, editable ones too, are built by a process that runs lockbuild, with its lock on the source tree and
  its kept build environments. The file goes to a folder that belongs to this one tox process.
- For a Python that is too old for lockbuild it builds an sdist. The pip of that Python builds the wheel from it,
  outside of the tree.
- Other kinds of packages (external, skip, those of other plugins) stay with tox.

Three things here are not in tox's plugin API. CI runs the tests also with the oldest version of tox that the extra
``lockbuild[tox]`` allows. No upstream issue asks for a public way, as far as we know; tox 3 had one, the hook
``tox_package`` (tox-dev/tox#952).

- `Pep517VenvPackager`, the class behind the packaging environments of tox and tox-uv. It has their settings. With
  ``package = external`` tox also asks it for metadata.
- Its ``_teardown``, overridden: it would make tox's own frontend only to end it, and fails for a broken tree.
- The names in `_METHODS_OF_INTERRUPTION`, one of them private. tox lets one thread at a time into a packaging
  environment, so an interruption waits for the end of the very build that it is to end. tox-dev/tox#3056 shows such a
  wait; it is closed, but tox 4.67 still takes that lock.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from build import BuildException
from packaging.metadata import parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from tox.execute.request import StdinSource
from tox.plugin import impl
from tox.tox_env.errors import Fail
from tox.tox_env.python.package import EditableLegacyPackage, EditablePackage, SdistPackage, WheelPackage
from tox.tox_env.python.virtual_env.package.pyproject import Pep517VenvPackager
from tox.tox_env.register import REGISTER

from lockbuild.artifacts import metadata_of_wheel
from lockbuild.errors import ArtifactError, LockbuildError
from lockbuild.files import replacing
from lockbuild.other_python import OLDEST, run_elsewhere
from lockbuild.project import read_project
from lockbuild.settings import INSTALLER_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Generator

    from packaging.metadata import RawMetadata
    from tox.config.main import Config
    from tox.config.sets import ConfigSet, EnvConfigSet
    from tox.execute.api import Outcome
    from tox.report import OutErr
    from tox.session.state import State
    from tox.tox_env.api import ToxEnvCreateArgs
    from tox.tox_env.installer import InstallArguments
    from tox.tox_env.package import Package, PackageToxEnv
    from tox.tox_env.runner import RunToxEnv

    from lockbuild.request import Distribution

# The packaging environments that call a backend: tox's own and tox-uv's.
_PACKAGERS = ("virtualenv-pep-517", "uv-venv-pep-517")
_UV_PACKAGER = _PACKAGERS[1]

# How often the plugin looks at lockbuild's output for lines that a person should see at once, in seconds.
_LOOK_SECONDS = 0.5

# What of such a line is shown.
_WORDS_OF_WAITS = re.compile(r"(?:Waiting for|Got) the lock on [^\r\n\x1b]*")

# What lockbuild reads from the environment: its settings, and where its cache is. Then it uses the locks and build
# environments that it uses without tox.
_VARIABLES = ("LOCKBUILD_*", "XDG_CACHE_HOME")

# Stands for "external" in what tox is told to ask the backend: for a kind that it does not know, tox calls no hook and
# allows deps.
_EXTERNAL = "external, with lockbuild"

# What tox calls when it interrupts a packaging environment. No build works with what these methods touch.
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
    """Replace the packaging environments, before tox makes the first one, if the project asks for it."""
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
    """A packaging environment in which lockbuild builds; a mixin for those of tox and of tox-uv."""

    def __init__(self, create_args: ToxEnvCreateArgs) -> None:
        super().__init__(create_args)
        self._built: dict[tuple[Path, str], Path] = {}
        """Packages that are already built, by source and kind."""
        self._metadata: dict[str, RawMetadata] = {}
        """The metadata of the package, by its kind in tox: an editable wheel may require more than another one."""
        self._builders: dict[str, LockbuildPackager] = {}
        """The environments for wheels of another Python, by name."""
        self._session_folder: Path | None = None

    def __getattribute__(self, name: str) -> Any:
        """Let an interruption in while a package is built, for example after a SIGINT for tox alone."""
        if name in _METHODS_OF_INTERRUPTION:
            return object.__getattribute__(self, name)
        return super().__getattribute__(name)

    def register_config(self) -> None:
        """Add to the settings what running lockbuild needs."""
        super().register_config()
        self.conf["pass_env"].extend(_VARIABLES)
        self.conf["allowlist_externals"].append(glob.escape(sys.executable))

    @property
    def environment_variables(self) -> dict[str, str]:
        """The variables of this environment."""
        # tox gives its commands a terminal of their own, where no person sees a live line.
        return {**super().environment_variables, "TERM": "dumb"}

    def register_run_env(self, run_env: RunToxEnv) -> Generator[tuple[str, str], PackageToxEnv, None]:
        """Register a run environment, and note the environment that builds wheels for its Python."""
        registration = super().register_run_env(run_env)
        with contextlib.suppress(StopIteration):
            wanted = next(registration)
            while True:
                environment = yield wanted
                if isinstance(environment, LockbuildPackager):
                    self._builders[wanted[0]] = environment
                wanted = registration.send(environment)
        # lockbuild asks the backend what it requires.
        if "external" in self.call_require_hooks:
            self.call_require_hooks.add(_EXTERNAL)
        self.call_require_hooks -= {"sdist", "wheel", "editable", "external"}

    def requires(self) -> tuple[Requirement, ...]:
        """Return nothing: another Python runs lockbuild from where it is."""
        return ()

    def ensure_python_env(self) -> None:
        """Make a virtual environment for another Python than the one that runs tox."""
        if self._has_virtual_environment:
            super().ensure_python_env()

    def _install(self, arguments: InstallArguments, section: str, of_type: str) -> None:
        # tox-uv takes a virtual environment that is missing for a broken one, even if there is nothing to install. It
        # would make this environment and the run environment again in each run.
        if self._has_virtual_environment:
            super()._install(arguments, section, of_type)

    def prepend_env_var_path(self) -> list[Path]:
        """Return the folders of the virtual environment's programs."""
        # Abstract in `Pep517VenvPackager`; the class that comes after it has the method.
        return super().prepend_env_var_path() if self._has_virtual_environment else []  # type: ignore[safe-super]

    def perform_packaging(self, for_env: EnvConfigSet) -> list[Package]:
        """Build the package of a run environment. Raises `Fail`, and `SystemExit` when a program fails."""
        kind: str = for_env["package"]
        if kind == "editable-legacy":
            # pip asks the backend for further requirements.
            return [EditableLegacyPackage(self.root, [*self._build_requires(), *self.load_deps_for_env(for_env)])]
        if kind not in {"sdist", "wheel", "sdist-wheel", "editable"}:
            return super().perform_packaging(for_env)
        # The Python that a wheel is for builds it.
        builder = self if kind == "sdist" else self._builders.get(for_env["wheel_build_env"], self)
        if kind != "sdist" and builder._python == "too old":
            kind = builder._kind_for_old_python(kind)
        if kind == "sdist":
            settings = self.conf["config_settings_build_wheel"]
            return [SdistPackage(self._build("sdist"), builder.load_deps_for_env(for_env), config_settings=settings)]
        sdist = self._build("sdist") if kind == "sdist-wheel" else None
        # The output of the builder goes where ours goes.
        with builder.display_context(suspend=False):
            if kind == "editable":
                return [EditablePackage(builder._build("editable"), builder.load_deps_for_env(for_env))]
            wheel = builder._build("wheel", sdist)
            if sdist is None:
                return [WheelPackage(wheel, builder.load_deps_for_env(for_env))]
        self._metadata[kind] = _metadata_of_wheel(wheel)
        return [WheelPackage(wheel, self.load_deps_for_env(for_env))]

    def get_package_dependencies(self, for_env: EnvConfigSet) -> list[Requirement]:
        """Return what the package requires, for all extras and markers."""
        return [Requirement(text) for text in self._package_metadata(for_env).get("requires_dist", ())]

    def get_package_name(self, for_env: EnvConfigSet) -> str:
        """Return the name of the package, as its metadata spells it."""
        return self._package_metadata(for_env)["name"]

    def get_package_extras(self, for_env: EnvConfigSet) -> set[str]:
        """Return the extras of the package."""
        return set(self._package_metadata(for_env).get("provides_extra", ()))

    @cached_property
    def _python(self) -> Literal["ours", "other", "too old"]:
        """How the interpreter of this environment relates to the one that runs tox, and so lockbuild."""
        info = self.base_python
        executable = info.extra.get("executable")
        ours = {os.path.realpath(each) for each in (sys.executable, getattr(sys, "_base_executable", sys.executable))}
        if executable and os.path.realpath(executable) in ours:
            return "ours"
        return "other" if info.version_info[:2] >= OLDEST else "too old"

    @property
    def _has_virtual_environment(self) -> bool:
        # Only with editable-legacy and external tox allows deps for a packaging environment.
        return self._python == "other" or bool(self.conf["deps"])

    def _teardown(self) -> None:
        # Past Pep517VenvPackager: see above.
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

        Its folder belongs to this tox process. Until the distribution is installed, other tox processes may build in
        this environment or with the same ``pkg_dir``.
        """
        source = source or self.root
        if (source, kind) not in self._built:
            self.setup()
            folder = self._session() / str(len(self._built) + 1)
            options = [f"--{kind}", "--out-dir", str(folder), *self._config_settings(kind, "build")]
            self._run_lockbuild(f"build_{kind}", *options, str(source))
            suffix = ".tar.gz" if kind == "sdist" else ".whl"
            [built] = [path for path in folder.iterdir() if path.name.endswith(suffix)]
            self._copy_to_pkg_dir(built)
            self._built[source, kind] = built
        return self._built[source, kind]

    def _copy_to_pkg_dir(self, built: Path) -> None:
        # No link: a tox without the plugin opens the file of that name, and writes into it.
        self.pkg_dir.mkdir(parents=True, exist_ok=True)
        with replacing(str(self.pkg_dir / built.name)) as copy, built.open("rb") as original:
            shutil.copyfileobj(original, copy)

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
                # With another stdin, tox's option for capturing nothing would connect the output to the terminal.
                outcome = self._run_lockbuild(
                    "metadata", "--metadata", *settings, str(self.root), stdin=StdinSource.API
                )
                self._metadata[kind] = json.loads(outcome.out)
        return self._metadata[kind]

    def _build_requires(self) -> list[Requirement]:
        """Return what the project declares in ``[build-system]``. Raises `Fail` for a tree that ``build`` rejects."""
        try:
            return [Requirement(text) for text in read_project(str(self.root)).requires]
        except (BuildException, LockbuildError, InvalidRequirement) as error:
            # The second line of an invalid requirement only repeats it.
            raise Fail(f"cannot build {self.root}: {str(error).splitlines()[0]}") from error

    def _config_settings(self, kind: Distribution, hook: str) -> list[str]:
        """Return the option that hands tox's settings to the backend. All hooks of a build get the same ones."""
        settings: dict[str, Any] = {}
        for name in ("get_requires_for_build", hook):
            settings |= self.conf[f"config_settings_{name}_{kind}"] or {}
        return ["--config-json", json.dumps(settings)] if settings else []

    def _run_lockbuild(self, run_id: str, *words: str, stdin: StdinSource = StdinSource.OFF) -> Outcome:
        """Run lockbuild. tox shows its output when it fails; what it says about waits is shown at once."""
        options: list[str] = []
        if self.id() == _UV_PACKAGER and not self.environment_variables.get(INSTALLER_VARIABLE):
            options += ["--installer", "uv"]
        if self.conf["recreate"]:
            options.append("--refresh")
        if self._python == "other":
            command = run_elsewhere(str(self.env_python()), "lockbuild")
        else:
            # -P: Python does not import a folder of the project that has the name of a module.
            command = [sys.executable, "-P", "-m", "lockbuild"]
        with self.execute_async([*command, *options, *words], stdin=stdin, run_id=run_id) as status:
            read = 0
            while status.wait(_LOOK_SECONDS) is None:
                read = self._tell_of_waits(status.err, read)
        self._tell_of_waits(status.err, read)
        assert status.outcome is not None
        status.outcome.assert_success()
        return status.outcome

    def _tell_of_waits(self, output: bytearray, read: int) -> int:
        """
        Log the lines of an output about waits, from a position on; return the end of its last whole line.

        tox keeps back what environments say that run in parallel. These lines are needed while the wait lasts.
        """
        end = output.rfind(b"\n") + 1
        for words in _WORDS_OF_WAITS.findall(bytes(output[read:end]).decode(errors="replace")):
            with self.log_handler.suspend_out_err(True, cast("OutErr", (sys.stdout, sys.stderr))):
                if sys.stdout.isatty():
                    # Over the spinner, whose line has no end.
                    sys.stdout.write("\r\x1b[K")
                _log.warning("%s", words)
        return end


def _metadata_of_wheel(wheel: Path) -> RawMetadata:
    try:
        return parse_email(metadata_of_wheel(str(wheel)))[0]
    except ArtifactError as error:
        raise Fail(str(error)) from error
