"""The key of a shared build: everything that can change its result and is known before the build.

Only the build finds out in which generations of environments it runs. It notes them with its outcome, and each process
that takes the outcome compares them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import tempfile
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from lockbuild.environments.key import WITHOUT_EFFECT as WITHOUT_EFFECT_FOR_INSTALLERS
from lockbuild.environments.key import environment_key
from lockbuild.environments.local import describe_files
from lockbuild.environments.request import read_constraints
from lockbuild.environments.source_wheels import digests_of
from lockbuild.errors import shown
from lockbuild.files import digest_of_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lockbuild.request import BuildRequest, Distribution
    from lockbuild.sdist import Sdist

# Environment variables that cannot change the result: they tell about the shell, terminal, session or job of the build.
# Numbers that people put into versions, such as BUILD_NUMBER, are not among them. docs/sharing.md has the same list.
WITHOUT_EFFECT = WITHOUT_EFFECT_FOR_INSTALLERS | {
    # The shell.
    *("_", "OLDPWD", "PWD", "SHLVL", "PROMPT_COMMAND", "PS1", "PS2"),
    # The terminal.
    *("CLICOLOR", "CLICOLOR_FORCE", "COLORTERM", "COLUMNS", "FORCE_COLOR", "LINES", "LS_COLORS", "NO_COLOR", "STY"),
    *("TERM", "TERM_PROGRAM", "TERM_PROGRAM_VERSION", "TERM_SESSION_ID", "TMUX", "TMUX_PANE", "VTE_VERSION", "WINDOW"),
    *("GPG_TTY", "WINDOWID"),
    # The session.
    *("DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "WAYLAND_DISPLAY"),
    *("XAUTHORITY", "XDG_RUNTIME_DIR"),
    # Folders for temporary files. Those of a hook have random names anyway.
    *("TEMP", "TMP", "TMPDIR"),
    # Jobs of GitHub Actions, GitLab CI, Jenkins and pytest. Slurm has a prefix, below.
    *("GITHUB_ACTION", "GITHUB_ENV", "GITHUB_JOB", "GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_STATE"),
    *("GITHUB_STEP_SUMMARY", "RUNNER_TRACKING_ID"),
    *("CI_CONCURRENT_ID", "CI_CONCURRENT_PROJECT_ID", "CI_JOB_ID", "CI_JOB_NAME", "CI_JOB_STAGE", "CI_JOB_STARTED_AT"),
    *("CI_JOB_TOKEN", "CI_JOB_URL", "CI_NODE_INDEX"),
    *("EXECUTOR_NUMBER", "JENKINS_NODE_COOKIE", "JENKINS_SERVER_COOKIE", "STAGE_NAME"),
    *("PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER"),
}
PREFIXES_WITHOUT_EFFECT = ("LOCKBUILD_", "SLURM_", "SSH_", "XDG_SESSION_")

# Variables that name a file which decides about the result. Files of other variables are not read: one may be a log.
_NAMES_OF_FILES = ("CMAKE_TOOLCHAIN_FILE", "DIST_EXTRA_CONFIG")

# Variables by which a make tells of its jobs, among other things.
_FLAGS_OF_MAKE = ("CARGO_MAKEFLAGS", "MAKEFLAGS", "MFLAGS")

# Files in the user's home that distutils reads.
_FILES_OF_THE_USER = ("~/.pydistutils.cfg", "~/pydistutils.cfg")

# The form of an outcome. Another form has another key.
_FORMAT = 1


class SharingKey(NamedTuple):
    """The key under which processes share a build."""

    digest: str
    subject: str
    """The build, in the words of messages."""
    is_of_tree: bool
    """Whether its source is a tree, which may change at any time."""
    sources: tuple[str, ...]
    """The local folders and archives that settings name for its build environments."""


def not_shared_because(request: BuildRequest) -> str | None:
    """Return the reason for which a request's builds are not shared, in words for the user; ``None`` if they are."""
    if not request.use_cache:
        return "--no-cache"
    if not request.isolation:
        return "with --no-isolation two builds may have different packages installed"
    if request.env_dir or request.sdist_extract_dir:
        return "--env-dir and --sdist-extract-dir want the files of a build of their own"
    return None


def sharing_key(source: Sdist | str, kind: Distribution, request: BuildRequest) -> SharingKey | None:
    """
    Return the key of a build of an sdist or of a source tree; ``None`` if no key covers everything that may change it.

    The key of a tree does not cover the tree's files.
    """
    if isinstance(source, str):
        return _key_of_tree(source, kind, request)
    return _key(["sdist", source.sha256], shown(source.name), kind, request)


def _key_of_tree(tree: str, kind: Distribution, request: BuildRequest) -> SharingKey | None:
    path = os.path.realpath(tree)
    folder = os.stat(path)
    # Except pyproject.toml, which a build reads before it asks here. With another one it would be another build.
    return _key(
        [
            *("tree", path, folder.st_dev, folder.st_ino, _digest(os.path.join(path, "pyproject.toml"))),
            # The artifact of a private view is that of the tree, unless files are missing in the view.
            request.tree == "clean",
        ],
        f"the {kind} of {shown(path)}",
        kind,
        request,
    )


def _key(source: list[object], subject: str, kind: Distribution, request: BuildRequest) -> SharingKey | None:
    # The source decides what is installed. This is about how.
    wheels = digests_of({name: wheel for name, wheel in request.sources.items() if wheel})
    environment = environment_key((), read_constraints(request.constraints_file), request.installer, wheels)
    if environment is None:
        return None
    variables = dict(_variables(os.environ.items()))
    settings = json.dumps(dict(request.config_settings))
    files = [*_texts(request.config_settings), *(variables.get(name, "") for name in _NAMES_OF_FILES)]
    content = {
        "format": _FORMAT,
        "source": source,
        "kind": kind,
        "environment": environment.digest,
        # In their order, which the backend sees.
        "settings": settings,
        "variables": variables,
        "files": [*describe_files(files), *(_digest(os.path.expanduser(path)) for path in _FILES_OF_THE_USER)],
        "umask": _umask(),
    }
    text = json.dumps(content, sort_keys=True)
    digest = sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return SharingKey(digest, subject, source[0] == "tree", environment.sources)


def _variables(environ: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for name, value in environ:
        if name not in WITHOUT_EFFECT and not name.startswith(PREFIXES_WITHOUT_EFFECT):
            # Which jobserver a make has is nothing to the result.
            yield name, re.sub(r"-j ?\d*|--jobserver\S*", "", value) if name in _FLAGS_OF_MAKE else value


def _texts(settings: object) -> Iterator[str]:
    """Yield the strings in config settings, which may be any JSON."""
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, (list, tuple)):
        for each in settings:
            yield from _texts(each)
    elif hasattr(settings, "values"):
        yield from _texts(list(settings.values()))


def _digest(path: str) -> str | None:
    try:
        return digest_of_file(path)
    except OSError:
        return None


def _umask() -> int:
    """Return the umask. `os.umask` can only set it, and other threads may be making files meanwhile."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        if found := re.search(r"^Umask:\s*([0-7]+)$", file.read(), re.MULTILINE):
            return int(found[1], 8)
    return umask_of_new_folders()


def umask_of_new_folders() -> int:
    """Return the umask that the mode of a new folder shows; a parent with a default ACL would hide it."""
    with tempfile.TemporaryDirectory(prefix="lockbuild-", ignore_cleanup_errors=True) as folder:
        probe = os.path.join(folder, "probe")
        os.mkdir(probe, 0o777)
        return 0o777 & ~stat.S_IMODE(os.stat(probe).st_mode)
