"""One build from start to end: project, environment, lock, hooks, artifacts.

`build` and `metadata` are the two things a frontend is asked for. Both go the way of `_call_hooks`: the base
environment is made first, so that nobody waits for an installer; then the tree is locked, if its hooks may run
setuptools; under the lock the backend is asked for its extra requirements, and does its work.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, TypeVar

from lockbuild.environments import BuildEnvironment, build_environment, extended
from lockbuild.errors import shown
from lockbuild.events import Reporter
from lockbuild.hooks.starting import AllPlacesTakenError
from lockbuild.job import Job
from lockbuild.locks import DirectoryLock, InheritableLock, SourceTreeLock
from lockbuild.project import LockDecision, Project, decide_lock, hint_at_shared_tree, read_project
from lockbuild.request import BuildRequest, BuildResult, Distribution

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from lockbuild.hooks.backend import Backend
    from lockbuild.hooks.caller import HookRunner
    from lockbuild.hooks.early import EarlyHost
    from lockbuild.sdist import Sdist

T = TypeVar("T")


def build(request: BuildRequest, reporter: Reporter | None = None, early: EarlyHost | None = None) -> BuildResult:
    """
    Build what the request asks for; return the artifacts, which are then in its out-dir.

    ``early`` is a hook host that was started in the expectation that this build needs it, which it may not.
    Raises `LockbuildError`, the exceptions of ``build``, and `OSError`.
    """
    reporter = reporter or Reporter()
    out_dir = out_dir_of(request)
    before = {}
    if request.clear:
        from lockbuild.artifacts import list_artifacts

        before = list_artifacts(out_dir)
    wanted = len(request.distributions) or (1 if is_sdist(request.source) else 2)
    with Job(request, reporter, out_dir, distributions=wanted, early=early) as job:
        if is_sdist(request.source):
            built = _build_from_sdist(job, _read_sdist(job), request.distributions or ("wheel",))
        elif request.distributions:
            built = [_build_from_tree(job, kind)[1] for kind in request.distributions]
        else:
            path, published = _build_from_tree(job, "sdist")
            reporter.log("Building wheel from sdist", ("step",))
            built = [published, *_build_from_sdist(job, _read_sdist(job, path), ("wheel",))]
    from lockbuild import artifacts

    if request.clear:
        artifacts.clear_older(out_dir, before, map(os.path.basename, built))
    return BuildResult(
        tuple(artifacts.describe(path, "sdist" if path.endswith(".tar.gz") else "wheel") for path in built),
        tuple(job.timings),
    )


def metadata(request: BuildRequest, reporter: Reporter | None = None) -> bytes:
    """
    Return the METADATA of the wheel that the request's source would give: a tree, an sdist, or itself a wheel.

    Raises what `build` raises.
    """
    reporter = reporter or Reporter()
    if request.source.lower().endswith(".whl") and os.path.isfile(request.source):
        from lockbuild.artifacts import metadata_of_wheel

        return metadata_of_wheel(request.source)
    from lockbuild.build_library import forward_log

    with (
        forward_log(reporter, request.verbosity),
        Job(request, reporter, out_dir_of(request), collects_output=True) as job,
        _source_tree(job, _read_sdist(job) if is_sdist(request.source) else request.source) as (tree, locks),
    ):
        return _call_hooks(job, tree, "wheel", lambda backend: _prepare_metadata(job, backend), locks)


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


def _read_sdist(job: Job, built: str | None = None) -> Sdist:
    """Read the sdist that is the request's source, or one that was just built, which may be of any size."""
    from lockbuild.sdist import read_sdist

    if built is not None:
        return read_sdist(built, job.folder())
    return read_sdist(job.request.source, job.folder(), job.request.max_sdist_size)


def _build_from_tree(job: Job, kind: Distribution) -> tuple[str, str]:
    """Build one distribution of the tree that the request names; return its paths as `_build_distribution` does."""
    tree = job.request.source
    if job.request.coalesce:
        return _build_once(job, tree, kind, lambda locks: _build_distribution(job, tree, kind, locks))
    return _build_distribution(job, tree, kind)


def _build_from_sdist(job: Job, sdist: Sdist, kinds: Sequence[Distribution]) -> list[str]:
    """Build from an sdist that is unpacked for it; return the paths of what was published."""

    def build_all(outer_locks: Sequence[InheritableLock]) -> list[tuple[str, str]]:
        with _source_tree(job, sdist) as (tree, locks):
            return [_build_distribution(job, tree, kind, [*outer_locks, *locks]) for kind in kinds]

    if tuple(kinds) == ("wheel",) and (is_sdist(job.request.source) or job.request.coalesce):
        return [_build_once(job, sdist, "wheel", lambda locks: build_all(locks)[0])[1]]
    return [published for _, published in build_all(())]


def _build_once(
    job: Job,
    source: Sdist | str,
    kind: Distribution,
    build_it: Callable[[Sequence[InheritableLock]], tuple[str, str]],
) -> tuple[str, str]:
    """Have something built by one of all the processes that ask for the same at the same time, us or another one."""
    from lockbuild import artifacts
    from lockbuild.sharing.build import shared_build

    shared = shared_build(source, kind, job.request, job.reporter)
    if shared is None:
        return build_it(())
    with shared.lock:
        taken = shared.take(job.folder(), job.oldest_environment)
        if taken is None:
            with shared.begun():
                job.environments.clear()
                path, published = build_it([shared.lock])
                shared.keep(path, job.environments)
            return path, published
    artifacts.make_out_dir(job.out_dir)
    return taken, artifacts.publish(*os.path.split(taken), job.out_dir)


@contextlib.contextmanager
def _source_tree(job: Job, source: Sdist | str) -> Iterator[tuple[str, list[DirectoryLock]]]:
    """Yield the source tree of a build, which an sdist is unpacked into, and the locks that it is used under."""
    if isinstance(source, str):
        yield source, []
        return
    from lockbuild.sdist import unpacked

    extract_dir = job.request.sdist_extract_dir
    with contextlib.ExitStack() as stack:
        locks: list[DirectoryLock] = []
        if extract_dir is not None:
            # Two builds with one --sdist-extract-dir would each remove the tree in which the other one builds. With
            # an --env-dir, too, both are locked here in the order of their names: another build may have been given
            # the same two the other way round.
            folders = [extract_dir, *([job.request.env_dir] if job.request.env_dir is not None else [])]
            in_order = sorted(folders, key=os.path.realpath)
            locks.extend(stack.enter_context(job.lock_directory(path)) for path in in_order)
        yield stack.enter_context(unpacked(source, extract_dir)), locks


def _build_distribution(
    job: Job, tree: str, kind: Distribution, locks: Sequence[InheritableLock] = ()
) -> tuple[str, str]:
    """Build one distribution of a tree and publish it; return its paths in the staging folder and in the out-dir."""

    def build_and_publish(backend: Backend) -> tuple[str, str]:
        from lockbuild import artifacts

        artifacts.make_out_dir(job.out_dir)
        folder = job.folder()
        with job.step(f"build_{kind}"):
            returned = backend.build(kind, folder, job.request.config_settings)
        with job.step("publish"):
            name = artifacts.check_artifact(folder, returned, kind)
            return os.path.join(folder, name), artifacts.publish(folder, name, job.out_dir)

    return _call_hooks(job, tree, kind, build_and_publish, locks)


def _prepare_metadata(job: Job, backend: Backend) -> bytes:
    with open(os.path.join(backend.metadata_path(job.folder()), "METADATA"), "rb") as file:
        return file.read()


def _call_hooks(
    job: Job,
    tree: str,
    kind: Distribution,
    work: Callable[[Backend], T],
    outer_locks: Sequence[InheritableLock],
) -> T:
    """Have the backend of a tree do some work, in its environment, under its lock."""
    with contextlib.ExitStack() as stack:
        locks: list[InheritableLock] = [*outer_locks]
        taken = [lock.path for lock in outer_locks if isinstance(lock, DirectoryLock)]
        if job.request.env_dir is not None and job.request.env_dir not in taken:
            # Two builds with one --env-dir: the second one finds the folder empty when the first has succeeded.
            locks.append(stack.enter_context(job.lock_directory(job.request.env_dir)))
        project = read_project(tree)
        tree_lock = job.lock_source_tree(project.tree)
        stack.callback(tree_lock.close)
        hooks = stack.enter_context(job.hook_runner())

        outer = tuple(locks)

        def warm_up(candidate: BuildEnvironment | None, *, at_once: bool = False) -> bool:
            """
            Start the hook host while we still look at the environment, import what we need, and wait; tell whether it
            was started. Of the builds that wait for one tree, only some are unless it has to be ``at_once``.
            """
            if project.backend_path or not job.request.preimport:
                # An in-tree backend may be imported only under the lock.
                return True
            expected = [*outer, *(candidate.locks if candidate else ())]
            if _decide_lock(job, project, candidate, ()).locked:
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
        if job.request.isolation:
            with job.step("environment"):
                environment = stack.enter_context(
                    build_environment(
                        project.requires, job.request, outer, job.reporter, job.oldest_environment, warm_up
                    )
                )
            locks.extend(environment.locks)
            job.environments.add(environment.generation)
        else:
            warm_up(None)
        tree_lock.is_ready = lambda: warm_up(environment)

        decision = _decide_lock(job, project, environment, ())
        with hint_at_shared_tree(project, decision), _locked(job, project, decision, tree_lock, locks, hooks) as held:
            warm_up(environment, at_once=True)
            extra_requires = _ask_for_extra_requirements(
                job, kind, _backend(job, project, environment, hooks), decision
            )
            with _extended(job, environment, extra_requires, held, hooks) as full_environment:
                late_decision = _decide_lock(job, project, full_environment, extra_requires)
                if decision.locked or not late_decision.locked:
                    return work(_backend(job, project, full_environment, hooks))
        # The backend itself asked for setuptools, which was nowhere until now; so nothing has run it yet.
        with (
            _locked(job, project, late_decision, tree_lock, locks, hooks) as held,
            _extended(job, environment, extra_requires, held, hooks) as full_environment,
        ):
            return work(_backend(job, project, full_environment, hooks))


def _import_the_rest() -> None:
    """Import what is needed from now on. The hook host imports the backend at the same time, on another core."""
    import tempfile  # noqa: F401
    import zipfile  # noqa: F401

    import lockbuild.artifacts
    import lockbuild.daily
    import lockbuild.hooks.backend  # noqa: F401


def _backend(job: Job, project: Project, environment: BuildEnvironment | None, hooks: HookRunner) -> Backend:
    from lockbuild.hooks.backend import Backend

    return Backend(project, environment, hooks, job.reporter)


def _decide_lock(
    job: Job, project: Project, environment: BuildEnvironment | None, extra_requires: Collection[str]
) -> LockDecision:
    is_installed = environment.has if environment is not None else None
    return decide_lock(project, job.request.lock, extra_requires, is_installed)


@contextlib.contextmanager
def _locked(
    job: Job,
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
    job.reporter.detail(f"{verb} {shown(project.tree)}: {decision.reason}")
    with contextlib.ExitStack() as stack:
        held = [*locks]
        if decision.locked:
            with job.step("lock"):
                held.append(stack.enter_context(tree_lock))
        stack.enter_context(hooks.under(held))
        yield held


def _ask_for_extra_requirements(job: Job, kind: Distribution, backend: Backend, decision: LockDecision) -> set[str]:
    """Ask the backend what else it requires for this build; without isolation, check that it is all there."""
    unchecked = not job.request.isolation and job.request.skip_dependency_check
    if unchecked and (decision.locked or decision.final):
        return set()
    # A backend that is not locked is asked in any case: it may be about to run setuptools.
    with job.step(f"get_requires_for_build_{kind}"):
        extra = backend.get_requires(kind, job.request.config_settings)
    if not job.request.isolation and not unchecked:
        from lockbuild.build_library import check_dependencies

        check_dependencies({*backend.project.requires, *extra})
    return extra


@contextlib.contextmanager
def _extended(
    job: Job,
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
        with job.step("environment") if extra_requires else contextlib.nullcontext():
            full = stack.enter_context(
                extended(environment, extra_requires, job.request, held, job.reporter, job.oldest_environment)
            )
        if versions := full.required_versions():
            listed = "".join(f"\n- {name}=={version}" for name, version in versions.items())
            job.reporter.log(f"Installed build dependency versions:{listed}", ("step",))
        job.environments.add(full.generation)
        if full is environment:
            yield full
        else:
            with hooks.under([*held, *full.locks]):
                yield full
