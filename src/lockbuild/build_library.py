"""What lockbuild takes from the library ``build`` beyond its documented API, in one place.

`build` tells its steps through two context variables of its own. Its command line sets them; so does `forward_log`,
and the steps that a user of ``python -m build`` knows reach our reporter in `build`'s own words.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from build import _ctx
from build._compat.tarfile import safe_extractall
from build._util import format_unmet_dependencies

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockbuild.events import Reporter

__all__ = ["format_unmet_dependencies", "forward_log", "safe_extractall"]


@contextmanager
def forward_log(reporter: Reporter, verbosity: int) -> Iterator[None]:
    """Give the reporter what `build` logs in this thread or task. From verbosity 1 on, installers' output as well."""

    def log(message: str, *, kind: tuple[str, ...] | None = None) -> None:
        reporter.log(message, kind)

    logger = _ctx.LOGGER.set(log)
    level = _ctx.VERBOSITY.set(verbosity)
    try:
        yield
    finally:
        _ctx.VERBOSITY.reset(level)
        _ctx.LOGGER.reset(logger)
