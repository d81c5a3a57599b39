"""Bytecode for a backend that was just installed, made on one core while the hook host imports it on another.

The first build in a new environment would spend a tenth of its time on compiling what it imports, one module after the
other. This file is also the script that compiles ahead, run by the interpreter of the environment. It begins where the
import comes to last, with the packages inside of packages, and leaves alone what has been compiled already. Everything
is written as an import would write it: to the same place, whole or not at all.

Only the package of the backend itself is compiled. The build is certain to need that; of what else is in the
environment (numpy, for one) it may import very little.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# How long to wait for the script to finish the file that it is at, before it is killed, in seconds.
_SECONDS = 0.05


class Compiling:
    """The process that compiles, started by a frontend."""

    def __init__(self, python: str, package: str, environ: Mapping[str, str]) -> None:
        """
        Start it, with the interpreter of an environment and all variables that it has. Raises `OSError`.

        It takes no lock: where the environment is removed under it, it finds its files missing.
        """
        import subprocess

        self._process = subprocess.Popen(
            [python, "-P", __file__, package],
            env=environ,
            # This pipe ends with us, however that happens.
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A Ctrl-C at the terminal is for the frontend.
            process_group=0,
        )

    def end(self) -> None:
        """End it. Killed, as it is only in a file of very many lines, it may leave a file that nobody reads."""
        import subprocess

        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def is_worthwhile() -> bool:
    """Tell whether there is a core beside the one that imports."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores > 1


def _main(package: str) -> None:
    import select
    from importlib.machinery import SourceFileLoader
    from importlib.util import cache_from_source

    for path in _sources(package):
        if select.select([0], [], [], 0)[0]:
            # The frontend needs us no more, or is gone.
            return
        if not os.path.exists(cache_from_source(path)):
            try:
                SourceFileLoader("source", path).get_code("source")
            except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
                # Whoever imports it is told. Many packages have files that are no Python, for their own tests.
                continue


def _sources(package: str) -> Iterator[str]:
    from importlib.util import find_spec

    spec = find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for parent, _, names in os.walk(folder, topdown=False):
            yield from (os.path.join(parent, name) for name in names if name.endswith(".py"))


if __name__ == "__main__" and not sys.dont_write_bytecode:
    _main(sys.argv[1])
