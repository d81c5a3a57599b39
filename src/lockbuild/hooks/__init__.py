"""Calling the hooks of a backend.

`caller` is a backend as the frontend calls it. `runner` runs hooks for pyproject-hooks. `client` is the frontend's end
of the hook host, ``host`` the host itself, which runs in the build environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class HookEnvironment(Protocol):
    """What running a hook in an environment takes."""

    is_kept: bool
    """Whether other builds will use it. Then it is lockbuild's, and gets bytecode even if the user's files do not."""

    revision: int
    """Changes when hosts that were started in it earlier may have read what no hook may read."""

    @property
    def python_executable(self) -> str:
        """The interpreter to run hooks with."""

    def make_extra_environ(self) -> Mapping[str, str] | None:
        """Return the environment variables that a hook gets beside those of the frontend."""
