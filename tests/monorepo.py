"""A repository of many projects that need each other to be built, and the runs that build them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from witness import LOCKBUILD, PATIENCE

_BACKEND = """
import os, zipfile

def _write(word):
    with open(os.environ["MONOREPO_LOG"], "a") as log:
        log.write(f"{word} {name}\\n")

def get_requires_for_build_wheel(config_settings=None):
    return extra_requires

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _write("enter")
    act()
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n" + "".join(
            f"Requires-Dist: {each}\\n" for each in runtime_requires
        ),
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: monorepo\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    import base64, hashlib
    rows = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},{len(text)}"
        for path, text in files.items()
    ]
    files[f"{info}/RECORD"] = "\\n".join([*rows, f"{info}/RECORD,,", ""])
    wheel = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, wheel), "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    _write("leave")
    return wheel

def build_sdist(sdist_directory, config_settings=None):
    import io, tarfile
    sdist = f"{name}-{version}.tar.gz"
    with tarfile.open(os.path.join(sdist_directory, sdist), "w:gz") as archive:
        for path in sorted(os.listdir()):
            if os.path.isfile(path):
                archive.add(path, f"{name}-{version}/{path}")
        info = tarfile.TarInfo(f"{name}-{version}/PKG-INFO")
        text = f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n".encode()
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    return sdist
"""


@dataclass
class Monorepo:
    """Projects in one folder, with backends in their trees, and runs of lockbuild in that folder."""

    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def out_dir(self) -> Path:
        return self.folder / "out"

    def add(
        self,
        name: str,
        *,
        requires: Iterable[str] = (),
        extra_requires: Iterable[str] = (),
        runtime_requires: Iterable[str] = (),
        version: str = "1.0",
        content: str = "",
        act: str = "pass",
        named: bool = True,
        path: str | None = None,
    ) -> Path:
        """
        Write a project, over an older one of this name.

        The backend says that it needs ``extra_requires``; ``act`` is what it does to build. The module of the project
        has the ``content``. One that is not ``named`` has its name in its metadata alone.
        """
        tree = self.folder / (path or name)
        tree.mkdir(parents=True, exist_ok=True)
        project = f'[project]\nname = "{name}"\nversion = "{version}"\n' if named else ""
        (tree / "pyproject.toml").write_text(
            f"[build-system]\nrequires = {list(requires)!r}\n"
            f'build-backend = "{name}_backend"\nbackend-path = ["."]\n{project}'
        )
        values = {
            "name": name,
            "version": version,
            "content": content,
            "extra_requires": list(extra_requires),
            "runtime_requires": list(runtime_requires),
        }
        head = "".join(f"{key} = {value!r}\n" for key, value in values.items())
        (tree / f"{name}_backend.py").write_text(f"{head}{_BACKEND}\n\ndef act():\n    {act}\n")
        return tree

    def start(self, *words: str, **popen: object) -> subprocess.Popen[str]:
        """Start a run in the folder."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
        environ |= {"MONOREPO_LOG": str(self.log), "PIP_NO_INDEX": "1"}
        process: subprocess.Popen[str] = subprocess.Popen(
            [*LOCKBUILD, *words],
            **{  # type: ignore[call-overload]
                "cwd": self.folder,
                "env": environ,
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                **popen,
            },
        )
        self.started.append(process)
        return process

    def build(self, *words: str, status: int = 0) -> tuple[str, str]:
        """Run ``lockbuild --wheel`` with the out-dir; return its standard output and error."""
        process = self.start("--wheel", "-o", str(self.out_dir), *words)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == status, err
        return out, err

    def events(self) -> list[str]:
        """Return what backends have done, such as ``enter a`` and ``leave a``."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def built(self) -> list[str]:
        """Return the names of the projects in the order in which backends have built them."""
        return [line.partition(" ")[2] for line in self.events() if line.startswith("leave")]

    def artifacts(self) -> list[str]:
        """Return the names of the files in the out-dir."""
        return sorted(os.listdir(self.out_dir)) if self.out_dir.exists() else []
