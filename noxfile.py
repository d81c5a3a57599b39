"""The sessions of development. ``nox -l`` lists them; arguments behind ``--`` go to the program that a session runs."""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["quick", "lint", "types", "docs"]
# The session's own program, and no other of that name on this machine.
nox.options.error_on_external_run = True


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests. Some need root, and are skipped without it."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def quick(session: nox.Session) -> None:
    """Run the tests that take no more than a few seconds each."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "not slow", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run all tests, and show which branches no test takes."""
    session.install("-e", ".[test,coverage]")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, and which layer imports which."""
    session.install("-e", ".[lint]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    session.install("-e", ".[test,lint]")
    session.run("mypy", *session.posargs)
    session.run("pytest", "tests/test_typing.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the pages into build/docs; a warning is an error."""
    session.install("-e", ".[docs]")
    session.run("sphinx-build", "-W", "--keep-going", "docs", "build/docs", *session.posargs)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Measure lockbuild beside its peers, in the benchmark's own environment, and draw two pictures in docs."""
    session.run("python3", "benchmarks/run.py", "--charts", "docs", *session.posargs, external=True)
