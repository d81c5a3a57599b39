"""A session: what all the steps of one build share, and what lives until its end."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Self

from lockbuild.environments import BuildEnvironment, candidate_environments
from lockbuild.environments.request import EnvironmentRequest, read_constraints
from lockbuild.errors import EnvironmentFolderError, TreeViewError
from lockbuild.hooks.runner import HookRunner
from lockbuild.locks import DirectoryLock, LockRequest, SourceTreeLock
from lockbuild.request import BuildRequest, Timing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator, Sequence

    from lockbuild.events import Reporter
    from lockbuild.hooks.runner import HostKeeper
    from lockbuild.locks import InheritableLock
    from lockbuild.staging import Staging
    from lockbuild.views import View


class Session:
    """
    What all the steps of one build share; a context manager, at whose end its staging folder is removed.

    ``distributions`` is how many are to be built, at most. With ``collects_output`` hooks' output is shown only when
    something is wrong; with --quiet it is not shown at all. With ``owns_process``, this process runs for this build
    alone, and the temporary files of libraries go to the staging folder, too. With a ``keeper``, the hook host may be
    that of an earlier build, and is kept for the next one.
    """

    def __init__(
        self,
        request: BuildRequest,
        reporter: Reporter,
        *,
        distributions: int = 1,
        collects_output: bool = False,
        owns_process: bool = False,
        keeper: HostKeeper | None = None,
    ) -> None:
        self.request = request
        self.reporter = reporter
        self.out_dir = out_dir_of(request)
        self.collects_output = collects_output
        self.timings: list[Timing] = []
        self._distributions_left = distributions
        self._hooks: HookRunner | None = None
        self._kept_environments: dict[frozenset[str], BuildEnvironment] = {}
        self._resources = contextlib.ExitStack()
        self._started = time.time()
        self._staging: Staging | None = None
        self._owns_process = owns_process
        self._keeper = keeper

    def __enter__(self) -> Self:
        """Begin the build."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the hook host and the use of environments; remove the staging folder."""
        with contextlib.ExitStack() as stack:
            if self._staging is not None:
                # The second time has something to do when the first is interrupted.
                stack.push(self._staging.__exit__)
                stack.push(self._staging.__exit__)
            stack.push(self._resources)
            if self._hooks is not None:
                self._hooks.end()

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

    @property
    def oldest_environment(self) -> float:
        """
        Return since when a kept environment must have been made to be used, in seconds since the epoch.

        The same for the whole build: a refresh for its sdist is one for its wheel.
        """
        return self._started if self.request.refresh else self._started - self.request.env_max_age

    def staging(self) -> str:
        """Return the staging folder, which is this build's alone; make it the first time."""
        if self._staging is None:
            from lockbuild.staging import Staging

            self._staging = Staging(self.request.cache_dir, for_all=self._owns_process)
            self._staging.__enter__()
        return self._staging.path

    def folder(self) -> str:
        """Return a new, empty folder in the staging folder."""
        import tempfile

        return tempfile.mkdtemp(dir=self.staging())

    def lock_directory(self, path: str) -> DirectoryLock:
        """Return the lock on a folder that the user named and that a build fills; it is made when it is missing."""
        if path == self.request.env_dir and os.path.exists(path) and not os.path.isdir(path):
            raise EnvironmentFolderError(f"Build environment location is not a directory: {path}")
        request = self.request
        return DirectoryLock(
            LockRequest(path, path, request.cache_dir, request.lock_timeout, self.reporter, create=True)
        )

    def lock_source_tree(self, tree: str, *, shared: bool = False) -> SourceTreeLock:
        """Return the lock on a source tree."""
        return SourceTreeLock(
            tree,
            cache_dir=self.request.cache_dir,
            timeout=self.request.lock_timeout,
            reporter=self.reporter,
            shared=shared,
        )

    def view_of(self, tree: str) -> View | None:
        """Return the private view of a tree that the request asks for. Raises `TreeViewError` if it cannot be had."""
        mode = self.request.tree
        if mode == "shared":
            return None
        from lockbuild.views import Folders, check, view_of

        request = self.request
        folders = Folders(request.cache_dir, self.out_dir, tuple(filter(None, (self.staging(), request.env_dir))))
        try:
            view = view_of(tree, self.folder(), folders, clean=mode == "clean")
            if mode == "auto":
                # Decided before the tree is locked: of two builds that share a lock, neither could then have it alone.
                check(view._replace(scratch=self.folder()))
            return view
        except TreeViewError as error:
            if mode != "auto":
                raise
            self.reporter.detail(f"Building in the tree itself: {error.reason}")
            return None

    @property
    def hooks(self) -> HookRunner:
        """What runs the hooks of this build."""
        if self._hooks is None:
            # `build` shows the one after the other, except where it shows them as they come.
            self._hooks = HookRunner(
                self._output_handler(),
                separates_output=self.request.verbosity <= 0,
                preimport=self.request.preimport,
                keeper=self._keeper,
            )
        return self._hooks

    def begin_distribution(self) -> None:
        """Begin the next one of the distributions."""
        self._distributions_left -= 1

    @property
    def keeps_host(self) -> bool:
        """
        Whether the hook host may go on to serve the next distribution, or the next build.

        With --env-dir each distribution gets a new environment at the same path. What the host has imported is stale.
        """
        return (self._distributions_left > 0 or self._keeper is not None) and self.request.env_dir is None

    def candidate_environments(
        self, requires: Collection[str], outer_locks: Sequence[InheritableLock]
    ) -> Generator[BuildEnvironment, None, None]:
        """
        Yield environments that may be the one for these requirements, the last of which is; see `environments`.

        One that is kept is used until the end of this session, also for the next distribution that requires the same.
        """
        wanted = frozenset(requires)
        if wanted in self._kept_environments:
            yield self._kept_environments[wanted]
            return
        environment_request = EnvironmentRequest(
            requires,
            read_constraints(self.request.constraints_file),
            self.request,
            self.oldest_environment,
            outer_locks,
            self.reporter,
            self.staging,
        )
        environment = None
        with contextlib.closing(candidate_environments(environment_request)) as candidates:
            for environment in candidates:
                yield environment
        if environment is not None and environment.generation is not None:
            self._kept_environments[wanted] = environment
            self._resources.push(environment.__exit__)

    def _output_handler(self) -> Callable[[Sequence[str], Sequence[bytes], int], None] | None:
        """Return what is to be done with the output of hooks; ``None`` lets it go where ours goes."""
        if not self.collects_output:
            return None if self.request.verbosity >= 0 else lambda *_: None

        def show(command: Sequence[str], output: Sequence[bytes], status: int) -> None:
            if status or self.request.verbosity > 0:
                from subprocess import list2cmdline

                self.reporter.log(list2cmdline(command), ("subprocess", "cmd"))
                for text in filter(None, output):
                    self.reporter.log(text.decode(errors="backslashreplace"), ("subprocess", "stdout"))

        return show


def out_dir_of(request: BuildRequest) -> str:
    """Return the out-dir of a request, as ``build`` chooses it when none is given."""
    if request.out_dir is not None:
        return request.out_dir
    if os.path.isfile(request.source):
        return os.path.dirname(os.path.abspath(request.source))
    return os.path.join(request.source, "dist")
