"""One process's part in a shared build: it waits for the outcome, or it is the one that builds."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import traceback
from typing import IO, TYPE_CHECKING, NamedTuple, Self

from lockbuild.digest import digest_of_file
from lockbuild.environments.kept import would_be_used
from lockbuild.environments.store import age_in_words
from lockbuild.errors import (
    CacheFolderError,
    CircularRequirementsError,
    LockbuildError,
    LockTimeoutError,
    LockUnavailableError,
    OutDirError,
    SharedBuildError,
    SourceTreeMovedError,
)
from lockbuild.events import Reporter
from lockbuild.locks import DirectoryLock
from lockbuild.locks.nesting import VARIABLE, environment_for_hooks, held_by_ancestor
from lockbuild.paths import builds_folder
from lockbuild.sharing.key import SharingKey, not_shared_because, sharing_key
from lockbuild.sharing.tickets import (
    ARTIFACTS,
    OUTPUT,
    Outcome,
    Ticket,
    Wish,
    clear_up,
    deliver,
    is_circle,
    keep,
    kept_outcome,
    mailboxes,
    note_use,
    read_outcome,
)

if TYPE_CHECKING:
    from types import TracebackType

    from lockbuild.environments import BuildEnvironment
    from lockbuild.environments.store import Generation
    from lockbuild.request import BuildRequest, Distribution
    from lockbuild.sdist import Sdist

# How often a build that others wait for looks whether it waits for them, in seconds.
_CIRCLE_SECONDS = 0.25

# Errors that are the builder's own. Another one may have a better out-dir, more patience, or nobody who interrupts it.
_NOT_OF_THE_BUILD = (
    CacheFolderError,
    CircularRequirementsError,
    LockTimeoutError,
    LockUnavailableError,
    OutDirError,
    SourceTreeMovedError,
)


class Delivery(NamedTuple):
    """What another process has built."""

    folder: str
    """A folder of ours with what the backend has left."""
    artifact: str
    """The artifact's name in it."""


def shared_build(
    source: Sdist | str,
    kind: Distribution,
    request: BuildRequest,
    reporter: Reporter,
    staging: str,
    oldest_environment: float,
) -> SharedBuild | None:
    """
    Return the build of an sdist or of a source tree that is shared; ``None`` where nothing is, which is told.

    ``staging`` is a folder of ours for what is delivered. A build environment that was made before
    ``oldest_environment``, in seconds since the epoch, is not one that we would build in.
    """
    # With --coalesce, people do expect something. Without, they get what they know.
    tell = reporter.warn if request.coalesce else reporter.detail
    if reason := not_shared_because(request):
        tell(f"Not sharing this build with others: {reason}")
        return None
    key = sharing_key(source, kind, request)
    if key is None:
        tell("Not sharing this build with others: a constraint names a local file, which may change at any time")
        return None
    try:
        folder = os.path.join(builds_folder(request.cache_dir), key.digest)
    except CacheFolderError as error:
        tell(f"Not sharing this build with others: {error}")
        return None
    with contextlib.suppress(FileNotFoundError):
        if around := held_by_ancestor(os.stat(folder)):
            reporter.detail(
                f"Not waiting for {key.subject}: process {around.holder.pid}, which this runs in, builds it"
            )
            return None
    return SharedBuild(folder, key, request, reporter, staging, oldest_environment)


class SharedBuild:
    """
    A build that several processes may ask for at the same time; a context manager.

    Within it `delivery` is what another process has built. Where that is ``None``, this process is the builder: it
    builds under `lock`, tells what happens to `begins` and `uses`, has the backend's output written to `output` and
    its reporter be `reporter`, and at the end calls `succeeded`. An error that leaves the context is everybody's who
    waits. Entering raises what `DirectoryLock` raises, and `SharedBuildError` when another process has failed.
    """

    def __init__(
        self,
        folder: str,
        key: SharingKey,
        request: BuildRequest,
        reporter: Reporter,
        staging: str,
        oldest_environment: float,
    ) -> None:
        self.delivery: Delivery | None = None
        self.key = key
        self.lock = DirectoryLock(
            folder,
            subject=key.subject,
            activity=f"building {key.subject}",
            cache_dir=request.cache_dir,
            timeout=request.lock_timeout,
            reporter=reporter,
            create=True,
        )
        self.reporter: Reporter = reporter
        self._request = request
        self._staging = staging
        self._oldest_environment = oldest_environment
        # The last one is that which is built here, if it is an sdist.
        *others, own = request.building or ("",)
        self._wish = Wish(own, tuple(others)) if others else None
        self._look_for_circle = 0.0
        self._environments: set[Generation | None] = set()
        self._has_begun = False
        self._addresses: list[str] | None = None
        """Who may share it, of a tree; ``None`` is whoever waits at its end."""
        self._prepared = ""
        """A folder for the outcome of our build, and ``output`` the file in it that has the backend's output."""
        self.output: IO[bytes] | None = None
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Wait until another process has built, or until it is our turn."""
        kept_before = kept_outcome(self.lock.path)
        with contextlib.ExitStack() as stack:
            with Ticket(self.lock.path, self._wish) as ticket:
                with self.lock.acquiring() as delays:
                    for delay in delays:
                        if self._accept_or_give_up(ticket):
                            return self
                        time.sleep(delay)
                stack.push(self.lock)
                if self._accept(ticket) or self._accept_kept(ticket, kept_before):
                    return self
            self._become_builder(stack)
            self._resources = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let the others have what became of it."""
        with self._resources:
            if isinstance(error, Exception) and _is_of_the_build(error):
                self._failed(error)

    def begins(self) -> None:
        """
        Hear that the first hook is about to run. Those who wait for a build that begins after they came may share it.

        What a hook finds in the tree, it finds after this moment; whoever has a ticket now was started before it, and
        edited what he edited before that.
        """
        if self.key.is_of_tree and not self._has_begun:
            self._has_begun = True
            self._addresses = mailboxes(self.lock.path)

    def uses(self, environment: BuildEnvironment | None) -> None:
        """Hear of an environment in which hooks run."""
        self._environments.add(environment.generation if environment is not None else None)

    def succeeded(self, artifact: str) -> None:
        """Deliver the artifact, with what lies beside it, and keep it. Its path is one in a folder of ours."""
        folder, name = os.path.split(artifact)
        environments = self._known_environments()
        if environments is None:
            self.reporter.detail("Not sharing this build with others: its build environment is not kept")
        else:
            sha256 = digest_of_file(artifact)
            # A copy, although a link would do: a file in an out-dir is its user's, who may change it.
            self._share(Outcome(os.getpid(), time.time(), name, sha256, environments), folder)

    def _failed(self, error: Exception) -> None:
        notes = tuple(getattr(error, "__notes__", ()))
        cause = getattr(error, "exception", None)
        if self.output and isinstance(cause, Exception) and not isinstance(cause, subprocess.CalledProcessError):
            self.output.write("".join(traceback.format_exception(cause, limit=-1)).encode(errors="backslashreplace"))
        self._share(
            Outcome(os.getpid(), time.time(), None, "", self._known_environments() or (), str(error), notes), None
        )

    def _become_builder(self, stack: contextlib.ExitStack) -> None:
        # Somebody who cleans up may have removed it, which frees no lock.
        os.makedirs(self.lock.path, exist_ok=True)
        clear_up(self.lock.path)
        self._prepared = tempfile.mkdtemp(prefix=".", dir=self.lock.path)
        stack.callback(shutil.rmtree, self._prepared, ignore_errors=True)
        if self.key.is_of_tree:
            # For an error before the first hook.
            self._addresses = mailboxes(self.lock.path)
        self.output = open(os.path.join(self._prepared, OUTPUT), "xb", buffering=0)  # noqa: SIM115 - closed by the stack
        stack.push(self.output)
        self.reporter = _Listener(self.reporter, self.output)
        # What an installer builds for our environment may itself ask for this build, and has to know of the lock.
        before = os.environ.get(VARIABLE)
        os.environ.update(environment_for_hooks([self.lock.held] if self.lock.held else []))
        stack.callback(_restore, VARIABLE, before)

    def _known_environments(self) -> tuple[Generation, ...] | None:
        """Return where the environments are kept; ``None`` when one was made for this build alone."""
        known = tuple(each for each in self._environments if each is not None)
        return known if known and len(known) == len(self._environments) else None

    def _share(self, outcome: Outcome, artifacts: str | None) -> None:
        """Deliver an outcome, and keep a success. A full disk, say, is no failure of ours: then the next one builds."""
        with contextlib.suppress(OSError):
            addresses = mailboxes(self.lock.path)
            if self._addresses is not None:
                # Those who came later are left out, and so are those who have gone since.
                addresses = [mailbox for mailbox in addresses if mailbox in self._addresses]
            is_kept = outcome.artifact is not None and not self.key.is_of_tree
            if not addresses and not is_kept:
                return
            if self.output is not None:
                self.output.close()
            if artifacts is not None:
                shutil.copytree(artifacts, os.path.join(self._prepared, ARTIFACTS))
            outcome.write(self._prepared)
            deliver(keep(self.lock.path, self._prepared) if is_kept else self._prepared, addresses)

    def _accept_or_give_up(self, ticket: Ticket) -> bool:
        if self._wish is not None and time.monotonic() >= self._look_for_circle:
            self._look_for_circle = time.monotonic() + _CIRCLE_SECONDS
            if is_circle(os.path.dirname(self.lock.path), self._wish):
                raise CircularRequirementsError(self.key.subject, os.getpid())
        return self._accept(ticket)

    def _accept(self, ticket: Ticket, whose: str = "which process {builder} has built") -> bool:
        """Take what was delivered to us, if it is what we would have built ourselves."""
        outcome = read_outcome(ticket.mailbox)
        if outcome is None:
            return False
        if not all(
            would_be_used(each, self._oldest_environment, self._request.refresh) for each in outcome.environments
        ):
            ticket.empty_mailbox()
            return False
        if outcome.artifact is None or self._request.verbosity > 0:
            with open(os.path.join(ticket.mailbox, OUTPUT), encoding="utf-8", errors="backslashreplace") as file:
                self.reporter.log(file.read(), ("subprocess", "stdout"))
        if outcome.artifact is None:
            error = SharedBuildError(self.key.subject, outcome.builder, outcome.error)
            for note in outcome.notes:
                error.add_note(note)
            raise error
        folder = tempfile.mkdtemp(dir=self._staging)
        shutil.copytree(os.path.join(ticket.mailbox, ARTIFACTS), folder, dirs_exist_ok=True)
        if digest_of_file(os.path.join(folder, outcome.artifact)) != outcome.sha256:
            ticket.empty_mailbox()
            return False
        self.delivery = Delivery(folder, outcome.artifact)
        words = whose.format(builder=outcome.builder, age=age_in_words(outcome.made))
        self.reporter.log(f"Using {outcome.artifact}, {words}", ("step",))
        return True

    def _accept_kept(self, ticket: Ticket, kept_before: str | None) -> bool:
        """
        Take what is kept, with --reuse or if it was not there when we came.

        Then its builder, whom we have waited for, was killed before he could deliver.
        """
        kept = kept_outcome(self.lock.path)
        if kept is None or (kept == kept_before and not self._request.reuse):
            return False
        deliver(kept, [ticket.mailbox])
        if not self._accept(ticket, "which was built {age} ago"):
            return False
        note_use(kept)
        return True


class _Listener(Reporter):
    """Passes on what it hears, and writes down what installers say, for those who hear of their failure later."""

    def __init__(self, reporter: Reporter, output: IO[bytes]) -> None:
        self._output = output
        self._log = reporter.log
        # Everything else goes straight to the other one.
        vars(self).update(
            {name: getattr(reporter, name) for name in vars(Reporter) if name[0] != "_" and name != "log"}
        )

    def log(self, message: str, kind: tuple[str, ...] | None = None) -> None:
        if kind is not None and kind[0] == "subprocess" and not self._output.closed:
            self._output.write(f"{message}\n".encode(errors="backslashreplace"))
        self._log(message, kind)


def _is_of_the_build(error: Exception) -> bool:
    from build import BuildBackendException, BuildException, FailedProcessError

    return isinstance(
        error,
        (BuildBackendException, BuildException, FailedProcessError, subprocess.CalledProcessError, LockbuildError),
    ) and not isinstance(error, _NOT_OF_THE_BUILD)


def _restore(variable: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = value
