"""A project that several processes ask to be built, as an sdist and as a tree, and the processes that do."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from machine import read_message
from witness import LOCKBUILD, PATIENCE, complete_lines, wait_until

WHEEL = "shared-1.0-py3-none-any.whl"


@dataclass
class SharingProject:
    """A tree and an sdist of it, with `sharing_backend`. No two projects are equal, so that they may have one cache."""

    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def sdist(self) -> Path:
        return self.folder / "shared-1.0.tar.gz"

    @property
    def builds(self) -> Path:
        """The store of shared builds."""
        return Path(os.environ["LOCKBUILD_CACHE_DIR"]) / "builds"

    def write(self) -> None:
        self.tree.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("sharing_backend.py"), self.tree)
        backend = 'requires = []\nbuild-backend = "sharing_backend"\nbackend-path = ["."]\n'
        (self.tree / "pyproject.toml").write_text(f"[build-system]\n{backend}# {uuid.uuid4()}\n")
        (self.tree / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: shared\nVersion: 1.0\n")
        (self.tree / "source.txt").write_text("first")
        self.pack()

    def pack(self) -> None:
        """Make the sdist of the tree."""
        with tarfile.open(self.sdist, "w:gz") as archive:
            archive.add(self.tree, "shared-1.0")

    @property
    def gate(self) -> Path:
        """The file that backends with ``gated=True`` wait for."""
        return self.folder / "gate"

    def environ(self, gated: bool = False) -> dict[str, str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "SHARING_"))}
        gate = {"SHARING_GATE": str(self.gate)} if gated else {}
        return environ | {"SHARING_LOG": str(self.folder / "log"), **gate}

    def start(
        self,
        *options: str,
        source: Path | None = None,
        gated: bool = False,
        env: Mapping[str, str] | None = None,
        command: tuple[str, ...] = LOCKBUILD,
        **popen: object,
    ) -> subprocess.Popen[str]:
        """Start ``lockbuild --wheel`` of the sdist, or of another source, with an out-dir of its own."""
        environ = self.environ(gated) | dict(env or {})
        out_dir = self.folder / f"out{len(self.started)}"
        process: subprocess.Popen[str] = subprocess.Popen(
            [*command, "--wheel", *options, "-o", str(out_dir), str(source or self.sdist)],
            env=environ,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **popen},  # type: ignore[call-overload]
        )
        self.started.append(process)
        return process

    def build(self, *options: str, status: int = 0, **start: object) -> str:
        """Build and return what came on standard error."""
        process = self.start(*options, **start)  # type: ignore[arg-type]
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == status, out + err
        return err

    def runs(self, word: str = "enter") -> list[int]:
        """Return the hook processes that have entered build_wheel so far, in order."""
        log = self.folder / "log"
        lines = complete_lines(log)
        return [int(line.split()[1]) for line in lines if line.startswith(word)]

    def wait_for_run(self, count: int = 1, word: str = "enter") -> None:
        wait_until(lambda: len(self.runs(word)) >= count, f"run {count} of the backend")

    def finish(self, *processes: subprocess.Popen[str], status: int = 0) -> list[str]:
        """Wait for processes (default: all); return the standard error of each."""
        errors = []
        for process in processes or tuple(self.started):
            out, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == status, f"{process.returncode}: {out}{err}"
            assert status or out.endswith(f"Successfully built {WHEEL}\n")
            errors.append(err)
        return errors

    def wheel(self, process: subprocess.Popen[str]) -> Path:
        return self.folder / f"out{self.started.index(process)}" / WHEEL

    def content(self, process: subprocess.Popen[str], name: str = "run.txt") -> str:
        with zipfile.ZipFile(self.wheel(process)) as archive:
            return archive.read(name).decode()

    def left_behind(self) -> list[Path]:
        """Return what is in the store beside complete outcomes."""
        return [path for path in self.builds.glob("*/*") if not (path / "outcome.json").exists()]


def wait_until_all_wait(processes: list[subprocess.Popen[str]], builder: subprocess.Popen[str] | int) -> None:
    """Wait until processes have said for which process they wait."""
    pid = builder if isinstance(builder, int) else builder.pid
    for process in processes:
        line = read_message(process, "Waiting for ")
        assert line.startswith(f"* Waiting for {pid}, which is building shared-1.0.tar.gz; waiting without a limit"), (
            line
        )
