"""One build from start to end: project, environment, lock, hooks, artifacts.

`build` and `metadata` are the two things a frontend is asked for. Both go the way of `_call_hooks`: the base
environment is made first, so that nobody waits for an installer; then the tree is locked, if its hooks may run
setuptools; under the lock the backend is asked for its extra requirements, and does its work.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from lockbuild.environments import BuildEnvironment, extended
from lockbuild.errors import SdistError, shown
from lockbuild.events import Reporter
from lockbuild.locks import DirectoryLock, InheritableLock, SourceTreeLock
from lockbuild.project import (
    IMPORTED_AHEAD,
    LockDecision,
    Project,
    decide_lock,
    hint_at_shared_tree,
    is_installed_here,
    read_project,
)
from lockbuild.request import BuildRequest, BuildResult, Distribution
from lockbuild.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from lockbuild.hooks.caller import BackendCaller
    from lockbuild.hooks.runner import HookRunner
    from lockbuild.sdist import Sdist

T = TypeVar("T")


class _Tree(NamedTuple):
    """A source tree to build from."""

    path: str
    locks: tuple[InheritableLock, ...] = ()
    """Those that are held around it: on a shared build, on folders that the user named."""
    is_private: bool = False
    """Whether it was unpacked for this build alone, at a path that no other process knows."""


def build(request: BuildRequest, reporter: Reporter | None = None) -> BuildResult:
    """
    Build what the request asks for; return the artifacts, which are then in its out-dir.

    Raises `LockbuildError`, the exceptions of ``build``, and `OSError`.
    """
    reporter = reporter or Reporter()
    out_dir = out_dir_of(request)
    before = {}
    if request.clear:
        from lockbuild.artifacts import list_artifacts

        before = list_artifacts(out_dir)
    kinds = request.distributions or (("wheel",) if is_sdist(request.source) else ("sdist", "wheel"))
    if "editable" in kinds and is_sdist(request.source):
        raise SdistError(f"{shown(request.source)} is no source tree, which an editable wheel could lead to")
    with Session(request, reporter, out_dir, distributions=len(kinds)) as session:
        if is_sdist(request.source):
            built = _build_from_sdist(session, _read_sdist(session), kinds)
        elif request.distributions:
            built = [_build_from_tree(session, kind)[1] for kind in request.distributions]
        else:
            path, published = _build_from_tree(session, "sdist")
            reporter.log("Building wheel from sdist", ("step",))
            built = [published, *_build_from_sdist(session, _read_sdist(session, path), ("wheel",))]
    from lockbuild import artifacts

    if request.clear:
        artifacts.clear_older(out_dir, before, map(os.path.basename, built))
    return BuildResult(
        tuple(artifacts.describe(path, kind) for path, kind in zip(built, kinds, strict=True)),
        tuple(session.timings),
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
        Session(request, reporter, out_dir_of(request), collects_output=True) as session,
        _source_tree(session, _read_sdist(session) if is_sdist(request.source) else request.source) as tree,
    ):
        return _call_hooks(session, tree, "wheel", lambda backend: _prepare_metadata(session, backend))


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


def _read_sdist(session: Session, built: str | None = None) -> Sdist:
    """Read the sdist that is the request's source, or one that was just built, which may be of any size."""
    from lockbuild.sdist import read_sdist

    if built is not None:
        return read_sdist(built, session.folder())
    return read_sdist(session.request.source, session.folder(), session.request.max_sdist_size)


def _build_from_tree(session: Session, kind: Distribution) -> tuple[str, str]:
    """Build one distribution of the tree that the request names; return its paths as `_build_distribution` does."""
    tree = _Tree(session.request.source)
    if session.request.coalesce:
        return _build_once(
            session,
            tree.path,
            kind,
            lambda locks: _build_distribution(session, tree._replace(locks=tuple(locks)), kind),
        )
    return _build_distribution(session, tree, kind)


def _build_from_sdist(session: Session, sdist: Sdist, kinds: Sequence[Distribution]) -> list[str]:
    """Build from an sdist that is unpacked for it; return the paths of what was published."""

    def build_all(outer_locks: Sequence[InheritableLock]) -> list[tuple[str, str]]:
        with _source_tree(session, sdist, outer_locks) as tree:
            return [_build_distribution(session, tree, kind) for kind in kinds]

    if tuple(kinds) == ("wheel",) and (is_sdist(session.request.source) or session.request.coalesce):
        return [_build_once(session, sdist, "wheel", lambda locks: build_all(locks)[0])[1]]
    return [published for _, published in build_all(())]


def _build_once(
    session: Session,
    source: Sdist | str,
    kind: Distribution,
    build_it: Callable[[Sequence[InheritableLock]], tuple[str, str]],
) -> tuple[str, str]:
    """Have something built by one of all the processes that ask for the same at the same time, us or another one."""
    from lockbuild import artifacts
    from lockbuild.sharing.build import shared_build

    shared = shared_build(source, kind, session.request, session.reporter)
    if shared is None:
        return build_it(())
    with shared.lock:
        taken = shared.take(session.folder(), session.oldest_environment)
        if taken is None:
            with shared.begun():
                session.environments.clear()
                path, published = build_it([shared.lock])
                shared.keep(path, session.environments)
            return path, published
    artifacts.make_out_dir(session.out_dir)
    return taken, artifacts.publish(*os.path.split(taken), session.out_dir)


@contextlib.contextmanager
def _source_tree(session: Session, source: Sdist | str, outer_locks: Sequence[InheritableLock] = ()) -> Iterator[_Tree]:
    """Yield the source tree of a build, which an sdist is unpacked into."""
    if isinstance(source, str):
        yield _Tree(source)
        return
    from lockbuild.sdist import unpacked

    extract_dir = session.request.sdist_extract_dir
    with contextlib.ExitStack() as stack:
        locks = [*outer_locks]
        if extract_dir is not None:
            # Two builds with one --sdist-extract-dir would each remove the tree in which the other one builds. With
            # an --env-dir, too, both are locked here in the order of their names: another build may have been given
            # the same two the other way round.
            folders = [extract_dir, *([session.request.env_dir] if session.request.env_dir is not None else [])]
            in_order = sorted(folders, key=os.path.realpath)
            locks.extend(stack.enter_context(session.lock_directory(path)) for path in in_order)
        yield _Tree(stack.enter_context(unpacked(source, extract_dir)), tuple(locks), is_private=extract_dir is None)


def _build_distribution(session: Session, tree: _Tree, kind: Distribution) -> tuple[str, str]:
    """Build one distribution of a tree and publish it; return its paths in the staging folder and in the out-dir."""

    def build_and_publish(backend: BackendCaller) -> tuple[str, str]:
        from lockbuild import artifacts

        artifacts.make_out_dir(session.out_dir)
        folder = session.folder()
        with session.step(f"build_{kind}"):
            returned = backend.build(kind, folder, session.request.config_settings)
        with session.step("publish"):
            name = artifacts.check_artifact(folder, returned, kind)
            return os.path.join(folder, name), artifacts.publish(folder, name, session.out_dir)

    return _call_hooks(session, tree, kind, build_and_publish)


def _prepare_metadata(session: Session, backend: BackendCaller) -> bytes:
    with open(os.path.join(backend.metadata_path(session.folder()), "METADATA"), "rb") as file:
        return file.read()


def _call_hooks(session: Session, tree: _Tree, kind: Distribution, work: Callable[[BackendCaller], T]) -> T:
    """Have the backend of a tree do some work, in its environment, under its lock."""
    with contextlib.ExitStack() as stack:
        locks: list[InheritableLock] = [*tree.locks]
        taken = [lock.path for lock in tree.locks if isinstance(lock, DirectoryLock)]
        if session.request.env_dir is not None and session.request.env_dir not in taken:
            # Two builds with one --env-dir: the second one finds the folder empty when the first has succeeded.
            locks.append(stack.enter_context(session.lock_directory(session.request.env_dir)))
        project = read_project(tree.path)
        tree_lock = session.lock_source_tree(project.tree)
        stack.callback(tree_lock.close)
        hooks = session.hooks
        session.distributions_left -= 1

        def decide(environment: BuildEnvironment | None, extra_requires: Collection[str] | None) -> LockDecision:
            if tree.is_private and (session.request.lock or project.lock) != "always":
                return LockDecision(False, "it was unpacked for this build alone")
            is_installed = environment.has if environment is not None else None
            if not _asks_backend(session.request) and project.backend_module not in IMPORTED_AHEAD:
                # What else it requires remains unknown, and may be setuptools.
                is_installed = is_installed_here
            return decide_lock(project, session.request.lock, extra_requires, is_installed)

        def start_host(candidate: BuildEnvironment | None) -> None:
            """Start the hook host, and import what we need, while we still look at the environment and wait."""
            expected = [*locks, *(candidate.locks if candidate else ())]
            if decide(candidate, None).locked:
                tree_lock.open()
                expected.append(tree_lock)
            hooks.start(project, candidate, expected)
            _import_the_rest()

        environment = None
        if session.request.isolation:
            with session.step("environment"):
                environment = stack.enter_context(session.build_environment(project.requires, locks, start_host))
            locks.extend(environment.locks)
            session.environments.add(environment.generation)
        start_host(environment)

        extra_requires: Collection[str] | None = None
        decision = decide(environment, None)
        while True:
            with (
                hint_at_shared_tree(project, decision),
                _locked(session, project, decision, tree_lock, locks, hooks) as held,
            ):
                if extra_requires is None:
                    extra_requires = _ask_for_extra_requirements(
                        session, kind, _caller(session, project, environment, hooks)
                    )
                with _extended(session, environment, extra_requires, held, hooks) as full_environment:
                    late_decision = decide(full_environment, extra_requires)
                    if decision.locked or not late_decision.locked:
                        return work(_caller(session, project, full_environment, hooks))
            # The backend itself asked for setuptools, which was nowhere until now; so nothing has run it yet.
            decision = late_decision


def _import_the_rest() -> None:
    """Import what is needed from now on. The hook host imports the backend at the same time, on another core."""
    import tempfile  # noqa: F401
    import zipfile  # noqa: F401

    import lockbuild.artifacts
    import lockbuild.garbage_collection
    import lockbuild.hooks.caller  # noqa: F401


def _caller(
    session: Session, project: Project, environment: BuildEnvironment | None, hooks: HookRunner
) -> BackendCaller:
    from lockbuild.hooks.caller import BackendCaller

    return BackendCaller(project, environment, hooks, session.reporter)


@contextlib.contextmanager
def _locked(
    session: Session,
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
    session.reporter.detail(f"{verb} {shown(project.tree)}: {decision.reason}")
    with contextlib.ExitStack() as stack:
        held = [*locks]
        if decision.locked:
            with session.step("lock"):
                held.append(stack.enter_context(tree_lock))
        stack.enter_context(hooks.under(held, keeps_host=session.keeps_host))
        yield held


def _asks_backend(request: BuildRequest) -> bool:
    """Tell whether a backend is asked what else it requires; `build` does not where nothing is done about it."""
    return request.isolation or not request.skip_dependency_check


def _ask_for_extra_requirements(session: Session, kind: Distribution, caller: BackendCaller) -> set[str]:
    """Ask the backend what else it requires for this build; without isolation, check that it is all there."""
    if not _asks_backend(session.request):
        return set()
    with session.step(f"get_requires_for_build_{kind}"):
        extra = caller.get_requires(kind, session.request.config_settings)
    if not session.request.isolation:
        from lockbuild.build_library import check_dependencies

        check_dependencies({*caller.project.requires, *extra})
    return extra


@contextlib.contextmanager
def _extended(
    session: Session,
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
        with session.step("environment") if extra_requires else contextlib.nullcontext():
            full = stack.enter_context(
                extended(
                    environment, extra_requires, session.request, held, session.reporter, session.oldest_environment
                )
            )
        if versions := full.required_versions():
            listed = "".join(f"\n- {name}=={version}" for name, version in versions.items())
            session.reporter.log(f"Installed build dependency versions:{listed}", ("step",))
        session.environments.add(full.generation)
        if full is environment:
            yield full
        else:
            with hooks.under([*held, *full.locks]):
                yield full
