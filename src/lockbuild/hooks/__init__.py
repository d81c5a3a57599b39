"""Calling the hooks of a backend: `caller` and `running` on the frontend's side, ``host`` in the build environment."""
