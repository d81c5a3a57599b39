"""One build from start to end: project, environment, lock, hooks, artifacts.

`build` and `metadata` are the two things a frontend is asked for. Both go the way of `_call_hooks`: the base
environment is made first, so that nobody waits for an installer; then the tree is locked, if its hooks may run
setuptools; under the lock the backend is asked for its extra requirements, and does its work.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Self, TypeVar

from lockbuild.environments import BuildEnvironment, build_environment, extended
from lockbuild.errors import (
    ArtifactError,
    CircularRequirementsError,
    EnvironmentFolderError,
    OutDirError,
    UnmetDependenciesError,
    shown,
)
from lockbuild.events import Reporter
from lockbuild.hooks.caller import HookRunner
from lockbuild.locks import DirectoryLock, InheritableLock, SourceTreeLock
from lockbuild.locks.starting import AllPlacesTakenError
from lockbuild.project import SHARES_THE_TREE, LockDecision, Project, decide_lock, read_project
from lockbuild.request import BuildRequest, BuildResult, Distribution, Timing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from tempfile import TemporaryDirectory

    from lockbuild.hooks.backend import Backend
    from lockbuild.hooks.tee import Tee
    from lockbuild.sdist import Sdist
    from lockbuild.sharing.build import SharedBuild

T = TypeVar("T")


def build(request: BuildRequest, reporter: Reporter | None = None) -> BuildResult:
    """
    Build what the request asks for; return the artifacts, which are then in its out-dir.

    Raises `LockbuildError`, the exceptions of ``build``, and `OSError`.
    """
    reporter = reporter or Reporter()
    out_dir = out_dir_of(request)
    before = _list_artifacts(out_dir) if request.clear else {}
    with _Run(request, reporter, out_dir) as run:
        if is_sdist(request.source):
            built = _build_from_sdist(run, _read_sdist(run), request.distributions or ("wheel",))
        elif request.distributions:
            built = [_build_from_tree(run, kind)[1] for kind in request.distributions]
        else:
            path, published = _build_from_tree(run, "sdist")
            reporter.log("Building wheel from sdist", ("step",))
            built = [published, *_build_from_sdist(run, _read_sdist(run, path), ("wheel",))]
    from lockbuild import artifacts

    if request.clear:
        artifacts.clear_older(out_dir, before, map(os.path.basename, built))
    return BuildResult(
        tuple(artifacts.describe(path, "sdist" if path.endswith(".tar.gz") else "wheel") for path in built),
        tuple(run.timings),
    )


def metadata(request: BuildRequest, reporter: Reporter | None = None) -> bytes:
    """
    Return the METADATA of the wheel that the request's source would give: a tree, an sdist, or itself a wheel.

    Raises what `build` raises.
    """
    reporter = reporter or Reporter()
    if request.source.lower().endswith(".whl") and os.path.isfile(request.source):
        return _metadata_of_wheel(request.source)
    from lockbuild.build_library import forward_log

    with (
        forward_log(reporter, request.verbosity),
        _Run(request, reporter, out_dir_of(request), collects_output=True) as run,
        _source_tree(run, _read_sdist(run) if is_sdist(request.source) else request.source) as (tree, locks),
    ):
        return _call_hooks(run, tree, "wheel", lambda backend: _prepare_metadata(run, backend), locks)


def build_shared_wheel(archive: str, out_dir: str, request: BuildRequest, reporter: Reporter) -> str:
    """
    Build the wheel of an sdist that a build environment needs; return the wheel's path in the out-dir.

    However many environments need it at the same time, it is built once, like any sdist. ``request`` is that of the
    build whose environment it is: where the cache is, which installer there is, and how long to wait. Raises what
    `build` raises, and `CircularRequirementsError` for an sdist that is needed to build itself.
    """
    of_requirement = request._replace(
        source=archive,
        distributions=("wheel",),
        out_dir=out_dir,
        config_settings={},
        isolation=True,
        env_dir=None,
        sdist_extract_dir=None,
        lock=None,
        coalesce=False,
        clear=False,
    )
    return build(of_requirement, reporter).artifacts[0].path


def is_sdist(source: str) -> bool:
    """Tell whether a build's source is a source distribution rather than a tree."""
    return source.lower().endswith(".tar.gz") and os.path.isfile(source)


def out_dir_of(request: BuildRequest) -> str:
    """Return the out-dir of a request, as ``build`` chooses it when none is given."""
    if request.out_dir is not None:
        return request.out_dir
    if os.path.isfile(request.source):
        return os.path.dirname(os.path.abspath(request.source))
    return os.path.join(request.source, "dist")


class _Run:
    """
    What all the steps of one build share; a context manager, at whose end its staging folder is removed.

    With ``collects_output`` hooks' output is shown only when something is wrong; with --quiet it is not shown at all.
    """

    def __init__(
        self, request: BuildRequest, reporter: Reporter, out_dir: str, *, collects_output: bool = False
    ) -> None:
        self.request = request
        self.reporter = reporter
        self.out_dir = out_dir
        self.collects_output = collects_output
        self.timings: list[Timing] = []
        self.shared: SharedBuild | None = None
        """Set while this process builds for others, too."""
        self._started = time.time()
        self._staging: TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        """Begin the build."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what the build has left in its staging folder."""
        if self._staging is not None:
            self._staging.cleanup()

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Tell the reporter of a step, and note how long it took."""
        self.reporter.began(name)
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self.timings.append(Timing(name, seconds))
            self.reporter.ended(name, seconds)

    @contextlib.contextmanager
    def sharing(self, shared: SharedBuild) -> Iterator[None]:
        """Have what is built now be what is shared."""
        reporter = self.reporter
        self.shared, self.reporter = shared, shared.reporter
        try:
            yield
        finally:
            self.shared, self.reporter = None, reporter

    @property
    def oldest_environment(self) -> float:
        """
        Return since when a kept environment must have been made to be used, in seconds since the epoch.

        The same for the whole build: a refresh for its sdist is one for its wheel.
        """
        return self._started if self.request.refresh else self._started - self.request.env_max_age

    def folder(self) -> str:
        """Return a new, empty folder in the staging folder, which is this build's alone."""
        import tempfile

        if self._staging is None:
            self._staging = tempfile.TemporaryDirectory(prefix="lockbuild-", ignore_cleanup_errors=True)
        return tempfile.mkdtemp(dir=self._staging.name)

    def lock_directory(self, path: str) -> DirectoryLock:
        """Return the lock on a folder that the user named and that a build fills; it is made when it is missing."""
        if path == self.request.env_dir and os.path.exists(path) and not os.path.isdir(path):
            raise EnvironmentFolderError(f"Build environment location is not a directory: {path}")
        return DirectoryLock(
            path,
            cache_dir=self.request.cache_dir,
            timeout=self.request.lock_timeout,
            reporter=self.reporter,
            create=True,
        )

    def lock_source_tree(self, tree: str) -> SourceTreeLock:
        """Return the lock on a source tree."""
        return SourceTreeLock(
            tree, cache_dir=self.request.cache_dir, timeout=self.request.lock_timeout, reporter=self.reporter
        )


def _read_sdist(run: _Run, built: str | None = None) -> Sdist:
    """Read the sdist that is the request's source, or one that was just built, which may be of any size."""
    from lockbuild.sdist import read_sdist

    if built is not None:
        return read_sdist(built, run.folder())
    return read_sdist(run.request.source, run.folder(), run.request.max_sdist_size)


def _build_from_tree(run: _Run, kind: Distribution) -> tuple[str, str]:
    """Build one distribution of the tree that the request names; return its paths as `_build_distribution` does."""
    tree = run.request.source
    if run.request.coalesce:
        return _build_once(run, tree, kind, lambda: _build_distribution(run, tree, kind))
    return _build_distribution(run, tree, kind)


def _build_from_sdist(run: _Run, sdist: Sdist, kinds: Sequence[Distribution]) -> list[str]:
    """Build from an sdist that is unpacked for it; return the paths of what was published."""

    def build_all() -> list[tuple[str, str]]:
        with _source_tree(run, sdist) as (tree, locks):
            return [_build_distribution(run, tree, kind, locks) for kind in kinds]

    if sdist.sha256 in run.request.building:
        raise CircularRequirementsError(sdist.name, os.getpid())
    run.request = run.request._replace(building=(*run.request.building, sdist.sha256))
    if tuple(kinds) == ("wheel",) and (is_sdist(run.request.source) or run.request.coalesce):
        return [_build_once(run, sdist, "wheel", lambda: build_all()[0])[1]]
    return [published for _, published in build_all()]


def _build_once(
    run: _Run, source: Sdist | str, kind: Distribution, build_it: Callable[[], tuple[str, str]]
) -> tuple[str, str]:
    """Have something built by one of all the processes that ask for the same at the same time, us or another one."""
    from lockbuild import artifacts
    from lockbuild.sharing.build import shared_build

    shared = shared_build(source, kind, run.request, run.reporter, run.folder(), run.oldest_environment)
    if shared is None:
        return build_it()
    with shared:
        if shared.delivery is None:
            with run.sharing(shared):
                path, published = build_it()
            shared.succeeded(path)
            return path, published
    folder, name = shared.delivery
    _make_out_dir(run.out_dir)
    return os.path.join(folder, name), artifacts.publish(folder, name, run.out_dir)


@contextlib.contextmanager
def _source_tree(run: _Run, source: Sdist | str) -> Iterator[tuple[str, list[DirectoryLock]]]:
    """Yield the source tree of a build, which an sdist is unpacked into, and the locks that it is used under."""
    if isinstance(source, str):
        yield source, []
        return
    from lockbuild.sdist import unpacked

    extract_dir = run.request.sdist_extract_dir
    with contextlib.ExitStack() as stack:
        locks: list[DirectoryLock] = []
        if extract_dir is not None:
            # Two builds with one --sdist-extract-dir would each remove the tree in which the other one builds. With
            # an --env-dir, too, both are locked here in the order of their names: another build may have been given
            # the same two the other way round.
            folders = [extract_dir, *([run.request.env_dir] if run.request.env_dir is not None else [])]
            in_order = sorted(folders, key=os.path.realpath)
            locks.extend(stack.enter_context(run.lock_directory(path)) for path in in_order)
        yield stack.enter_context(unpacked(source, extract_dir)), locks


def _build_distribution(
    run: _Run, tree: str, kind: Distribution, locks: Sequence[InheritableLock] = ()
) -> tuple[str, str]:
    """Build one distribution of a tree and publish it; return its paths in the staging folder and in the out-dir."""

    def build_and_publish(backend: Backend) -> tuple[str, str]:
        from lockbuild import artifacts

        _make_out_dir(run.out_dir)
        folder = run.folder()
        with run.step(f"build_{kind}"):
            returned = backend.build(kind, folder, run.request.config_settings)
        with run.step("publish"):
            name = artifacts.check_artifact(folder, returned, kind)
            return os.path.join(folder, name), artifacts.publish(folder, name, run.out_dir)

    return _call_hooks(run, tree, kind, build_and_publish, locks)


def _prepare_metadata(run: _Run, backend: Backend) -> bytes:
    with open(os.path.join(backend.metadata_path(run.folder()), "METADATA"), "rb") as file:
        return file.read()


def _call_hooks(
    run: _Run,
    tree: str,
    kind: Distribution,
    work: Callable[[Backend], T],
    outer_locks: Sequence[InheritableLock],
) -> T:
    """Have the backend of a tree do some work, in its environment, under its lock."""
    with contextlib.ExitStack() as stack:
        locks: list[InheritableLock] = [*outer_locks]
        if run.shared is not None:
            locks.append(run.shared.lock)
        taken = [lock.path for lock in outer_locks if isinstance(lock, DirectoryLock)]
        if run.request.env_dir is not None and run.request.env_dir not in taken:
            # Two builds with one --env-dir: the second one finds the folder empty when the first has succeeded.
            locks.append(stack.enter_context(run.lock_directory(run.request.env_dir)))
        project = read_project(tree)
        tree_lock = run.lock_source_tree(project.tree)
        stack.callback(tree_lock.close)
        hooks = stack.enter_context(HookRunner(_output_handler(run), _tee(run)))

        outer = tuple(locks)

        def warm_up(candidate: BuildEnvironment | None, *, at_once: bool = False) -> bool:
            """
            Start the hook host while we still look at the environment, import what we need, and wait; tell whether it
            was started. Of the builds that wait for one tree, only some are unless it has to be ``at_once``.
            """
            if project.backend_path or not run.request.preimport:
                # An in-tree backend may be imported only under the lock.
                return True
            expected = [*outer, *(candidate.locks if candidate else ())]
            if _decide_lock(run, project, candidate, ()).locked:
                if tree_lock.lock_file is None:
                    tree_lock.open()
                expected.append(tree_lock)
            try:
                hooks.warm_up(project, candidate, expected, None if at_once else tree_lock.lock_file)
            except AllPlacesTakenError:
                return False
            finally:
                _import_the_rest()
            return True

        environment = None
        if run.request.isolation:
            with run.step("environment"):
                environment = stack.enter_context(
                    build_environment(project.requires, run.request, run.reporter, run.oldest_environment, warm_up)
                )
            locks.extend(environment.locks)
            if run.shared is not None:
                run.shared.uses(environment)
        else:
            warm_up(None)
        tree_lock.is_ready = lambda: warm_up(environment)

        decision = _decide_lock(run, project, environment, ())
        with _hint_at_shared_tree(project, decision), _locked(run, project, decision, tree_lock, locks, hooks) as held:
            warm_up(environment, at_once=True)
            extra_requires = _ask_for_extra_requirements(
                run, kind, _backend(run, project, environment, hooks), decision
            )
            with _extended(run, environment, extra_requires, held, hooks) as full_environment:
                late_decision = _decide_lock(run, project, full_environment, extra_requires)
                if decision.locked or not late_decision.locked:
                    return work(_backend(run, project, full_environment, hooks))
        # The backend itself asked for setuptools, which was nowhere until now; so nothing has run it yet.
        with (
            _locked(run, project, late_decision, tree_lock, locks, hooks) as held,
            _extended(run, environment, extra_requires, held, hooks) as full_environment,
        ):
            return work(_backend(run, project, full_environment, hooks))


def _import_the_rest() -> None:
    """Import what is needed from now on. The hook host imports the backend at the same time, on another core."""
    import tempfile  # noqa: F401
    import zipfile  # noqa: F401

    import lockbuild.artifacts
    import lockbuild.hooks.backend  # noqa: F401


def _backend(run: _Run, project: Project, environment: BuildEnvironment | None, hooks: HookRunner) -> Backend:
    from lockbuild.hooks.backend import Backend

    return Backend(project, environment, hooks, run.reporter)


def _decide_lock(
    run: _Run, project: Project, environment: BuildEnvironment | None, extra_requires: Collection[str]
) -> LockDecision:
    is_installed = environment.has if environment is not None else None
    return decide_lock(project, run.request.lock, extra_requires, is_installed)


@contextlib.contextmanager
def _locked(
    run: _Run,
    project: Project,
    decision: LockDecision,
    tree_lock: SourceTreeLock,
    locks: Sequence[InheritableLock],
    hooks: HookRunner,
) -> Iterator[Sequence[InheritableLock]]:
    """
    Lock the tree, if that was decided, and let hooks run only in there. They have ended when it is unlocked.

    Yields all the locks under which they run.
    """
    verb = "Locking" if decision.locked else "Not locking"
    run.reporter.detail(f"{verb} {shown(project.tree)}: {decision.reason}")
    with contextlib.ExitStack() as stack:
        held = [*locks]
        if decision.locked:
            with run.step("lock"):
                held.append(stack.enter_context(tree_lock))
        if run.shared is not None:
            run.shared.begins()
        stack.enter_context(hooks.under(held))
        yield held


@contextlib.contextmanager
def _hint_at_shared_tree(project: Project, decision: LockDecision) -> Iterator[None]:
    """Where an unlocked backend fails that is known to share the tree between builds, add that to what it says."""
    try:
        yield
    except Exception as error:
        shared = SHARES_THE_TREE.get(project.backend.partition(":")[0])
        if shared and not decision.locked:
            error.add_note(
                f"{project.backend} writes to {shared} in the source tree; if another build of it ran at the "
                "same time, use --lock always"
            )
        raise


def _ask_for_extra_requirements(run: _Run, kind: Distribution, backend: Backend, decision: LockDecision) -> set[str]:
    """Ask the backend what else it requires for this build; without isolation, check that it is all there."""
    unchecked = not run.request.isolation and run.request.skip_dependency_check
    if unchecked and (decision.locked or decision.final):
        return set()
    # A backend that is not locked is asked in any case: it may be about to run setuptools.
    with run.step(f"get_requires_for_build_{kind}"):
        extra = backend.get_requires(kind, run.request.config_settings)
    if not run.request.isolation and not unchecked:
        from lockbuild.build_library import format_unmet_dependencies

        requires = {*backend.project.requires, *extra}
        if missing := {chain for requirement in requires for chain in _missing(requirement)}:
            raise UnmetDependenciesError(format_unmet_dependencies(missing))
    return extra


def _missing(requirement: str) -> Iterator[tuple[str, ...]]:
    from build import check_dependency
    from packaging.requirements import InvalidRequirement

    try:
        yield from check_dependency(requirement)
    except InvalidRequirement as error:
        problem = str(error).partition("\n")[0]
        raise UnmetDependenciesError(f"{requirement!r} is not a requirement: {problem}") from error


@contextlib.contextmanager
def _extended(
    run: _Run,
    environment: BuildEnvironment | None,
    extra_requires: Collection[str],
    held: Sequence[InheritableLock],
    hooks: HookRunner,
) -> Iterator[BuildEnvironment | None]:
    """Have hooks run where the extra requirements are installed, too."""
    if environment is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        with run.step("environment") if extra_requires else contextlib.nullcontext():
            full = stack.enter_context(
                extended(environment, extra_requires, run.request, run.reporter, run.oldest_environment)
            )
        if versions := full.required_versions():
            listed = "".join(f"\n- {name}=={version}" for name, version in versions.items())
            run.reporter.log(f"Installed build dependency versions:{listed}", ("step",))
        if run.shared is not None:
            run.shared.uses(full)
        if full is environment:
            yield full
        else:
            with hooks.under([*held, *full.locks]):
                yield full


def _make_out_dir(out_dir: str) -> None:
    """Make the out-dir before the backend works in vain; the errors are worded as ``build`` words them."""
    path = os.path.abspath(out_dir)
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        raise OutDirError(f"Build path '{path}' exists and is not a directory") from None
    except (NotADirectoryError, FileNotFoundError):
        raise OutDirError(f"Build path '{path}' does not exist and cannot be a directory") from None


def _output_handler(run: _Run) -> Callable[[Sequence[str], bytes, int], None] | None:
    """Return what is to be done with the output of hooks; ``None`` lets it go where ours goes."""
    if not run.collects_output:
        return None if run.request.verbosity >= 0 or run.shared else lambda *_: None

    def show(command: Sequence[str], output: bytes, status: int) -> None:
        if status or run.request.verbosity > 0:
            from subprocess import list2cmdline

            run.reporter.log(list2cmdline(command), ("subprocess", "cmd"))
            if output:
                run.reporter.log(output.decode(errors="backslashreplace"), ("subprocess", "stdout"))

    return show


def _tee(run: _Run) -> Tee | None:
    """Return what writes down the output of hooks for those who wait for this build."""
    if run.shared is None or run.shared.output is None:
        return None
    from lockbuild.hooks.tee import Tee

    return Tee(run.shared.output, is_passed_on=run.request.verbosity >= 0)


def _list_artifacts(out_dir: str) -> dict[str, tuple[int, int]]:
    from lockbuild.artifacts import list_artifacts

    return list_artifacts(out_dir)


def _metadata_of_wheel(wheel: str) -> bytes:
    import zipfile

    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA")]
            if len(names) != 1:
                raise ArtifactError(
                    f"{wheel!r} is not a valid wheel: expected one .dist-info/METADATA, found {len(names)}"
                )
            return archive.read(names[0])
    except zipfile.BadZipFile as error:
        raise ArtifactError(f"{wheel!r} is not a valid wheel: {error}") from error
