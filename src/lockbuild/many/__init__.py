"""Many builds in one run: which there are, in which order they go, and what each of them leaves.

Each build is a process of its own, as for `lockbuild.async_build`. The frontend knows of none of this, but for one
thing: a build that requires a project of this run, whose wheel is not there yet, ends and says so. It starts again when
that wheel is there.
"""
