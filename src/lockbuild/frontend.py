"""One build from start to end: project, environment, lock, hooks, artifacts.

`build` and `metadata` are the two entry points. Both call `_call_hooks`. It makes the base environment first, so that
no other build waits for an installer. Then it locks the tree, if hooks may run setuptools. Under the lock it asks the
backend for extra requirements, and has it do its work.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from lockbuild.errors import InstallerError, SdistError, shown
from lockbuild.events import Reporter
from lockbuild.locks import DirectoryLock, InheritableLock
from lockbuild.project import (
    IMPORTED_AHEAD,
    LockDecision,
    Project,
    decide_lock,
    hint_at_shared_tree,
    is_installed_here,
    read_project,
    warning_of_python,
)
from lockbuild.request import BuildRequest, BuildResult, Distribution
from lockbuild.session import Session
from lockbuild.sources import SourceTree, is_sdist, sdist_of, source_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from lockbuild.environments import BuildEnvironment
    from lockbuild.environments.store import Generation
    from lockbuild.hooks.caller import BackendCaller
    from lockbuild.hooks.runner import HostKeeper
    from lockbuild.sdist import Sdist
    from lockbuild.views import View

T = TypeVar("T")
Work: TypeAlias = "Callable[[BackendCaller, Sequence[BuildEnvironment]], T]"


class _Task(NamedTuple):
    """What the backend of a tree is to be asked."""

    session: Session
    tree: SourceTree
    kind: Distribution
    project: Project
    view: View | None
    """The private view in which hooks run; ``None`` if they run in the tree itself."""


class _Built(NamedTuple):
    """A distribution that was built."""

    staged: str
    """Its path in the staging folder."""
    published: str
    """Its path in the out-dir."""
    environments: tuple[Generation | None, ...] = ()
    """The build environments in which hooks have run; ``None`` for one that is not kept."""


def build(
    request: BuildRequest,
    reporter: Reporter | None = None,
    *,
    owns_process: bool = False,
    keeper: HostKeeper | None = None,
) -> BuildResult:
    """
    Build what the request asks for; return the artifacts, which are then in its out-dir.

    ``owns_process`` and ``keeper`` are as in `Session`.

    Raises `LockbuildError`, the exceptions of ``build``, and `OSError`.
    """
    reporter = reporter or Reporter()
    kinds = request.distributions or (("wheel",) if is_sdist(request.source) else ("sdist", "wheel"))
    if "editable" in kinds and is_sdist(request.source):
        raise SdistError(f"{shown(request.source)} is no source tree, which an editable wheel could lead to")
    before: dict[str, tuple[int, int]] = {}
    with Session(request, reporter, distributions=len(kinds), owns_process=owns_process, keeper=keeper) as session:
        if request.clear:
            from lockbuild.artifacts import list_artifacts

            before = list_artifacts(session.out_dir)
        if is_sdist(request.source):
            built = _build_from_sdist(session, sdist_of(session), kinds)
        elif request.distributions:
            built = [_build_from_tree(session, kind) for kind in request.distributions]
        else:
            sdist = _build_from_tree(session, "sdist")
            reporter.log("Building wheel from sdist", ("step",))
            built = [sdist, *_build_from_sdist(session, sdist_of(session, sdist.staged), ("wheel",))]
    from lockbuild import artifacts

    published = [each.published for each in built]
    if request.clear:
        artifacts.clear_older(session.out_dir, before, map(os.path.basename, published))
    return BuildResult(
        tuple(artifacts.describe(path, kind) for path, kind in zip(published, kinds, strict=True)),
        tuple(session.timings),
    )


def metadata(request: BuildRequest, reporter: Reporter | None = None, *, owns_process: bool = False) -> bytes:
    """
    Return the METADATA of the wheel that the request's source would give: a tree, an sdist, or itself a wheel.

    ``owns_process`` is as in `Session`. Raises what `build` raises.
    """
    reporter = reporter or Reporter()
    if request.source.lower().endswith(".whl") and os.path.isfile(request.source):
        from lockbuild.artifacts import metadata_of_wheel

        return metadata_of_wheel(request.source)
    from lockbuild.build_library import forward_log

    with (
        forward_log(reporter, request.verbosity),
        Session(request, reporter, collects_output=True, owns_process=owns_process) as session,
        source_tree(session, sdist_of(session) if is_sdist(request.source) else request.source) as tree,
    ):
        return _call_hooks(session, tree, "wheel", lambda backend, _: _prepare_metadata(session, backend))


def _build_from_tree(session: Session, kind: Distribution) -> _Built:
    """Build one distribution of the tree that the request names."""
    tree = SourceTree(session.request.source)
    if not session.request.coalesce:
        return _build_distribution(session, tree, kind)

    def build_under(locks: Sequence[InheritableLock]) -> _Built:
        return _build_distribution(session, tree._replace(locks=tuple(locks)), kind)

    return _build_once(session, tree.path, kind, build_under)


def _build_from_sdist(session: Session, sdist: Sdist, kinds: Sequence[Distribution]) -> list[_Built]:
    """Build from an sdist that is unpacked for it."""

    def build_under(outer_locks: Sequence[InheritableLock]) -> list[_Built]:
        with source_tree(session, sdist, outer_locks) as tree:
            return [_build_distribution(session, tree, kind) for kind in kinds]

    if tuple(kinds) == ("wheel",) and (is_sdist(session.request.source) or session.request.coalesce):
        return [_build_once(session, sdist, "wheel", lambda locks: build_under(locks)[0])]
    return build_under(())


def _build_once(
    session: Session,
    source: Sdist | str,
    kind: Distribution,
    build_under: Callable[[Sequence[InheritableLock]], _Built],
) -> _Built:
    """Build a distribution, or take what another process has built that was asked for the same at the same time."""
    from lockbuild import artifacts
    from lockbuild.sharing.build import shared_build

    shared = shared_build(source, kind, session.request, session.reporter)
    if shared is None:
        return build_under(())
    with shared.lock:
        taken = shared.take(session.folder(), session.oldest_environment)
        if taken is None:
            with shared.begun():
                built = build_under([shared.lock])
                shared.keep(built.staged, built.environments)
            return built
    artifacts.make_out_dir(session.out_dir)
    return _Built(taken, artifacts.publish(*os.path.split(taken), session.out_dir))


def _build_distribution(session: Session, tree: SourceTree, kind: Distribution) -> _Built:
    """Build one distribution of a tree and publish it."""

    def build_and_publish(backend: BackendCaller, environments: Sequence[BuildEnvironment]) -> _Built:
        from lockbuild import artifacts

        artifacts.make_out_dir(session.out_dir)
        folder = session.folder()
        with session.step(f"build_{kind}"):
            returned = backend.build(kind, folder, session.request.config_settings)
        with session.step("publish"):
            session.hooks.confirm_locks()
            name = artifacts.check_artifact(folder, returned, kind)
            published = artifacts.publish(folder, name, session.out_dir)
        return _Built(os.path.join(folder, name), published, tuple(each.generation for each in environments))

    return _call_hooks(session, tree, kind, build_and_publish)


def _call_hooks(
    session: Session,
    tree: SourceTree,
    kind: Distribution,
    work: Callable[[BackendCaller, Sequence[BuildEnvironment]], T],
) -> T:
    """
    Have the backend of a tree do some work, in its environment, under its lock.

    ``work`` is given the backend, and the environments in which its hooks run.
    """
    with contextlib.ExitStack() as stack:
        session.begin_distribution()
        locks = [*tree.locks, *_lock_env_dir(session, tree, stack)]
        project = read_project(tree.path)
        if warning := warning_of_python(project):
            session.reporter.warn(warning)
        # An editable wheel refers to what the backend leaves in the tree.
        view = None if tree.is_private or kind == "editable" else session.view_of(project.tree)
        task = _Task(session, tree, kind, project, view)
        environment = _enter_environment(task, locks, stack) if session.request.isolation else None
        _start_host(task, environment)
        if environment is not None:
            locks.extend(environment.locks)

        extra_requires: Collection[str] | None = None
        decision = _decide(task, environment, None)
        while True:
            with hint_at_shared_tree(project, decision), _locked(task, decision, locks) as held:
                if task.view is not None and task.view.clean:
                    # Not earlier: a build that we have waited for may have left more files that git ignores.
                    session.hooks.start(project, environment, task.view)
                if extra_requires is None:
                    extra_requires = _ask_for_extra_requirements(task, environment)
                with _extended(task, environment, extra_requires, held) as full_environment:
                    late_decision = _decide(task, full_environment, extra_requires)
                    if decision.locked or not late_decision.locked:
                        used = dict.fromkeys(each for each in (environment, full_environment) if each is not None)
                        return work(_caller(task, full_environment), tuple(used))
            # The backend itself asked for setuptools, which was nowhere until now; so nothing has run it yet.
            decision = late_decision


def _lock_env_dir(session: Session, tree: SourceTree, stack: contextlib.ExitStack) -> list[InheritableLock]:
    """Lock the folder of --env-dir. The second of two builds finds it empty when the first has succeeded."""
    env_dir = session.request.env_dir
    if env_dir is None or env_dir in [lock.path for lock in tree.locks if isinstance(lock, DirectoryLock)]:
        return []
    return [stack.enter_context(session.lock_directory(env_dir))]


def _enter_environment(task: _Task, locks: Sequence[InheritableLock], stack: contextlib.ExitStack) -> BuildEnvironment:
    """Return the environment of the declared requirements. Hook hosts start in each that may be it, meanwhile."""
    session = task.session
    with (
        session.step("environment"),
        _asked_by("build-system.requires"),
        contextlib.closing(session.candidate_environments(task.project.requires, locks)) as candidates,
    ):
        for environment in candidates:
            _start_host(task, environment)
    if environment.generation is None:
        # One that is kept is used until the end of the session.
        stack.push(environment.__exit__)
    return environment


@contextlib.contextmanager
def _asked_by(origin: str) -> Iterator[None]:
    """Have the failure of an installer say what names the requirements."""
    try:
        yield
    except InstallerError as error:
        raise error.for_those_of(origin) from None


def _start_host(task: _Task, environment: BuildEnvironment | None) -> None:
    """Have the hook host import the backend, and import what we need, while we look at the environment and wait."""
    if task.view is None or not task.view.clean:
        task.session.hooks.start(task.project, environment, task.view)
    _import_the_rest()
    # Made now, because pyproject-hooks makes a folder for each hook.
    task.session.staging()


def _import_the_rest() -> None:
    """Import what is needed from now on. The hook host imports the backend at the same time, on another core."""
    import zipfile  # noqa: F401

    import lockbuild.artifacts
    import lockbuild.garbage_collection
    import lockbuild.hooks.caller
    import lockbuild.staging  # noqa: F401


def _decide(task: _Task, environment: BuildEnvironment | None, extra_requires: Collection[str] | None) -> LockDecision:
    """Decide whether the tree is locked for hooks in an environment, as far as the extra requirements are known."""
    request, project = task.session.request, task.project
    if task.tree.is_private and (request.lock or project.lock) != "always":
        return LockDecision(False, "it was unpacked for this build alone")
    is_installed = environment.has if environment is not None else None
    if not _asks_backend(request) and project.backend_module not in IMPORTED_AHEAD:
        # What else it requires remains unknown, and may be setuptools.
        is_installed = is_installed_here
    return decide_lock(project, request.lock, extra_requires, is_installed)


@contextlib.contextmanager
def _locked(
    task: _Task, decision: LockDecision, locks: Sequence[InheritableLock]
) -> Iterator[Sequence[InheritableLock]]:
    """
    Lock the tree, if that was decided, and let hooks run only in there. They have ended when it is unlocked.

    Yields all the locks under which they run.
    """
    session = task.session
    verb = "Locking" if decision.locked else "Not locking"
    session.reporter.detail(f"{verb} {shown(task.project.tree)}: {decision.reason}")
    with contextlib.ExitStack() as stack:
        held = [*locks]
        if decision.locked:
            with session.step("lock"):
                tree_lock = session.lock_source_tree(task.project.tree, shared=task.view is not None)
                held.append(stack.enter_context(tree_lock))
        stack.enter_context(session.hooks.under(held, keeps_host=session.keeps_host and task.view is None))
        yield held


def _asks_backend(request: BuildRequest) -> bool:
    """Tell whether a backend is asked what else it requires; `build` does not where nothing is done about it."""
    return request.isolation or not request.skip_dependency_check


def _ask_for_extra_requirements(task: _Task, environment: BuildEnvironment | None) -> set[str]:
    """Ask the backend what else it requires for this build; without isolation, check that it is all there."""
    request = task.session.request
    if not _asks_backend(request):
        return set()
    with task.session.step(f"get_requires_for_build_{task.kind}"):
        extra = _caller(task, environment).get_requires(task.kind, request.config_settings)
    if not request.isolation:
        from lockbuild.build_library import check_dependencies

        check_dependencies({*task.project.requires, *extra})
    return extra


@contextlib.contextmanager
def _extended(
    task: _Task,
    environment: BuildEnvironment | None,
    extra_requires: Collection[str],
    held: Sequence[InheritableLock],
) -> Iterator[BuildEnvironment | None]:
    """Yield the environment that also has the extra requirements, and let hooks run in it."""
    session = task.session
    full = environment
    with contextlib.ExitStack() as stack:
        if environment is not None and extra_requires:
            with session.step("environment"), _asked_by(f"what get_requires_for_build_{task.kind} returns"):
                if not environment.install(extra_requires):
                    [*_, full] = session.candidate_environments({*environment.requirements, *extra_requires}, held)
                    if full.generation is None:
                        stack.push(full.__exit__)
        if full is not None and (versions := full.required_versions()):
            listed = "".join(f"\n- {name}=={version}" for name, version in versions.items())
            session.reporter.log(f"Installed build dependency versions:{listed}", ("step",))
        if full is not None and full is not environment:
            session.hooks.start(task.project, full, task.view)
            stack.enter_context(session.hooks.under([*held, *full.locks]))
        yield full


def _caller(task: _Task, environment: BuildEnvironment | None) -> BackendCaller:
    from lockbuild.hooks.caller import BackendCaller

    return BackendCaller(task.project, environment, task.session.hooks, task.session.reporter)


def _prepare_metadata(session: Session, backend: BackendCaller) -> bytes:
    with open(os.path.join(backend.metadata_path(session.folder()), "METADATA"), "rb") as file:
        return file.read()
