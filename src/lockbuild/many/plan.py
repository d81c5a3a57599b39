"""The builds of a run: which sources there are, what they are called, and what they are known to require."""

from __future__ import annotations

import configparser
import contextlib
import os
import tomllib
from email.parser import BytesHeaderParser
from typing import TYPE_CHECKING, Any, NamedTuple

from build import BuildBackendException, BuildException
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidSdistFilename, canonicalize_name, parse_sdist_filename

from lockbuild import frontend
from lockbuild.errors import LockbuildError, PlanError, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lockbuild.other_python import Python
    from lockbuild.request import BuildRequest


class PlannedBuild(NamedTuple):
    """One build of a run."""

    label: str
    """The source as the user named it."""
    request: BuildRequest
    name: str | None
    """The normalized name of the project; ``None`` if it cannot be known without building it."""
    version: str | None
    """Its version, if that is written down."""
    needs: frozenset[str]
    """The normalized names of the projects that it declares as build requirements."""
    python: Python | None = None
    """The Python that builds; ``None`` is our own."""
    other_pythons: tuple[Python, ...] = ()
    """More Pythons for which there is to be a wheel, if that of this build does not serve them."""

    def __hash__(self) -> int:
        """Hash what tells builds apart. Settings may be of any type."""
        return hash((self.request.source, self.request.distributions, self.python))

    def with_python(self, python: Python) -> PlannedBuild:
        """Return the build of the wheel for another one of the Pythons."""
        return self._replace(request=self.request._replace(distributions=("wheel",)), python=python, other_pythons=())


class Plan(NamedTuple):
    """The builds of a run."""

    wanted: tuple[PlannedBuild, ...]
    providers: Mapping[str, PlannedBuild]
    """The builds that give the wheels of projects, by their normalized names."""

    def only(self, names: Iterable[str]) -> Plan:
        """Return a plan in which these projects alone are wanted, and what they need. Raises `PlanError`."""
        wanted = {canonicalize_name(name): name for name in names}
        builds = [build for build in self.wanted if build.name in wanted]
        if missing := wanted.keys() - {build.name for build in builds}:
            known = ", ".join(sorted(build.name for build in self.wanted if build.name))
            raise PlanError(f"The workspace has no package {', '.join(sorted(missing))}; it has {known}")
        return Plan(tuple(builds), self.providers)


def make_plan(requests: Sequence[BuildRequest], pythons: Sequence[Python] = (), *, sources: bool = True) -> Plan:
    """
    Plan the builds that are requested, with each of these Pythons, or with our own.

    Without ``sources`` no build uses the wheel of another one. Raises `PlanError` where two builds would write the same
    file, or would give the wheel of the same project.
    """
    # One source that is named twice is built once.
    wanted = {os.path.realpath(request.source): request for request in requests}
    builds = [_planned(request, asks=sources and len(wanted) > 1) for request in wanted.values()]
    if pythons:
        builds = [build._replace(python=pythons[0], other_pythons=tuple(pythons[1:])) for build in builds]
    _check_for_clashes(builds)
    providers: dict[str, PlannedBuild] = {}
    for build in builds if sources else ():
        # A source distribution is built, but is not the source of a project.
        if build.name is not None and os.path.isdir(build.request.source):
            if build.name in providers:
                raise PlanError(
                    f"{shown(providers[build.name].label)} and {shown(build.label)} are both the project {build.name}; "
                    "build one of them, or use releases of it with --no-sources"
                )
            providers[build.name] = _giving_a_wheel(build)
    return Plan(tuple(builds), providers)


def _giving_a_wheel(build: PlannedBuild) -> PlannedBuild:
    kinds = build.request.distributions
    if not kinds or "wheel" in kinds:
        return build
    return build._replace(request=build.request._replace(distributions=("wheel",)))


def _check_for_clashes(builds: Iterable[PlannedBuild]) -> None:
    """Raise `PlanError` if two builds are known to write the same file."""
    known: dict[tuple[str, ...], PlannedBuild] = {}
    for build in builds:
        if build.name is None or build.version is None or build.request.out_dir is None:
            continue
        other = known.setdefault((build.name, build.version, os.path.realpath(build.request.out_dir)), build)
        if other is not build:
            raise PlanError(
                f"{shown(other.label)} and {shown(build.label)} would both write {build.name} {build.version} into "
                f"{shown(build.request.out_dir)}; build them in separate runs with different out-dirs"
            )


def _planned(request: BuildRequest, *, asks: bool) -> PlannedBuild:
    """Read what is written down about a source. With ``asks``, its backend is asked for a name that is not."""
    source = request.source
    name, version, needs = None, None, frozenset[str]()
    if os.path.isdir(source):
        pyproject = _pyproject(source)
        name, version = _name_and_version(pyproject, source)
        needs = frozenset(_names(_table(pyproject, "build-system").get("requires", ["setuptools"])))
        if name is None and asks:
            name = _name_in_metadata(request)
    else:
        with contextlib.suppress(InvalidSdistFilename):
            name, parsed = parse_sdist_filename(os.path.basename(source))
            version = str(parsed)
    return PlannedBuild(source, request, name, version, needs if request.isolation else frozenset())


def _pyproject(tree: str) -> Mapping[str, Any]:
    # The build of a tree whose file cannot be read says so.
    with (
        contextlib.suppress(OSError, ValueError, RecursionError),
        open(os.path.join(tree, "pyproject.toml"), "rb") as f,
    ):
        return tomllib.load(f)
    return {}


def _table(content: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    for key in keys:
        found = content.get(key)
        content = found if isinstance(found, dict) else {}
    return content


def _name_and_version(pyproject: Mapping[str, Any], tree: str) -> tuple[str | None, str | None]:
    """Return the normalized name and the version that a tree states; ``None`` for what it computes."""
    for table in (_table(pyproject, "project"), _table(pyproject, "tool", "poetry"), _setup_cfg(tree)):
        name, version = table.get("name"), table.get("version")
        if isinstance(name, str):
            return canonicalize_name(name), version if isinstance(version, str) else None
    return None, None


def _setup_cfg(tree: str) -> Mapping[str, Any]:
    parser = configparser.RawConfigParser()
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read(os.path.join(tree, "setup.cfg"), encoding="utf-8")
        # The version may be a directive, such as ``attr:``.
        return {"name": parser.get("metadata", "name")}
    return {}


def _names(requirements: Any) -> Iterator[str]:
    """Yield the normalized names of the requirements that apply here."""
    for text in requirements if isinstance(requirements, list) else ():
        with contextlib.suppress(InvalidRequirement, TypeError):
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate():
                yield canonicalize_name(requirement.name)


def _name_in_metadata(request: BuildRequest) -> str | None:
    """Ask a backend what its project is called; ``None`` if that fails, and so will the build."""
    try:
        metadata = frontend.metadata(request._replace(distributions=(), verbosity=-1))
    except (LockbuildError, BuildException, BuildBackendException, OSError):
        return None
    name = BytesHeaderParser().parsebytes(metadata)["Name"]
    return canonicalize_name(name) if name else None
