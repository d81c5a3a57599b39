"""Calling the hooks of a backend: `caller` on the frontend's side, ``host`` inside the build environment."""
