"""One table of invocations, each run with ``python -m build`` and with ``python -m lockbuild``.

Everything that can be seen from outside is compared: exit status, all that is printed, the files left behind, the
artifacts with their members. Where lockbuild differs on purpose, the row says in what, and why.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from witness import LOCKBUILD, PATIENCE, PYTHON_BUILD

# A backend that gives the same bytes each time, puts its settings into what it builds, and can be told to go wrong.
BACKEND = """
import base64, gzip, hashlib, io, json, os, signal, sys, tarfile, zipfile

FILES = {
    "METADATA": "Metadata-Version: 2.1\\nName: parity\\nVersion: 1.0\\nSummary: caf\\u00e9\\n",
    "WHEEL": "Wheel-Version: 1.0\\nGenerator: parity\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
}

def get_requires_for_build_wheel(config_settings=None):
    return []

def get_requires_for_build_sdist(config_settings=None):
    return []

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    print("building the wheel")
    print("a word on standard error", file=sys.stderr)
    name = "parity-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as archive:
        archive.writestr(zipfile.ZipInfo("parity.py"), "settings = " + json.dumps(config_settings, sort_keys=True))
        for file, content in FILES.items():
            archive.writestr(zipfile.ZipInfo("parity-1.0.dist-info/" + file), content)
    return name

def build_sdist(sdist_directory, config_settings=None):
    print("building the sdist")
    members = {"PKG-INFO": FILES["METADATA"], "settings.json": json.dumps(config_settings, sort_keys=True)}
    for file in ("pyproject.toml", "backend.py"):
        with open(file, encoding="utf-8") as source:
            members[file] = source.read()
    name = "parity-1.0.tar.gz"
    with gzip.GzipFile(os.path.join(sdist_directory, name), "wb", mtime=0) as compressed:
        with tarfile.open(fileobj=compressed, mode="w") as archive:
            for file, content in members.items():
                info = tarfile.TarInfo("parity-1.0/" + file)
                info.size = len(content.encode())
                archive.addfile(info, io.BytesIO(content.encode()))
    return name
"""

# Whether the tests run with the hook host.
HOST_IS_ON = os.environ.get("LOCKBUILD_PREIMPORT", "1") == "1"

PREPARE_METADATA = """
def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    print("preparing metadata")
    folder = os.path.join(metadata_directory, "parity-1.0.dist-info")
    os.mkdir(folder)
    for file, content in FILES.items():
        with open(os.path.join(folder, file), "w", encoding="utf-8") as target:
            target.write(content)
    return "parity-1.0.dist-info"
"""


def build_system(backend: str = "backend", requires: str = "[]") -> str:
    return f'[build-system]\nrequires = {requires}\nbuild-backend = "{backend}"\nbackend-path = ["."]\n'


def wheel_hook(body: str) -> str:
    return f"\ndef build_wheel(wheel_directory, config_settings=None, metadata_directory=None):\n    {body}\n"


def sdist_hook(body: str) -> str:
    return f"\ndef build_sdist(sdist_directory, config_settings=None):\n    {body}\n"


Files = Mapping[str, str]


def project(more: str = "", *, pyproject: str | None = None) -> Files:
    """Return the files of a project whose backend is `BACKEND` and ``more``."""
    return {
        "project/pyproject.toml": build_system() if pyproject is None else pyproject,
        "project/backend.py": BACKEND + more,
    }


@dataclass(frozen=True)
class Row:
    """An invocation in a folder that holds ``files``, with ``project`` as its source unless ``words`` name another."""

    name: str
    words: str
    files: Files = field(default_factory=project)
    env: Mapping[str, str] = field(default_factory=dict)
    status: int = 0
    """What both end with: a row that fails for a reason other than the one it is there for would prove nothing."""
    contains: str = ""
    """What both print, on standard output or error."""
    prepare: Callable[[Path], None] | None = None
    """What is done in the folder before, beyond writing files."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Which parts of the outcome are not compared, and why."""
    ours: Callable[[Outcome], bool] | None = None
    """What lockbuild does instead, where it is better on purpose."""
    reuses_environment: bool = False
    """Whether the steps in which an environment is made are not compared: we keep those that build makes again."""
    stdin: str = ""
    slow: bool = False


@dataclass(frozen=True)
class Outcome:
    """What can be seen of a run from outside."""

    status: int
    stdout: str
    stderr: str
    files: Mapping[str, object]
    """All that is below the folder afterwards, with modes. For an archive its members, their kinds and contents."""
    temporary: tuple[str, ...]
    """What is left in the folder for temporary files."""

    @property
    def errors(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith("ERROR")]


def run(tool: tuple[str, ...], row: Row, folder: Path) -> Outcome:
    folder.mkdir()
    (folder / "tmp").mkdir()
    work = folder / "work"
    for name, content in row.files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    if row.prepare:
        row.prepare(work)
    environ = os.environ | {
        "TMPDIR": str(folder / "tmp"),
        "LOCKBUILD_CACHE_DIR": str(folder / "cache"),
        "SOURCE_DATE_EPOCH": "1700000000",
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "1000",
        # A set is listed in an order that depends on it.
        "PYTHONHASHSEED": "0",
    }
    finished = subprocess.run(
        [*tool, *row.words.split()],
        cwd=work,
        env={**environ, **row.env},
        input=row.stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 4,
        check=False,
    )

    def neutral(text: str) -> str:
        text = text.replace(str(folder), "FOLDER").replace("python -m lockbuild", "python -m build")
        # A build environment of ours is kept in the cache; that of build has a random name.
        text = re.sub(r"FOLDER/cache/environments/\w+/\w+", "FOLDER/tmp/RANDOM", text)
        text = re.sub(r"FOLDER/tmp/[\w.-]+(/(tmp\w{8}|build-via-sdist-\w+)(?=[/'\"\s]|$))*", "FOLDER/tmp/RANDOM", text)
        # With ours pip resolves and fetches, and leaves the installation to us.
        text = re.sub(r"^> .* (install --ignore-installed|wheel) --use-pep517 .*$", "> PIP", text, flags=re.MULTILINE)
        return re.sub(r"Command '\[.* '(install|wheel)', .*\]' returned", "Command 'PIP' returned", text)

    files = {
        # The report is readable for its owner alone with build; ours is what the umask makes it.
        str(path.relative_to(work)): (
            path.name == "report.json" or path.stat().st_mode,
            None if path.is_dir() else read(path, neutral),
        )
        for path in sorted(work.rglob("*"))
        if not path.is_relative_to(work / "kept-environment")
    }
    left = tuple(sorted(name for name in os.listdir(folder / "tmp") if not is_lock_file_of_uv(name)))
    return Outcome(finished.returncode, neutral(finished.stdout), neutral(finished.stderr), files, left)


def is_lock_file_of_uv(name: str) -> bool:
    """Tell what lockbuild leaves in the folder for temporary files, as uv does: a lock file is never removed."""
    return re.fullmatch(r"uv-setuptools-[0-9a-f]{16}\.lock", name) is not None


def read(path: Path, neutral: Callable[[str], str]) -> object:
    if path.suffix == ".whl" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return path.read_bytes(), [(i.filename, i.external_attr, archive.read(i)) for i in archive.infolist()]
    if path.name.endswith(".tar.gz") and tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            return [
                (m.name, m.type, m.mode, m.linkname, file.read() if m.isreg() and (file := tar.extractfile(m)) else b"")
                for m in tar.getmembers()
            ]
    if path.suffix == ".json":
        return neutral(path.read_text(encoding="utf-8"))
    return path.read_bytes()


MAKING_AN_ENVIRONMENT = re.compile(
    r"\* (Creating isolated environment:|Using the build environment made) .*\n"
    r"|\* Installing packages in isolated environment:\n(  - .*\n)+"
)


def compare(row: Row, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        # Folders with names of one length: lines are wrapped.
        running = pool.submit(run, PYTHON_BUILD, row, tmp_path / "theirs")
        ours = run(LOCKBUILD, row, tmp_path / "our-s.")
        theirs = running.result()
    assert theirs.status == row.status, f"build itself: {theirs.stdout}{theirs.stderr}"
    assert row.contains in theirs.stdout + theirs.stderr
    assert ours.temporary == ()
    if row.ours is not None:
        assert row.ours(ours), ours
    for part in ("stderr", "stdout", "status", "files"):
        if part not in row.ignored:
            assert seen(row, ours, part) == seen(row, theirs, part), part


# What only we say of a failure: the reason at the end of the last line, and before it the place of a syntax error and
# a hint at a module that is missing.
REASON = re.compile(
    r"(Backend (?:subprocess exited when trying to invoke \w+|'.*' is not available))(?:\.|: .*)$", re.MULTILINE
)
BEFORE = re.compile(r"^(  \d+ \| .*\n +\^|.*TIP.* the build environment has no module .*)\n", re.MULTILINE)


def seen(row: Row, outcome: Outcome, part: str) -> object:
    if part == "stderr" and row.reuses_environment:
        return MAKING_AN_ENVIRONMENT.sub("", outcome.stderr)
    if part == "stderr" and outcome.status == 1:
        return REASON.sub(r"\1", BEFORE.sub("", outcome.stderr))
    if part == "stderr" and outcome.status == 2:
        # The usage before it names our further options.
        return outcome.stderr.splitlines()[-1]
    # When a backend has failed, build prints a blank line on standard output, and so does it before it lists unmet
    # requirements. We do not: it separates nothing from what stands on standard error.
    if part == "stdout" and outcome.status == 1:
        return outcome.stdout.rstrip("\n")
    return getattr(outcome, part)


def make_sdist(
    work: Path, name: str = "parity-1.0.tar.gz", top: str = "parity-1.0", pkg_info: bool = True, member: str = ""
) -> None:
    (work / "project" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: parity\nVersion: 1.0\n")
    with tarfile.open(work / name, "w:gz") as archive:
        for file in ("pyproject.toml", "backend.py", *(["PKG-INFO"] if pkg_info else [])):
            archive.add(work / "project" / file, f"{top}/{file}" if top else file, filter=_undated)
        if member:
            name, _, link = member.partition(" -> ")
            more = tarfile.TarInfo(name)
            more.type, more.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
            archive.addfile(more)


def _undated(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = 0
    return member


def make_wheel(work: Path, metadata: int = 1) -> None:
    with zipfile.ZipFile(work / "parity-1.0-py3-none-any.whl", "w") as archive:
        for number in range(metadata):
            undated = zipfile.ZipInfo(f"parity-1.{number}.dist-info/METADATA")
            archive.writestr(undated, "Metadata-Version: 2.1\nName: parity\n")


def failed_without_an_artifact(outcome: Outcome) -> bool:
    built = [name for name in outcome.files if name.endswith((".whl", ".tar.gz", ".tmp"))]
    return outcome.status == 1 and len(outcome.errors) == 1 and not built


# A build_wheel that does something before it builds.
ALSO = "\ninner = build_wheel\n" + wheel_hook("{}; return inner(wheel_directory, config_settings)")


# A build_wheel whose wheel has these .dist-info folders.
FOLDERS_IN_WHEEL = """
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(os.path.join(wheel_directory, "{name}"), "w") as archive:
        archive.writestr("parity.py", "")
        for folder in {folders}:
            archive.writestr(folder + ".dist-info/METADATA", FILES["METADATA"])
    return "{name}"
"""


def installed(more: str = "", backend: str = "installed") -> Files:
    """Return the files of a project whose backend is found in the folder ``site``, by PYTHONPATH."""
    return {
        "project/pyproject.toml": f'[build-system]\nrequires = []\nbuild-backend = "{backend}"\n',
        "project/backend.py": "",
        "project/site/installed.py": BACKEND + more,
    }


IN_SITE = {"PYTHONPATH": "site"}
MIDDLE = "Metadata-Version: 2.1\nName: middle\nVersion: 1.0\nRequires-Dist: no-such-thing\n"
RAISES = wheel_hook('print("about to fail"); raise ValueError("the backend cannot")')
HELP = {"stdout": "the help and version texts are our own"}
NOT_OURS = "build's catch-all for an unforeseen exception: a traceback of its own code; ours says only what is wrong"
UNFORESEEN = {"stderr": NOT_OURS, "stdout": NOT_OURS}
MORE_DETAIL = {"stderr": "-v also tells what is locked and why"}
ASKED = {"stderr": "a backend that is not locked is asked what it requires, because that may be setuptools"}
NOT_TRIED = {"stderr": "we do not say that we build before the out-dir is there"}
NO_NAME = {"stderr": "build fails with a TypeError of its own code; ours says what the backend did wrong"}
NO_NAME["stdout"] = NO_NAME["stderr"]
NOT_WHOLE = {
    "status": "what is not there, or not whole, is not built: build says it was, and tox or pip stumble over it later",
    "stdout": "no last line that says that it was built",
    "stderr": "an error",
    "files": "nothing that is broken appears in the out-dir",
}

ROWS = [
    # What is built, and where it goes.
    Row("nothing said", "-n project", contains="Successfully built parity-1.0.tar.gz and parity-1.0-py3-none-any.whl"),
    Row("sdist", "-n -s project"),
    Row("wheel", "-n -w project", slow=True),
    Row("sdist and wheel", "-n -s -w project", slow=True),
    Row("wheel and sdist", "-n -w -s project", contains="parity-1.0-py3-none-any.whl and parity-1.0.tar.gz", slow=True),
    Row("wheel twice", "-n -w -w project", slow=True),
    Row("outdir", "-n -w -o new/out project"),
    Row(
        "outdir exists with an older file",
        "-n -w -o out project",
        {**project(), "out/parity-1.0-py3-none-any.whl": ""},
        slow=True,
    ),
    Row("outdir without a name", "-n -w --outdir= project", slow=True),
    Row("outdir in the tree", "-n -o project project", slow=True),
    Row("working directory", "-n -w", {"pyproject.toml": build_system(), "backend.py": BACKEND}, slow=True),
    Row("source with a slash at its end", "-n -w project/", slow=True),
    Row("without the check of requirements", "-n -x -w project", ignored=ASKED, slow=True),
    Row(
        "without the check of requirements, locked",
        "-n -x -w project",
        project(pyproject=build_system(requires='["setuptools", "no-such-thing-at-all"]')),
        slow=True,
    ),
    Row(
        "without the check of requirements that are not there",
        "-n -x -w project",
        project(pyproject=build_system(requires='["no-such-thing-at-all"]')),
        ignored=ASKED,
        slow=True,
    ),
    Row("a setuptools project is locked", "-n project", project(pyproject=build_system(requires='["setuptools"]'))),
    # Settings.
    Row("a setting", "-n -C a=b project", slow=True),
    Row("a setting twice", "-n -w -C a=b -C a=c -C a=d -C e=f project"),
    Row(
        "a setting without a value",
        "-n -w -C a project",
        contains="WARNING Config setting 'a' was passed without",
        slow=True,
    ),
    Row("a setting with an empty value", "-n -w -C a= project", slow=True),
    Row("a setting with two equals signs", "-n -w -C a=b=c project", slow=True),
    Row("a setting that begins with hyphens", "-n -w -C--build-option=-v --config-setting=--x=y project"),
    Row("settings in JSON", '-n -w --config-json {"a":{"b":[1,null,true]}} project', slow=True),
    Row("settings in JSON, none", "-n -w --config-json {} project", slow=True),
    Row("settings in JSON, empty", "-n -w --config-json= project", slow=True),
    Row(
        "settings in bad JSON", "-n -w --config-json {a} project", status=1, contains="ERROR Invalid JSON in", slow=True
    ),
    Row("settings in JSON that is no object", "-n -w --config-json [1] project", status=1, contains="must contain a"),
    # Metadata, report, and an sdist or a wheel as the source.
    Row("metadata", "-n --metadata project", project(PREPARE_METADATA), contains='"summary": "café"'),
    Row("metadata from a built wheel", "-n --metadata project", contains='"summary": "café"', slow=True),
    Row(
        "metadata, verbose",
        "-n --metadata -v project",
        project(PREPARE_METADATA),
        contains="< preparing metadata",
        ignored=MORE_DETAIL,
        ours=lambda o: "< preparing metadata" in o.stderr,
        slow=True,
    ),
    Row("metadata of an sdist", "-n --metadata parity-1.0.tar.gz", prepare=make_sdist, slow=True),
    Row("metadata of a wheel", "--metadata parity-1.0-py3-none-any.whl", prepare=make_wheel),
    Row(
        "metadata of a wheel without any",
        "--metadata parity-1.0-py3-none-any.whl",
        prepare=lambda work: make_wheel(work, 0),
        status=1,
        contains="is not a valid wheel: expected one .dist-info/METADATA, found 0",
    ),
    Row(
        "metadata of a wheel with two of them",
        "--metadata parity-1.0-py3-none-any.whl",
        prepare=lambda work: make_wheel(work, 2),
        status=1,
        contains="found 2",
        slow=True,
    ),
    Row(
        "metadata of something else",
        "--metadata parity-1.0-py3-none-any.whl",
        {"parity-1.0-py3-none-any.whl": "not a zip file"},
        status=1,
        contains="File is not a zip file",
        ignored=UNFORESEEN,
        ours=lambda o: o.errors == ["ERROR 'parity-1.0-py3-none-any.whl' is not a valid wheel: File is not a zip file"],
        slow=True,
    ),
    Row(
        "metadata from a built wheel that is none",
        "-n --metadata project",
        project(wheel_hook("return 'not a wheel'")),
        status=1,
        contains="ERROR Invalid wheel",
        slow=True,
    ),
    *(
        Row(
            f"metadata from a built wheel with {len(folders)} .dist-info folders",
            "-n --metadata project",
            project(FOLDERS_IN_WHEEL.format(name="parity-1.0-py3-none-any.whl", folders=folders)),
            status=1,
            contains="ERROR Invalid wheel",
            slow=True,
        )
        for folders in ([], ["parity-1.0", "other-1.0"])
    ),
    Row(
        "metadata from a built wheel with a build tag",
        "-n --metadata project",
        project(FOLDERS_IN_WHEEL.format(name="parity-1.0-1-py3-none-any.whl", folders=["parity-1.0"])),
        contains='"name": "parity"',
        slow=True,
    ),
    Row("metadata with a failing hook", "-n --metadata project", project(RAISES), status=1, slow=True),
    Row("report", "-n -o out --report report.json project"),
    Row("report of one", "-n -w --report report.json project", slow=True),
    Row(
        "report into no folder",
        "-n -w --report none/report.json project",
        status=1,
        contains="No such file or directory",
        ignored=UNFORESEEN,
        ours=lambda o: len(o.errors) == 1 and "No such file or directory" in o.errors[0] and "none" in o.errors[0],
        slow=True,
    ),
    Row("sdist as the source", "-n parity-1.0.tar.gz", prepare=make_sdist),
    Row("sdist as the source, wheel asked for", "-n -w -o out parity-1.0.tar.gz", prepare=make_sdist, slow=True),
    Row(
        "sdist as the source, unpacked to a folder",
        "-n --sdist-extract-dir x parity-1.0.tar.gz",
        prepare=make_sdist,
        slow=True,
    ),
    Row("sdist unpacked to a folder", "-n --sdist-extract-dir x project", slow=True),
    Row(
        "sdist unpacked over an older one",
        "-n --sdist-extract-dir x project",
        {**project(), "x/parity-1.0/old": ""},
        slow=True,
    ),
    Row(
        "sdist unpacked beside something else",
        "-n --sdist-extract-dir x project",
        {**project(), "x/other": ""},
        slow=True,
    ),
    Row("sdist-extract-dir without need", "-n -w --sdist-extract-dir x project", slow=True),
    Row(
        "unpacked sdist is kept after a failure",
        "-n --sdist-extract-dir x project",
        project(RAISES),
        status=1,
        contains="TIP inspect the extracted sources at x",
        slow=True,
    ),
    Row(
        "not a name of an sdist",
        "-n parity.tar.gz",
        prepare=lambda w: make_sdist(w, "parity.tar.gz"),
        status=1,
        slow=True,
    ),
    Row(
        "sdist with a bad version", "-n a-b.tar.gz", prepare=lambda w: make_sdist(w, "a-b.tar.gz"), status=1, slow=True
    ),
    Row(
        "not a tar file",
        "-n parity-1.0.tar.gz",
        {"parity-1.0.tar.gz": "nothing"},
        status=1,
        ignored={"stderr": "build adds a line for each kind of compression that it is not"},
        ours=lambda outcome: outcome.stderr.endswith("truncated header\n") and outcome.stderr.count("\n") == 1,
        slow=True,
    ),
    Row("sdist without a folder", "-n parity-1.0.tar.gz", prepare=lambda w: make_sdist(w, top=""), status=1, slow=True),
    Row(
        "sdist with two folders",
        "-n parity-1.0.tar.gz",
        prepare=lambda w: make_sdist(w, member="other-1.0/file"),
        status=1,
        contains="must contain a single top-level directory",
        slow=True,
    ),
    Row(
        "sdist whose folder has another name",
        "-n parity-1.0.tar.gz",
        prepare=lambda w: make_sdist(w, top="other-2.0"),
        slow=True,
    ),
    *(
        Row(
            f"sdist with {what}",
            "-n parity-1.0.tar.gz",
            prepare=lambda w, member=member: make_sdist(w, member=member),  # type: ignore[misc]
            status=1,
            contains=error,
            ignored={"stdout": NOT_OURS, "stderr": "ours also says which file it is"},
            ours=lambda o: (
                len(o.errors) == 1 and o.errors[0].startswith("ERROR failed to unpack source distribution parity-1.0")
            ),
            slow=True,
        )
        for what, member, error in [
            ("a member outside of its folder", "parity-1.0/../../evil", "outside the destination"),
            ("a link to an absolute path", "parity-1.0/evil -> /etc/passwd", "is a link to an absolute path"),
        ]
    ),
    Row(
        "sdist as the source, with settings",
        "-n -x -w -Ca=b parity-1.0.tar.gz",
        prepare=make_sdist,
        ignored=ASKED,
        slow=True,
    ),
    Row(
        "sdist without PKG-INFO",
        "-n parity-1.0.tar.gz",
        prepare=lambda w: make_sdist(w, pkg_info=False),
        status=1,
        slow=True,
    ),
    # What is said.
    Row("quiet", "-n -q project"),
    Row("very quiet", "-n -qq project", slow=True),
    Row("quieter still", "-n -qqq project", slow=True),
    Row("quiet failure", "-n -w -q project", project(RAISES), status=1, contains="TIP pass --env-dir", slow=True),
    Row("very quiet failure", "-n -w -qq project", project(RAISES), status=1, slow=True),
    Row(
        "verbose",
        "-n -v project",
        ignored=MORE_DETAIL,
        ours=lambda o: o.stderr.count("Not locking ") == 2,
    ),
    Row("NO_COLOR", "-n -w project", env={"NO_COLOR": "1"}, slow=True),
    Row("FORCE_COLOR", "-n project", env={"FORCE_COLOR": "1"}, contains="\33[1m\33[92mSuccessfully built", slow=True),
    Row(
        "FORCE_COLOR, empty",
        "-n project",
        env={"FORCE_COLOR": ""},
        contains="\33[1m\33[92mSuccessfully built",
        slow=True,
    ),
    Row("NO_COLOR, empty", "-n project", env={"NO_COLOR": ""}, slow=True),
    Row("FORCE_COLOR and a failure", "-n -w project", project(RAISES), env={"FORCE_COLOR": "1"}, status=1, slow=True),
    Row(
        "both",
        "-n -w project",
        env={"FORCE_COLOR": "1", "NO_COLOR": "1"},
        contains="Both NO_COLOR and",
        ignored={"stderr": "build colors this warning"},
        ours=lambda o: "WARNING Both NO_COLOR and FORCE_COLOR" in o.stderr,
        slow=True,
    ),
    Row("a narrow terminal", "-n -w -C a project", env={"COLUMNS": "20"}, slow=True),
    Row(
        "a typo in the table's name, and setuptools as the backend that is meant when none is named",
        "-n -x -w project",
        {"project/pyproject.toml": "[build-sistem]\n"},
        contains="WARNING Found 'build-sistem' in pyproject.toml, did you mean 'build-system'?",
        ignored={
            "stdout": "setuptools prints the folder that it is given: the out-dir with build, a staging folder with us"
        },
        slow=True,
    ),
    # No project, or a bad one.
    Row("no project", "-n empty", {"empty/readme": ""}, status=1, contains="does not appear to be a Python project"),
    Row("no directory", "-n none", status=1, contains="ERROR Source none is not a directory", slow=True),
    Row("a file", "-n project/backend.py", status=1, contains="is not a directory", slow=True),
    Row("a .tar.gz that is not there", "-n none-1.0.tar.gz", status=1, contains="is not a directory", slow=True),
    Row("a directory named like an sdist", "-n -w a-1.0.tar.gz", {"a-1.0.tar.gz/readme": ""}, status=1, slow=True),
    *(
        Row(f"pyproject.toml: {why}", "-n -w project", project(pyproject=text), status=1, contains=error, slow=True)
        for why, text, error in [
            ("not TOML", "[build-system\n", "Failed to parse project/pyproject.toml"),
            ("no table", "build-system = 1\n", "`build-system` must be a table"),
            ("no requires", '[build-system]\nbuild-backend = "x"\n', "`requires` is a required property"),
            ("requires misspelled", "[build-system]\nrequire = []\n", "`requires` is a required property"),
            ("requires no list", '[build-system]\nrequires = "x"\n', "`requires` must be an array of strings"),
            ("requires numbers", "[build-system]\nrequires = [1]\n", "`requires` must be an array of strings"),
            ("backend no string", "[build-system]\nrequires = []\nbuild-backend = 1\n", "must be a string"),
            ("backend-path no list", '[build-system]\nrequires = []\nbackend-path = "."\n', "must be an array"),
            ("backend-path missing", '[build-system]\nrequires = []\nbackend-path = ["no"]\n', "does not exist or is"),
            (
                "backend-path a file",
                '[build-system]\nrequires = []\nbackend-path = ["backend.py"]\n',
                "does not exist or is",
            ),
            ("unknown key", "[build-system]\nrequires = []\nx = 1\n", "Unknown properties: x"),
        ]
    ),
    Row(
        "a requirement that is none",
        "-n -w project",
        project(pyproject=build_system(requires='["?"]')),
        status=1,
        contains="Expected package name",
        ignored=UNFORESEEN,
        ours=lambda o: (
            o.errors == ["ERROR '?' is not a requirement: Expected package name at the start of dependency specifier"]
        ),
    ),
    Row(
        "pyproject.toml is a folder",
        "-n -w project",
        {"project/pyproject.toml/file": "", "project/backend.py": BACKEND},
        status=1,
        contains="Is a directory",
        ignored=UNFORESEEN,
        slow=True,
    ),
    Row(
        "no backend", "-n -w project", project(pyproject=build_system("nowhere")), status=1, contains="'nowhere' is no"
    ),
    Row("no object in the backend", "-n -w project", project(pyproject=build_system("backend:x")), status=1, slow=True),
    Row(
        "a backend outside the backend path",
        "-n -w project",
        project(pyproject=build_system("json")),
        status=1,
        slow=True,
    ),
    Row("a backend with a wrong syntax", "-n -w project", project("\nif:"), status=1, slow=True),
    Row("unmet requirements", "-n -w project", project(pyproject=build_system(requires='["no-such-thing"]')), status=1),
    Row(
        "unmet requirements of the hook",
        "-n -w project",
        project(
            "\ndef get_requires_for_build_wheel(config_settings=None):\n    return ['no-such-thing >= 2', 'pip < 1']\n"
        ),
        status=1,
        contains="wanted: >=2",
        slow=True,
    ),
    Row(
        "unmet requirements of a requirement",
        "-n -w project",
        {**project(pyproject=build_system(requires='["middle"]')), "site/middle-1.0.dist-info/METADATA": MIDDLE},
        env=IN_SITE,
        status=1,
        contains="middle -> no-such-thing",
        slow=True,
    ),
    Row(
        "no hooks for requirements",
        "-n project",
        project("\ndel get_requires_for_build_sdist, get_requires_for_build_wheel\n"),
        slow=True,
    ),
    # A backend that fails.
    Row("no hook", "-n -w project", project("\ndel build_wheel\n"), status=1),
    Row("no hook for the sdist", "-n project", project("\ndel build_sdist\n"), status=1, slow=True),
    Row("raises", "-n -w project", project(RAISES), status=1, contains="ValueError: the backend cannot"),
    Row("raises in the wheel after the sdist", "-n project", project(RAISES), status=1, slow=True),
    Row("raises SystemExit", "-n -w project", project(wheel_hook("sys.exit(3)")), status=1, slow=True),
    Row("exits with status 0", "-n -w project", project(wheel_hook("sys.exit(0)")), status=1, slow=True),
    Row("exits with a text", "-n -w project", project(wheel_hook("sys.exit('no way')")), status=1, slow=True),
    Row("exits at once", "-n -w project", project(wheel_hook("os._exit(3)")), status=1, slow=True),
    Row("kills itself", "-n -w project", project(wheel_hook("os.kill(os.getpid(), 9)")), status=1),
    Row(
        "calls something that fails",
        "-n -w project",
        project(wheel_hook("__import__('subprocess').check_call('false')")),
        status=1,
        slow=True,
    ),
    Row(
        "raises an error without a text", "-n -w project", project(wheel_hook("raise ValueError")), status=1, slow=True
    ),
    Row(
        "raises one that has two causes",
        "-n -w project",
        project(wheel_hook("\n    try: 1 / 0\n    except ZeroDivisionError as e: raise ValueError from e")),
        status=1,
        slow=True,
    ),
    Row(
        "says what the backend does not support",
        "-n -s project",
        project(
            "\nclass UnsupportedOperation(Exception): pass\n" + sdist_hook("raise UnsupportedOperation('no sdist')")
        ),
        status=1,
        slow=True,
    ),
    Row(
        "writes an sdist without PKG-INFO that is not compressed",
        "-n project",
        project(
            sdist_hook(
                "\n    with tarfile.open(os.path.join(sdist_directory, 'parity-1.0.tar.gz'), 'w') as archive:"
                "\n        archive.add('backend.py', 'parity-1.0/backend.py')"
                "\n    return 'parity-1.0.tar.gz'"
            )
        ),
        status=1,
        contains="does not contain parity-1.0/PKG-INFO",
        ignored={"stderr": "ours is refused as the source of the wheel, whose step has begun, under another path"},
        ours=lambda o: len(o.errors) == 1 and "does not contain parity-1.0/PKG-INFO" in o.errors[0],
        slow=True,
    ),
    Row(
        "get_requires raises",
        "-n -w project",
        project("\ndef get_requires_for_build_wheel(config_settings=None):\n    raise RuntimeError('do not ask')\n"),
        status=1,
        contains="do not ask",
    ),
    Row(
        "writes nothing",
        "-n -w project",
        project(wheel_hook("return 'parity-1.0-py3-none-any.whl'")),
        contains="Successfully built",
        ignored=NOT_WHOLE,
        ours=lambda o: failed_without_an_artifact(o) and "there is no such file" in o.errors[0],
    ),
    Row(
        "returns nothing",
        "-n -w project",
        project(wheel_hook("pass")),
        status=1,
        ignored=NO_NAME,
        ours=lambda o: o.errors == ["ERROR The backend did not return the name of an artifact"],
        slow=True,
    ),
    Row(
        "returns a number",
        "-n -w project",
        project(wheel_hook("return 1")),
        status=1,
        ignored=NO_NAME,
        ours=lambda o: o.errors == ["ERROR The backend did not return the name of an artifact"],
        slow=True,
    ),
    Row(
        "returns an absolute path",
        "-n -w project",
        project("\ninner = build_wheel\n" + wheel_hook("return os.path.join(wheel_directory, inner(wheel_directory))")),
        slow=True,
    ),
    Row(
        "writes a bad wheel",
        "-n -w project",
        project(wheel_hook("open(os.path.join(wheel_directory, 'a.whl'), 'w').close(); return 'a.whl'")),
        contains="Successfully built a.whl",
        ignored=NOT_WHOLE,
        ours=lambda o: failed_without_an_artifact(o) and "cannot be read: File is not a zip file" in o.errors[0],
    ),
    Row(
        "says that it has built something elsewhere",
        "-n -w project",
        project("\ninner = build_wheel\n" + wheel_hook("return os.path.abspath(inner('.'))")),
        contains="Successfully built parity-1.0-py3-none-any.whl",
        ignored={**NOT_WHOLE, "files": "the wheel stays where the backend put it, as with build"},
        ours=lambda o: o.status == 1 and "not in the folder that it was given" in o.errors[0],
        slow=True,
    ),
    Row(
        "writes something beside the wheel",
        "-n -w project",
        project(
            "\ninner = build_wheel\n"
            + wheel_hook("open(os.path.join(wheel_directory, 'log.txt'), 'w').close(); return inner(wheel_directory)")
        ),
        slow=True,
    ),
    Row(
        "fails after it has written",
        "-n -w project",
        project("\ninner = build_wheel\n" + wheel_hook("inner(wheel_directory); raise ValueError('too late')")),
        status=1,
        ignored={"files": "build leaves the wheel of a failed build in the out-dir; nothing appears there with us"},
        ours=failed_without_an_artifact,
    ),
    Row(
        "ends before it has answered",
        "-n -w project",
        project(wheel_hook("sys.stdout.flush(); os._exit(0)")),
        status=1,
        slow=True,
    ),
    # A backend that is installed, not in the tree.
    Row("installed", "-n -s -w project", installed(), env=IN_SITE),
    Row(
        "installed, prints at import",
        "-n -s -w project",
        installed("\nprint('imported in', os.getcwd())\n"),
        env=IN_SITE,
        contains="imported in FOLDER/work/project",
    ),
    Row(
        "installed, warns",
        "-n -s -w project",
        installed("\n__import__('warnings').warn('old')\n"),
        env=IN_SITE,
        contains="WARNING old",
        ignored={"stderr": "the same warning is printed once, not once for each hook"},
        ours=lambda o: o.stderr.count("WARNING old\n") == 1,
        slow=True,
    ),
    Row("installed, raises at import", "-n -s -w project", installed("\nraise OSError('no')\n"), env=IN_SITE, status=1),
    Row(
        "installed, exits at import",
        "-n -s -w project",
        installed("\nsys.exit('no')\n"),
        env=IN_SITE,
        status=1,
        slow=True,
    ),
    Row("installed, raises", "-n -w project", installed(RAISES), env=IN_SITE, status=1, slow=True),
    Row("installed, no hook", "-n -w project", installed("\ndel build_wheel\n"), env=IN_SITE, status=1, slow=True),
    Row(
        "installed, an object",
        "-n -w project",
        installed("\nclass X: build_wheel = staticmethod(build_wheel)\n", "installed:X"),
        env=IN_SITE,
        slow=True,
    ),
    Row("installed, no object", "-n -w project", installed("", "installed:X"), env=IN_SITE, status=1, slow=True),
    Row(
        "installed, leaves something for the exit at import",
        "-n -s -w project",
        installed("\n__import__('atexit').register(print, 'at exit')\n"),
        env=IN_SITE,
        slow=True,
    ),
    Row(
        "installed, counts in a global",
        "-n -s -w project",
        installed("\ncount = []\n" + ALSO.format("count.append(1); print(count)")),
        env=IN_SITE,
        slow=True,
    ),
    Row(
        "installed, starts a thread at import",
        "-n -s -w project",
        installed("\n__import__('threading').Timer(0.05, print, ['late']).start()\n"),
        env=IN_SITE,
        slow=True,
    ),
    Row(
        "installed, changes the process at import",
        "-n -s -w project",
        installed(
            "\nos.umask(0o77); os.environ['X'] = 'y'; sys.path.append('/x')\n"
            + ALSO.format("print(os.environ['X'], os.getcwd(), sys.path[-1])")
        ),
        env=IN_SITE,
        contains="y FOLDER/work/project /x",
        slow=True,
    ),
    # What a hook process may do beside building.
    Row(
        "reads standard input",
        "-n -w project",
        project(ALSO.format("print('read', sys.stdin.read())")),
        stdin="some words",
        contains="read some words",
    ),
    Row(
        "leaves a thread behind",
        "-n -w project",
        project(ALSO.format("__import__('threading').Timer(0.05, print, ['late']).start()")),
        contains="late",
        slow=True,
    ),
    Row(
        "leaves something for the exit",
        "-n -w project",
        project(ALSO.format("__import__('atexit').register(print, 'at exit')")),
        contains="at exit",
        slow=True,
    ),
    Row(
        "changes its folder, environment and standard output",
        "-n -w project",
        project(ALSO.format("os.chdir('/'); os.environ.clear(); sys.stdout = sys.stderr")),
        slow=True,
    ),
    Row(
        "starts processes of its own",
        "-n -w project",
        project(
            ALSO.format(
                "spawn = __import__('multiprocessing').get_context('spawn'); "
                "p = spawn.Process(target=print, args=('a child',)); p.start(); p.join()"
            )
        ),
        contains="a child",
        slow=True,
    ),
    Row(
        "logs at import",
        "-n -w project",
        project("\nprint('imported', __name__, __file__, sys.argv)\n"),
        contains="imported backend",
        slow=True,
    ),
    # The out-dir.
    Row(
        "outdir is a file",
        "-n -w -o out project",
        {**project(), "out": ""},
        status=1,
        contains="exists and is not a",
        ignored=NOT_TRIED,
        slow=True,
    ),
    Row(
        "outdir is below a file",
        "-n -w -o out/x project",
        {**project(), "out": ""},
        status=1,
        contains="cannot be a",
        ignored=NOT_TRIED,
        slow=True,
    ),
    # Wrong usage.
    *(
        Row(f"usage: {words}", words, prepare=make, status=2, slow=words.startswith("--"))
        for words, make in [
            ("--no-such-option", None),
            ("-n --env-dir e project", None),
            ("-n --installer uv project", None),
            ("--installer conda project", None),
            ("-q -v project", None),
            ("-C a=b --config-json {} project", None),
            ("--metadata --report r project", None),
            ("--metadata -w project", None),
            ("--report", None),
            ("-s -w parity-1.0.tar.gz", make_sdist),
            ("parity-1.0-py3-none-any.whl", make_wheel),
            ("-s parity-1.0.tar.gz", make_sdist),
            ("-o", None),
        ]
    ),
    Row("help", "--help", ignored=HELP, slow=True),
    Row("version", "-V", ignored=HELP, slow=True),
]


SETUPTOOLS_PROJECT = {
    "project/pyproject.toml": '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    '[project]\nname = "parity"\nversion = "1.0"\n[project.scripts]\nparity = "parity:main"\n',
    "project/src/parity/__init__.py": "def main(): pass\n",
    "project/src/parity/data.txt": "data\n",
    "project/README.md": "parity\n",
    "project/LICENSE": "none\n",
}
LEGACY_PROJECT = {
    "project/setup.py": "from setuptools import setup\nsetup(name='parity', version='1.0', py_modules=['parity'])\n",
    "project/parity.py": "",
}
GIVEN_FOLDER = {
    "stdout": "setuptools prints the folder that it is given: the out-dir with build, a staging folder with us"
}
OLD_SETUPTOOLS = "setuptools == 80.9.0\n"
HASHED = (
    "flit_core == 3.12.0 \\\n"
    "    --hash=sha256:e7a0304069ea895172e3c7bb703292e992c5d1555dd1233ab7b5621b5b69e62c\n    # via parity\n"
)

# Makes no virtual environment.
BROKEN_VENV = """
import subprocess, venv

def create(*_):
    raise subprocess.CalledProcessError(1, ["some", "words"], b"what it printed", b"what it complained of")

venv.EnvBuilder.create = create
"""

# With build environments of their own, and what is installed there.
ISOLATED_ROWS = [
    Row("a real project", "project", SETUPTOOLS_PROJECT, ignored=GIVEN_FOLDER, reuses_environment=True),
    Row(
        "a real project with a setup.py only", "project", LEGACY_PROJECT, ignored=GIVEN_FOLDER, reuses_environment=True
    ),
    Row("a real project, wheel, quiet", "-q -w project", SETUPTOOLS_PROJECT),
    Row("a real project, metadata", "--metadata project", SETUPTOOLS_PROJECT, contains='"name": "parity"'),
    Row("a real project, uv", "--installer uv -w project", SETUPTOOLS_PROJECT, ignored=GIVEN_FOLDER),
    Row(
        "installer's output",
        "-v -w project",
        SETUPTOOLS_PROJECT,
        contains="< Successfully installed setuptools",
        ignored={**MORE_DETAIL, **GIVEN_FOLDER},
        ours=lambda o: "< Saved " in o.stderr and "> " in o.stderr,
    ),
    Row(
        "constraints",
        "-w --dependency-constraints-txt c.txt project",
        {**SETUPTOOLS_PROJECT, "c.txt": OLD_SETUPTOOLS},
        contains="- setuptools==80.9.0",
        ignored=GIVEN_FOLDER,
    ),
    Row(
        "constraints with hashes, over several lines",
        "-w --installer uv --dependency-constraints-txt c.txt project",
        {**project(pyproject=build_system(requires='["flit_core >= 3"]')), "c.txt": HASHED},
        contains="- flit-core==3.12.0",
    ),
    Row("constraints, none", "--dependency-constraints-txt c.txt -w project", {**project(), "c.txt": "\n"}),
    Row(
        "constraints, no file",
        "--dependency-constraints-txt c.txt -w project",
        status=1,
        contains="No such file or directory: 'c.txt'",
        ignored=UNFORESEEN,
        ours=lambda o: o.errors == ["ERROR No such file or directory: 'c.txt'"],
    ),
    *(
        Row(
            f"constraints that conflict, {installer}",
            f"-w --installer {installer} --dependency-constraints-txt c.txt project",
            {**project(pyproject=build_system(requires='["flit_core >= 3.12"]')), "c.txt": "flit_core < 3\n"},
            status=1,
            contains=words,
            ignored=UNFORESEEN,
            ours=lambda o: len(o.errors) == 1 and "could not install build-system.requires: " in o.errors[0],
        )
        for installer, words in (("pip", "ResolutionImpossible"), ("uv", "No solution found"))
    ),
    Row(
        "a requirement that is nowhere",
        "-w project",
        project(pyproject=build_system(requires='["flit_core == 0.0.0.0"]')),
        status=1,
        contains="No matching distribution",
        ignored=UNFORESEEN,
        ours=lambda o: len(o.errors) == 1 and "pip could not install build-system.requires: " in o.errors[0],
    ),
    Row(
        "a requirement that is none, isolated",
        "-w project",
        project(pyproject=build_system(requires='["?"]')),
        status=1,
        contains="Invalid requirement",
        ignored=UNFORESEEN,
        ours=lambda o: len(o.errors) == 1 and "pip could not install build-system.requires: " in o.errors[0],
    ),
    Row(
        "a requirement of the hook",
        "-w project",
        project("\ndef get_requires_for_build_wheel(config_settings=None):\n    return ['flit_core ~= 3.12']\n"),
        contains="- flit-core==3.",
        reuses_environment=True,
    ),
    Row(
        "a requirement with a script",
        "-w project",
        project(
            ALSO.format("print(__import__('subprocess').check_output(['wheel', 'version']))"),
            pyproject=build_system(requires='["wheel"]'),
        ),
        contains="wheel 0",
    ),
    *(
        Row(
            f"PYTHONPATH, {installer}",
            f"-w --installer {installer} project",
            {**project(ALSO.format("print(os.environ.get('PYTHONPATH'))")), "site/pip.py": "raise SystemExit(9)\n"},
            env=IN_SITE,
        )
        for installer in ("pip", "uv")
    ),
    Row(
        "an environment that cannot be made",
        "-w project",
        {**project(), "site/sitecustomize.py": BROKEN_VENV},
        env=IN_SITE,
        status=1,
        contains="Failed to create venv. Maybe try installing virtualenv.",
    ),
    Row("an environment in a folder", "--env-dir e project"),
    Row("an environment in an empty folder", "--env-dir e -w project", prepare=lambda work: (work / "e").mkdir()),
    Row("an environment in a folder that is not empty", "--env-dir e -w project", {**project(), "e/x": ""}, status=1),
    Row(
        "an environment in a file",
        "--env-dir e -w project",
        {**project(), "e": ""},
        status=1,
        contains="ERROR Build environment location is not a directory: e",
    ),
    Row(
        "an environment without a project",
        "--env-dir e none",
        status=1,
        ignored=dict.fromkeys(("stderr", "files"), "we look at the project before we make the environment"),
        ours=lambda o: o.stderr == "ERROR Source none is not a directory\n",
    ),
    Row(
        "an environment that is kept, alone",
        "--env-dir kept-environment project",
        project(RAISES),
        status=1,
        contains="TIP inspect the build environment at kept-environment, then",
    ),
    Row(
        "an environment that is kept",
        "--env-dir kept-environment --sdist-extract-dir x project",
        project(RAISES),
        status=1,
        contains="TIP inspect the build environment at kept-environment and the extracted sources at x",
    ),
]


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.slow else []) for row in ROWS]
)
def test_an_invocation_does_what_it_does_with_build(row: Row, tmp_path: Path) -> None:
    compare(row, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("row", ISOLATED_ROWS, ids=lambda row: row.name)
def test_an_isolated_build_does_what_it_does_with_build(row: Row, tmp_path: Path) -> None:
    compare(row, tmp_path)
    for tool in ("theirs", "our-s."):
        kept = (tmp_path / tool / "work" / "kept-environment").exists()
        assert kept == ("kept-environment" in row.words)


# A backend whose hooks write down what they see.
SEES = """
import stat, threading

def see(hook):
    def name(handler):
        return getattr(handler, "__qualname__", None) or type(handler).__name__ + str(getattr(handler, "value", ""))
    descriptors = {}
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            mode = stat.S_IFMT(os.fstat(number).st_mode)
            descriptors[number] = {"inheritable": os.get_inheritable(number), "mode": mode}
        except OSError:
            pass  # the one that listed them
    umask = os.umask(0)
    os.umask(umask)
    main = sys.modules["__main__"]
    seen = {
        "sys.argv": sys.argv,
        "sys.path": sys.path,
        "sys.flags": repr(sys.flags),
        "sys.executable": [sys.executable, sys.prefix, sys.base_prefix, sys.exec_prefix],
        "sys.dont_write_bytecode": sys.dont_write_bytecode,
        "sys.excepthook": name(sys.excepthook),
        "hooks of the import system": [[name(entry) for entry in each] for each in (sys.meta_path, sys.path_hooks)],
        "streams": [[s.encoding, s.errors, s.line_buffering, s.isatty()] for s in (sys.stdin, sys.stdout, sys.stderr)],
        "warnings": [sys.warnoptions, repr(__import__("warnings").filters)],
        "limit of the recursion": sys.getrecursionlimit(),
        "cwd": os.getcwd(),
        "umask": umask,
        "environment": dict(os.environ),
        "signal handlers": {s.name: name(signal.getsignal(s)) for s in signal.Signals},
        "blocked signals": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "wake-up descriptor": signal.set_wakeup_fd(-1),
        "interval timer": signal.getitimer(signal.ITIMER_REAL),
        "main": [main.__name__, main.__file__, main.__package__ or None, repr(main.__spec__), main.__doc__],
        "modules": sorted(sys.modules),
        "descriptors": descriptors,
        "threads": [[t.name for t in threading.enumerate()], len(os.listdir("/proc/self/task"))],
        "niceness": os.nice(0),
        "session": os.getsid(0),
        "children": open("/proc/self/task/%d/children" % os.getpid()).read(),
    }
    if hook == "build_wheel":
        seen["standard input"] = sys.stdin.read()
    gc = __import__("gc")
    seen["garbage collection"] = [gc.isenabled(), gc.get_threshold(), gc.get_debug(), len(gc.callbacks)]
    with open("seen-by-%s.json" % hook, "w") as file:
        json.dump(seen, file)

def watch(hook):
    inner = globals()[hook]
    def watched(*arguments):
        see(hook)
        return inner(*arguments)
    globals()[hook] = watched

for hook in ("get_requires_for_build_sdist", "build_sdist", "get_requires_for_build_wheel", "build_wheel"):
    watch(hook)
"""

# What the hook host has imported before it forks, and a script that python runs would not have.
MODULES_OF_THE_HOST = {
    *("atexit", "fcntl", "gc", "importlib._abc", "importlib.util", "pkgutil", "runpy", "select", "typing", "weakref"),
    *("_socket", "array", "math", "selectors", "socket"),
}
MODULES_OF_TYPING = {"__future__", "_typing", "_weakrefset", "typing.io", "typing.re"}


@pytest.mark.parametrize(
    ("files", "is_locked"),
    [
        (project(SEES), False),
        (project(SEES, pyproject=build_system(requires='["setuptools"]')), True),
        (installed(SEES), False),
    ],
    ids=["in-tree", "in-tree, locked", "installed"],
)
def test_a_hook_process_sees_what_it_sees_with_build(files: Files, is_locked: bool, tmp_path: Path) -> None:
    row = Row("sees", "-n -s -w project", files, env=IN_SITE, stdin="words on a pipe")
    theirs, ours = run(PYTHON_BUILD, row, tmp_path / "theirs"), run(LOCKBUILD, row, tmp_path / "our-s.")
    assert (theirs.status, ours.status) == (0, 0), theirs.stderr + ours.stderr
    hooks = sorted(name for name in theirs.files if "/seen-by-" in name)
    assert len(hooks) == 4
    for hook in hooks:
        with_build, with_us = (json.loads(outcome.files[hook][1]) for outcome in (theirs, ours))  # type: ignore[index]
        locks = with_us["environment"].pop("LOCKBUILD_HELD_LOCKS", None)
        assert (locks is not None) == is_locked
        assert _without_locks(with_us.pop("descriptors"), is_locked=is_locked) == with_build.pop("descriptors")
        modules, their_modules = set(with_us.pop("modules")), set(with_build.pop("modules"))
        assert their_modules <= modules
        assert modules - their_modules <= MODULES_OF_THE_HOST | MODULES_OF_TYPING
        assert with_us == with_build


def _without_locks(descriptors: dict[str, dict[str, object]], *, is_locked: bool) -> dict[str, dict[str, object]]:
    """Check that the locks' descriptors (our file, the tree, uv's file) are not inheritable; return the others."""
    standard = {number: found for number, found in descriptors.items() if int(number) <= 2}
    others = [found for number, found in descriptors.items() if int(number) > 2]
    assert len(others) == (3 if is_locked else 0)
    assert not any(found["inheritable"] for found in others)
    return standard


@pytest.mark.parametrize("words", ["project", "-q project"])
def test_output_of_hooks_and_of_the_frontend_stands_in_one_file_in_the_same_order(words: str, tmp_path: Path) -> None:
    backend = ALSO.format(
        "os.write(1, b'unbuffered\\n'); print('flushed', flush=True); print('late'); print('error', file=sys.stderr); "
        "__import__('subprocess').run(['echo', 'a child'])"
    )
    seen = []
    for tool, name in ((PYTHON_BUILD, "theirs"), (LOCKBUILD, "our-s.")):
        folder = tmp_path / name
        for path, content in project(backend).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content, encoding="utf-8")
        with (folder / "output").open("w+") as output:
            subprocess.run([*tool, "-n", *words.split()], cwd=folder, stdout=output, stderr=output, check=True)
            output.seek(0)
            lines = output.read().splitlines()
        assert ("unbuffered" in lines) == ("-q" not in words)
        seen.append(lines)
    assert seen[0] == seen[1]
