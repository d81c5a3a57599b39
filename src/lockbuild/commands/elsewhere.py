"""A script that runs a module of lockbuild with a Python in which lockbuild is not installed.

Its arguments are the folders of lockbuild and of its dependencies, joined as in PATH, the name of the module, and the
arguments of that. It imports nothing of lockbuild before it knows these folders.
"""

import os
import runpy
import sys


def run(folders: str, module: str, *arguments: str) -> None:
    """Run a module as ``__main__``. Its dependencies come before those that this Python has, in other versions."""
    place = next((n for n, path in enumerate(sys.path) if path.endswith("-packages")), len(sys.path))
    sys.path[place:place] = folders.split(os.pathsep)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run(*sys.argv[1:])
