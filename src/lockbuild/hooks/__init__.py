"""Calling the hooks of a backend.

`runner` runs hooks for pyproject-hooks. `client` is its end of the hook host, ``host`` the host itself, which runs in
the build environment. `caller` is a backend as the frontend calls it.
"""
