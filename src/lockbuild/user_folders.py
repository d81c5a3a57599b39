"""The user's folders: where caches and configurations are.

The first thing that a build imports, before its hook host starts: nothing is imported here that may not be used.
"""

from __future__ import annotations

import os
import sys

CACHE_DIR_VARIABLE = "LOCKBUILD_CACHE_DIR"

# What the name of the folder of the notes on hook hosts has behind that of the environments'.
HOSTS_SUFFIX = "-hosts"


def cache_folder(requested: str | os.PathLike[str] | None = None) -> str | None:
    """
    Return where the cache folder should be, as an absolute path: what is requested, else ``LOCKBUILD_CACHE_DIR``,
    else the platform's place for the user's caches. ``None`` where the user has no home to have such a place in.
    """
    chosen = requested or os.environ.get(CACHE_DIR_VARIABLE)
    if chosen:
        # A "~" comes here from files that no shell has read, such as tox.ini.
        return os.path.abspath(os.path.expanduser(chosen))
    if plain := _xdg_folder("XDG_CACHE_HOME", ".cache"):
        return os.path.join(plain, "lockbuild")
    import platformdirs

    # Without HOME and without an entry in the user database "~" stays as it is, or platformdirs says so.
    try:
        folder = platformdirs.user_cache_dir("lockbuild", appauthor=False)
    except RuntimeError:
        return None
    return folder if os.path.isabs(folder) else None


def configuration_folders(program: str) -> tuple[list[str], str | None]:
    """
    Return where a program looks for its configuration: the folders for everybody, and the user's.

    ``None`` for a user without a home.
    """
    plain = _xdg_folder("XDG_CONFIG_HOME", ".config")
    if plain and not os.environ.get("XDG_CONFIG_DIRS"):
        return [f"/etc/xdg/{program}"], os.path.join(plain, program)
    import platformdirs

    common = platformdirs.site_config_dir(program, appauthor=False, multipath=True).split(os.pathsep)
    try:
        return common, platformdirs.user_config_dir(program, appauthor=False, roaming=True)
    except RuntimeError:
        return common, None


def _xdg_folder(variable: str, below_home: str) -> str | None:
    """
    Return one of the user's folders as the XDG base directory specification has it, where that is plain.

    Everything else is left to platformdirs, whose import would take longer than all that a build does before its hook
    host starts. A test compares the two.
    """
    if sys.platform != "linux" or "ANDROID_DATA" in os.environ:
        return None
    if folder := os.environ.get(variable):
        return folder if _is_plain(folder) else None
    home = os.environ.get("HOME", "")
    return os.path.join(home, below_home) if _is_plain(home) else None


def _is_plain(path: str) -> bool:
    return path.startswith("/") and path == os.path.normpath(path).strip()


def environment_folder_names() -> tuple[str, str]:
    """Return what the folder of the environments may be called. In a shared cache the first user has the plain name."""
    return "environments", f"environments-{os.geteuid() if hasattr(os, 'geteuid') else ''}"
