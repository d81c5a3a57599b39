"""What a hook process does; a script that `host.py` loads before it forks, which imports nothing of lockbuild."""

from __future__ import annotations

import builtins
import contextlib
import importlib.machinery
import json
import os
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# The code of scripts, by their paths.
_compiled: dict[str, types.CodeType] = {}


def compiled(path: str) -> types.CodeType:
    """Return the code of a script, once for all hooks; as Python keeps it compiled, where it does."""
    if path not in _compiled:
        # The script may lie in a folder for temporary files. Nothing is left there.
        writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            code = importlib.machinery.SourceFileLoader("__main__", path).get_code("__main__")
        finally:
            sys.dont_write_bytecode = writes
        assert code is not None
        _compiled[path] = code
    return _compiled[path]


def run(request: Mapping[str, Any]) -> None:
    """Run pyproject-hooks' script in this process as if the interpreter had been started with it."""
    try:
        os.environ.update(request["environ"])
        os.chdir(request["cwd"])
        if request["tree"] not in (None, _identity_of_tree()):
            # The path now leads to a tree that another build may hold. From here on it cannot: we are in.
            sys.exit(f"{request['cwd']!r} was moved or replaced while it was built")
        _execute(request["argv"])
    except KeyboardInterrupt:
        # The frontend asked for the end, after its user did. What the backend cleans up it has cleaned up; a
        # traceback would only tell where it was.
        sys.exit(130)
    except SystemExit as end:
        if isinstance(end.code, str):
            _leave_reason(request, end.code)
        raise
    except Exception as error:
        # The traceback a person sees begins with the script, as it does when that runs by itself.
        traceback = error.__traceback__
        while traceback and traceback.tb_frame.f_code.co_filename != request["argv"][0]:
            traceback = traceback.tb_next
        error.__traceback__ = traceback or error.__traceback__
        sys.excepthook(type(error), error, error.__traceback__)
        import traceback as formatter

        lines = "".join(formatter.format_exception_only(error)).splitlines()
        # The lines of a syntax error that show the place are indented. A message may have several lines.
        _leave_reason(request, next((line for line in lines if not line.startswith(" ")), ""))
        sys.exit(1)


def _identity_of_tree() -> list[int]:
    """Return the device and inode of the tree that this is, also where a private view of it shows others."""
    here = os.stat(".")
    for *seen, device, inode in json.loads(os.environ.get("LOCKBUILD_VIEWS", "[]")):
        if seen == [here.st_dev, here.st_ino]:
            return [device, inode]
    return [here.st_dev, here.st_ino]


def _leave_reason(request: Mapping[str, Any], text: str) -> None:
    # The disk may be full. The hook has said it as well.
    with contextlib.suppress(OSError), open(f"{request['argv'][2]}/reason", "w", encoding="utf-8") as file:
        file.write((text.strip().splitlines() or [""])[0].encode(errors="replace").decode())


def _execute(argv: list[str]) -> None:
    """Execute a script as ``__main__``."""
    sys.argv[:] = argv
    sys.orig_argv[1:] = argv
    # The folder of the script, which the script takes out again.
    sys.path.insert(0, os.path.dirname(argv[0]))
    script = types.ModuleType("__main__")
    loader = importlib.machinery.SourceFileLoader("__main__", argv[0])
    script.__dict__.update(__file__=argv[0], __builtins__=builtins, __loader__=loader, __cached__=None)
    sys.modules["__main__"] = script
    exec(compiled(argv[0]), script.__dict__)
