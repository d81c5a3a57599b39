"""A folder of tiny wheels and sdists that tests make, an index over it, and builds that need nothing else.

An environment from such a wheelhouse is made in about a second and without a network. The backend in it,
`probe_backend`, tells what hooks were given and can wait at a gate; so can an sdist, while an installer builds it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockbuild.environments.contents import look_at
from lockbuild.environments.local import digest_of_sources
from lockbuild.environments.store import Generation, Manifest
from witness import LOCKBUILD, PATIENCE, Gate, changed, complete_lines, wait_until

BACKEND = Path(__file__).with_name("probe_backend.py")

# An in-tree backend for sdists: no requirements, so that an installer does not need a second environment for it.
_SDIST_BACKEND = """
import os, shutil, subprocess

def _write(line):
    log = os.environ.get("SDIST_LOG")
    if log:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(descriptor, (line + "\\n").encode())
        os.close(descriptor)

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    name = {wheel!r}
    _write(f"enter {{os.getpid()}} {package}")
    if {runs!r}:
        subprocess.run({runs!r}, check=True)
    gate = os.environ.get("SDIST_GATE_{variable}")
    if gate:
        with open(gate) as file:
            file.read()
    shutil.copy(name, wheel_directory)
    _write(f"leave {{os.getpid()}} {package}")
    return name
"""


@dataclass
class Wheelhouse:
    """A folder of distributions."""

    folder: Path

    def add_wheel(
        self,
        name: str,
        version: str = "1.0",
        files: Mapping[str, str] | None = None,
        requires: Iterable[str] = (),
        scripts: Mapping[str, str] | None = None,
    ) -> Path:
        """Add a wheel; without ``files`` it has one module of its name. ``scripts`` are installed beside python."""
        module = name.replace("-", "_")
        info = f"{module}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
        content = {
            **(files if files is not None else {f"{module}.py": f"VERSION = {version!r}\n"}),
            **{f"{module}-{version}.data/scripts/{script}": text for script, text in (scripts or {}).items()},
            f"{info}/METADATA": metadata,
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{path},{_hash(text)},{len(text.encode())}\n" for path, text in content.items())
        content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
        path = self.folder / f"{module}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name_in_archive, text in content.items():
                archive.writestr(zipfile.ZipInfo(name_in_archive), text)
        return path

    def add_sdist(
        self, name: str, version: str = "1.0", runs: Sequence[str] = (), requires: Sequence[str] = ()
    ) -> Path:
        """
        Add an sdist whose backend waits at the FIFO that ``SDIST_GATE_<NAME>`` names, and writes to SDIST_LOG.

        ``runs`` is a command that it runs first, and that has to succeed. ``requires`` are its build requirements.
        """
        wheel = self.add_wheel(name, version)
        module = name.replace("-", "_")
        backend = _SDIST_BACKEND.format(wheel=wheel.name, package=name, variable=module.upper(), runs=list(runs))
        project = f'[build-system]\nrequires = {list(requires)}\nbuild-backend = "in_tree"\nbackend-path = ["."]\n'
        files = {
            "pyproject.toml": project.encode(),
            "in_tree.py": backend.encode(),
            "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
            wheel.name: wheel.read_bytes(),
        }
        wheel.unlink()
        path = self.folder / f"{module}-{version}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for member, content in files.items():
                info = tarfile.TarInfo(f"{module}-{version}/{member}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path

    def add_installed(self, name: str) -> Path:
        """Add a wheel of a distribution that is installed where the tests run."""
        found = importlib.metadata.distribution(name)
        path = self.folder / f"{name}-{found.version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for file in found.files or ():
                if ".." not in file.parts and "__pycache__" not in file.parts and file.name != "INSTALLER":
                    archive.write(str(file.locate()), str(file))
        return path

    def add_backend(self, version: str = "1.0", requires: Iterable[str] = ()) -> Path:
        """Add `probe_backend`."""
        files = {"probe_backend.py": BACKEND.read_text(), "probe_backend_late.py": "VALUE = 1\n"}
        return self.add_wheel(
            "probe-backend", version, files, requires, scripts={"probe-tool": "#!python\nprint('probe')\n"}
        )


# Installs wheels with hard links. Each thread that is about to link into a folder with that name says so and then waits
# for a line, or to be killed.
_PAUSING_INSTALLER = """
import sys
from lockbuild.wheels import install_wheels
folder, environment, *wheels = sys.argv[1:]
def pause(event, arguments):
    if event == "os.link" and f"/{folder}/" in arguments[1]:
        print("paused", flush=True)
        sys.stdin.readline()
sys.addaudithook(pause)
install_wheels(wheels, environment, link_mode="hardlink")
"""


def installing_up_to(folder: str, environment: Path, wheels: Iterable[Path]) -> subprocess.Popen[str]:
    """Return an installer that has paused before it links the first file into a folder of that name."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PAUSING_INSTALLER, folder, str(environment), *map(str, wheels)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "paused\n"
    return process


@dataclass
class ProbeTree:
    """A project whose backend is `probe_backend`, and the builds of it. All of them use one wheelhouse."""

    path: Path
    control: Path
    """A folder outside the tree for logs, gates and out-dirs."""
    wheelhouse: Wheelhouse
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def cache(self) -> Path:
        """The cache folder that the fixture of all tests chose."""
        return Path(os.environ["LOCKBUILD_CACHE_DIR"])

    @property
    def store(self) -> Path:
        return self.cache / "environments"

    @property
    def out_dir(self) -> Path:
        return self.control / "out"

    @property
    def sdist_log(self) -> Path:
        return self.control / "sdist.log"

    def require(self, *requirements: str, path: Path | None = None) -> Path:
        """Write the pyproject.toml: the backend and these requirements."""
        path = path or self.path
        path.mkdir(exist_ok=True)
        requires = ", ".join(f"'{each}'" for each in ("probe-backend", *requirements))
        (path / "pyproject.toml").write_text(
            f'[build-system]\nrequires = [{requires}]\nbuild-backend = "probe_backend"\n'
        )
        return path

    def environ(self, extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
        ours = ("PIP_", "UV_", "PYTHON", "LOCKBUILD_ENV_", "LOCKBUILD_INSTALLER")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        environ |= {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheelhouse.folder),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "UV_NO_INDEX": "1",
            "UV_FIND_LINKS": str(self.wheelhouse.folder),
            "UV_NO_CONFIG": "1",
            "UV_CACHE_DIR": str(self.control / "uv-cache"),
            "UV_PYTHON_DOWNLOADS": "never",
            "PROBE_LOG": str(self.control / "probe.log"),
            "SDIST_LOG": str(self.sdist_log),
        }
        return changed(environ, extra)

    def start(
        self,
        *options: str,
        source: Path | None = None,
        env: Mapping[str, str | None] | None = None,
        out_dir: Path | None = None,
        command: tuple[str, ...] = LOCKBUILD,
        **popen: Any,
    ) -> subprocess.Popen[str]:
        """Start ``lockbuild --wheel`` with more options; it is ended when the test ends."""
        out_dir = out_dir or self.control / f"out{len(self.started)}"
        process: subprocess.Popen[str] = subprocess.Popen(
            [*command, "--wheel", *options, "--outdir", str(out_dir), str(source or self.path)],
            env=self.environ(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )
        self.started.append(process)
        return process

    def build(self, *options: str, status: int = 0, **start: Any) -> str:
        """Build and return what was written to standard error; ``status`` is the exit status that has to come."""
        process = self.start(*options, **start)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == status, f"{process.returncode}: {out}{err}"
        return err

    def finish(self, *processes: subprocess.Popen[str]) -> list[str]:
        """Wait for builds, which have to succeed; return the standard error of each."""
        errors = []
        for process in processes:
            out, err = process.communicate(timeout=2 * PATIENCE)
            assert process.returncode == 0, f"{process.returncode}: {out}{err}"
            errors.append(err)
        return errors

    def hooks(self, hook: str = "build_wheel") -> list[dict[str, Any]]:
        """Return what the calls of a hook have told so far, in order."""
        lines = complete_lines(self.control / "probe.log")
        return [told for line in lines if (told := json.loads(line))["hook"] == hook]

    def prefixes(self) -> list[str]:
        """Return the environments that ``build_wheel`` ran in, in order."""
        return [told["prefix"] for told in self.hooks()]

    def wait_for_hook(self, count: int = 1, hook: str = "build_wheel") -> dict[str, Any]:
        """Wait until a hook has begun for the ``count``-th time; return what it told."""
        wait_until(lambda: len(self.hooks(hook)) >= count, f"call {count} of {hook}")
        return self.hooks(hook)[count - 1]

    def wait_for_sdist(self, *packages: str) -> None:
        """Wait until installers have begun to build these sdists."""
        for package in packages:
            pattern = re.compile(rf"^enter \d+ {package}$", re.MULTILINE)
            wait_until(
                lambda pattern=pattern: self.sdist_log.exists() and pattern.search(self.sdist_log.read_text()),  # type: ignore[misc]
                f"the build of {package}",
            )

    def make_gate(self, name: str = "gate") -> Gate:
        """Make a gate for ``PROBE_GATE`` or ``SDIST_GATE_<NAME>``."""
        return Gate(self.control / name)

    def keys(self) -> list[Path]:
        """Return the folders of the keys in the store."""
        return sorted(path for path in self.store.iterdir() if path.is_dir()) if self.store.exists() else []

    def environments(self) -> list[Path]:
        """Return the complete environments in the store."""
        return sorted(Path(str(each)[: -len(".json")]) for each in self.store.glob("*/*.json"))

    def debris(self) -> list[Path]:
        """Return what is in the store and belongs to no complete environment, and the files of users."""
        complete = {str(each) for each in self.environments()}
        expected = complete | {f"{each}{ending}" for each in complete for ending in (".json", ".users", ".bytecode")}
        found = [path for key in self.keys() for path in key.iterdir() if str(path) not in expected]
        users = [path for each in complete for path in Path(f"{each}.users").glob("*")]
        return sorted([*found, *users])


def make_probe_tree(folder: Path) -> ProbeTree:
    house, control = folder / "wheelhouse", folder / "control"
    house.mkdir(parents=True)
    control.mkdir()
    wheelhouse = Wheelhouse(house)
    wheelhouse.add_backend()
    tree = ProbeTree(folder / "tree", control, wheelhouse)
    tree.require()
    return tree


def created(*errors: str) -> int:
    """Count the environments that builds say they have created."""
    return sum(error.count("Creating isolated environment") for error in errors)


@contextlib.contextmanager
def served(wheelhouse: Wheelhouse) -> Iterator[Index]:
    """Serve a wheelhouse as a simple index (PEP 503) on this machine; it ends with the context or by `Index.stop`."""
    index = Index(wheelhouse)
    try:
        yield index
    finally:
        index.stop()


_JSON = "application/vnd.pypi.simple.v1+json"


def _page(project: str, names: list[str], uploaded: Mapping[str, str]) -> bytes:
    """Return the page of a project as JSON (PEP 691)."""
    files = [{"filename": n, "url": f"/files/{n}", "hashes": {}, "upload-time": uploaded[n]} for n in names]
    versions = [name.split("-")[1] for name in names]
    page = {"meta": {"api-version": "1.1"}, "name": project, "versions": versions, "files": files}
    return json.dumps(page).encode()


class Index:
    """A simple index on 127.0.0.1 that notes what it was asked for."""

    def __init__(self, wheelhouse: Wheelhouse) -> None:
        self.requests: list[str] = []
        self.fragment = ""
        """What is appended to the address of each file: a digest."""
        self.uploaded: dict[str, str] = {}
        """When files were uploaded, by their names (PEP 700). Empty for an index that does not tell."""
        index, folder = self, wheelhouse.folder

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.requests.append(self.path)
                kind, _, name = self.path.strip("/").partition("/")
                if kind == "simple":
                    names = [path.name for path in folder.iterdir() if _project(path.name) == name]
                    if index.uploaded:
                        self._answer(200, _JSON, _page(name, sorted(names), index.uploaded))
                        return
                    lines = [f'<a href="/files/{each}{index.fragment}">{each}</a>\n' for each in sorted(names)]
                    self._answer(200 if names else 404, "text/html", "".join(lines).encode())
                else:
                    self._answer(200, "application/octet-stream", (folder / name).read_bytes())

            # uv asks for one before it gets a file.
            do_HEAD = do_GET  # noqa: N815

            def _answer(self, status: int, kind: str, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/simple"
        self._thread: threading.Thread | None = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """Close the port: nobody is there any more."""
        if self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._thread = None


def processes_naming(folder: Path) -> list[int]:
    """Return the processes whose command line names something in a folder. Zombies have no command line."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes()
                if os.fsencode(folder) in command:
                    found.append(int(process.name))
    return found


def copy_tree(tree: ProbeTree, name: str) -> Path:
    """Copy the project of a tree to another path."""
    return Path(shutil.copytree(tree.path, tree.path.with_name(name)))


def site_packages(environment: Path) -> Path:
    """Return the folder of an environment's packages."""
    [found] = environment.glob("lib/python*/site-packages")
    return found


def a_made_up_environment(tree: ProbeTree, number: int = 1) -> Path:
    """Make what looks like an environment, without an installer."""
    generation = Generation(str(tree.store / f"{number:024}"), "1")
    tree.store.mkdir(parents=True, mode=0o700, exist_ok=True)
    Path(generation.path, "bin").mkdir(parents=True)
    Path(generation.users_path).mkdir()
    scripts, seen = f"{generation.path}/bin", look_at(generation.path).digest
    generation.write_manifest(
        Manifest(time.time(), f"{scripts}/python", scripts, ("made-up",), {}, "", digest_of_sources((), ()), seen=seen)
    )
    return Path(generation.path)


def make_unused(environment: Path, days: float) -> None:
    """Have an environment look as if no build had used it for so many days."""
    moment = time.time() - days * 86400
    os.utime(f"{environment}.users", (moment, moment))


CACHE_COMMAND = (sys.executable, "-m", "lockbuild.commands.cache")


def _project(file_name: str) -> str:
    return file_name.split("-")[0].replace("_", "-").lower()


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
