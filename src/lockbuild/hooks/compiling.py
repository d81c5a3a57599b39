"""Bytecode for a kept environment; a script that `host.py` loads, which imports nothing of lockbuild.

It is used where PYTHONDONTWRITEBYTECODE is set.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from collections.abc import Iterator


@contextlib.contextmanager
def written() -> Iterator[None]:
    """Write bytecode of what is imported from the environment. What is imported sees `sys.dont_write_bytecode` hold."""
    loader_class = importlib.machinery.SourceFileLoader
    get_code = loader_class.get_code

    def get_code_and_write(loader: importlib.machinery.SourceFileLoader, name: str) -> types.CodeType | None:
        sys.dont_write_bytecode = not _is_in_environment(loader.path)
        try:
            return get_code(loader, name)
        finally:
            sys.dont_write_bytecode = True

    loader_class.get_code = get_code_and_write  # type: ignore[assignment]
    try:
        yield
    finally:
        # It is inherited.
        del loader_class.get_code


def compile_the_rest() -> None:
    """Compile what this process has imported from the environment and what has no bytecode yet."""
    for module in [*sys.modules.values()]:
        try:
            # A plain look at a module may import it (`importlib.util.LazyLoader`).
            spec = object.__getattribute__(module, "__dict__")["__spec__"]
            is_lacking = bool(spec.cached) and _is_in_environment(spec.origin) and not os.path.exists(spec.cached)
        except (AttributeError, KeyError, TypeError):
            # The hook may have put anything there.
            continue
        if is_lacking:
            import py_compile

            # The disk may be full.
            with contextlib.suppress(OSError):
                py_compile.compile(spec.origin, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)


def _is_in_environment(path: str) -> bool:
    return path.startswith(sys.prefix + os.sep)
