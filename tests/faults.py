"""Builds in which one system call fails, or in which the process is killed at it, and what must be true afterwards.

``strace`` counts the calls of one name that a process makes, and has one of them fail or kills the process there. A
clean run tells which calls there are. Each build starts from the same state, in a `Place` of its own.

What is left out: calls before the first one on a file of the build, and calls on files of the interpreter, its packages
and the system, without which Python cannot start or import anything; calls of the threads of the frontend, of
installers and of other programs; failures that a kernel does not answer with. A call that only reads is tried once for
each file, and once for the tree and for an environment. A scenario leaves out what an earlier one has.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lockbuild.environments.contents import digest_of_contents, look_at
from lockbuild.environments.store import generations
from wheelhouse import CACHE_COMMAND, Wheelhouse
from witness import PATIENCE, make_witness_tree, wait_until

# The calls that can fail in these ways on a working system. `close` is none: it always closes.
_CREATING = ("mkdir", "mkdirat", "rename", "renameat", "link", "linkat", "symlink", "symlinkat")
_REMOVING = ("unlink", "unlinkat", "rmdir")
_STARTING = ("vfork", "clone", "clone3")
CALLS = {
    "ENOSPC": ("openat", "write", "sendfile", "copy_file_range", "ftruncate", "fsync", *_CREATING),
    "EIO": (
        *("openat", "read", "write", "newfstatat", "getdents64", "utimensat", "readlink", "flock", "fchmod"),
        *("sendfile", "fsync", *_CREATING, *_REMOVING),
    ),
    "EMFILE": ("openat", "pipe2", "dup", "dup2", "fcntl"),
    "ENOMEM": ("mmap", *_STARTING),
    "EINTR": ("read", "write", "flock", "wait4", "poll", "select"),
    # Between two of these calls a process changes nothing that outlives it, so that a kill there is one at the next.
    "KILL": (
        *("openat", "write", "sendfile", "utimensat", "fchmod", "ftruncate", "flock", "fcntl", "pipe2", "wait4"),
        *("poll", "fsync", "exit_group", *_CREATING, *_REMOVING, *_STARTING),
    ),
}

_READING = ("openat", "read", "newfstatat", "getdents64", "readlink", "mmap", "poll")

# uv's lock file and the fallback folder for lock files. Other processes may have them open: no process removes them.
_LOCKS = re.compile(r"uv-setuptools-\w+\.lock|lockbuild-\d+")

_UNFINISHED_LOCK = re.compile(r"\.uv-setuptools-\w+\.lock\.\w+\.tmp")


# What differs between two builds: descriptors, process numbers and times, digests, and names of temporary folders.
_CHANGES = re.compile(r"\b\d+(?=<)|\d{5,}|[0-9a-f]{16,}|(?<=tmp|st-|ls-|ts-|nv-)[a-z0-9_]{8}\b")

# It does not matter for an absolute path.
_WORKING_DIRECTORY = re.compile(r'AT_FDCWD<[^>]*>, (?="/)')

_OUR_TRACEBACK = re.compile(r'File "[^"]*/src/lockbuild/|bug in lockbuild')


# What is no failure: where it was, and what the daily clean-up has removed.
TOLERATED = {"at", "left by a killed build"}


class Fault(NamedTuple):
    """What happens at one system call of a process."""

    error: str
    call: str
    number: int
    """The how many-th of these calls it is, from 1 on."""

    def strace(self, log: Path) -> list[str]:
        """Return the command that runs a program with this fault, and traces nothing that the program executes."""
        effect = "signal=KILL" if self.error == "KILL" else f"error={self.error}"
        return [*_strace(log, self.call), "-e", f"inject={self.call}:{effect}:when={self.number}"]


def _strace(log: Path, *calls: str) -> list[str]:
    return ["strace", "-DD", "-f", "-b", "execve", "-y", "-s", "0", "-o", str(log), "-e", f"trace={','.join(calls)}"]


class Scenario(NamedTuple):
    """A kind of build: the options and the source, what is in the cache, and which process has the fault."""

    options: tuple[str, ...]
    source: str
    cache: str
    process: str


SCENARIOS = {
    "a warm build": Scenario(("--wheel",), "tree", "warm", "frontend"),
    "the host of a warm build": Scenario(("--wheel",), "tree", "warm", "host"),
    "a new environment": Scenario(("--wheel",), "tree", "empty", "frontend"),
    "an sdist and a wheel": Scenario((), "tree", "warm", "frontend"),
    "a shared build": Scenario(("--wheel", "--coalesce"), "tree", "warm", "frontend"),
    "a shared build of an sdist": Scenario((), "witness-1.0.tar.gz", "warm", "frontend"),
    "a shared build that is kept": Scenario((), "witness-1.0.tar.gz", "shared", "frontend"),
}


@dataclass
class Place:
    """A project, the cache folder and the folder for temporary files of its builds, and states of that cache."""

    folder: Path

    def __post_init__(self) -> None:
        self.tree = make_witness_tree(self.folder)
        (self.folder / "wheelhouse").mkdir()
        Wheelhouse(self.folder / "wheelhouse").add_backend()
        self.tree.path.joinpath("pyproject.toml").write_text(
            '[build-system]\nrequires = ["probe-backend"]\nbuild-backend = "witness_backend"\nbackend-path = ["."]\n'
        )
        for name in ("out", "tmp", "cache"):
            (self.folder / name).mkdir()
        self._keep("empty")
        self.build("--wheel", "--sdist")
        self._wrap_interpreter()
        shutil.move(self.folder / "out" / "witness-1.0.tar.gz", self.folder)
        self.build("--wheel")
        self._keep("warm")
        self.build(source="witness-1.0.tar.gz")
        self._keep("shared")

    def _keep(self, state: str) -> None:
        shutil.copytree(self.folder / "cache", self.folder / "states" / state, symlinks=True)

    def _wrap_interpreter(self) -> None:
        """Have the interpreter of the kept environment run under the command that HOST_WRAPPER names."""
        [key] = [each for each in (self.folder / "cache" / "environments").iterdir() if each.is_dir()]
        [generation] = generations(str(key))
        manifest = generation.read_manifest()
        assert manifest is not None
        python = Path(manifest.python_executable)
        python.rename(python.with_name("python-unwrapped"))
        python.write_text(f'#!/bin/sh\nexec $HOST_WRAPPER {shlex.quote(str(python))}-unwrapped "$@"\n')
        python.chmod(0o755)
        contents, seen = digest_of_contents(generation.path), look_at(generation.path).digest
        generation.write_manifest(manifest._replace(contents=contents, seen=seen))

    def restore(self, state: str) -> None:
        """Bring the cache into a state; remove all that builds have left elsewhere."""
        for name in ("out", "tmp", "cache"):
            shutil.rmtree(self.folder / name)
            (self.folder / name).mkdir()
        shutil.copytree(self.folder / "states" / state, self.folder / "cache", symlinks=True, dirs_exist_ok=True)

    def run(self, scenario: Scenario, strace: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run one build with one of its processes under `strace`, until the last of its processes has ended."""
        # -P: Python does not look for modules in the working directory.
        words = [sys.executable, "-P", "-m", "lockbuild", *scenario.options, "--lock", "always", "--lock-timeout", "0"]
        words += ["--outdir", str(self.folder / "out"), str(self.folder / scenario.source)]
        environ = self.environ
        if scenario.process == "frontend":
            words = [*strace, *words]
        else:
            environ["HOST_WRAPPER"] = shlex.join(strace)
        done = subprocess.run(
            words, cwd="/", env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE
        )
        wait_until(lambda: not self.processes(), f"the end of {self.processes()}")
        return done

    def build(self, *options: str, source: str = "tree") -> subprocess.CompletedProcess[str]:
        """Run a build without a fault, which has to succeed."""
        done = self.run(Scenario(options, source, "", "frontend"), ())
        assert done.returncode == 0, done.stderr
        return done

    @property
    def environ(self) -> dict[str, str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        return environ | {
            "LOCKBUILD_CACHE_DIR": str(self.folder / "cache"),
            "TMPDIR": str(self.folder / "tmp"),
            "HOME": str(self.folder),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.folder / "wheelhouse"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTHONHASHSEED": "0",
            "WITNESS_LOG": str(self.tree.log_file),
            "WITNESS_WORK": "0",
            "HOST_WRAPPER": "",
            "FAULTS": str(self.folder),
        }

    def processes(self) -> list[int]:
        """Return the processes of builds that still run, with their tracers."""
        mark = f"FAULTS={self.folder}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        return found

    def fault_at(self, name: str, error: str, pattern: str) -> Fault:
        """Return the first fault of a scenario with an error at a call that matches a pattern."""
        calls = self._calls(SCENARIOS[name])
        return next(fault for fault, about in calls if fault.error == error and re.match(pattern, fault.call + about))

    def all_faults(self, name: str) -> list[Fault]:
        """Return the faults of a scenario."""
        return [fault for fault, _ in self._calls(SCENARIOS[name])]

    def faults(self, name: str) -> list[Fault]:
        """Return the faults of a scenario that no earlier scenario has, and of equal reading calls only one."""
        known: set[tuple[str, Fault, str]] = set()
        chosen: list[Fault] = []
        for each, scenario in SCENARIOS.items():
            seen = set(known)
            for fault, about in self._calls(scenario):
                key = (scenario.process, fault._replace(number=0), about)
                if key not in seen and each == name:
                    chosen.append(fault)
                known.add(key)
                if fault.call in _READING:
                    seen.add(key)
            if each == name:
                break
        return chosen

    def _calls(self, scenario: Scenario) -> Iterator[tuple[Fault, str]]:
        """Yield the faults at each call of a clean run, and what the call is about."""
        log = self.folder / "strace.log"
        self.restore(scenario.cache)
        done = self.run(scenario, _strace(log, *sorted({call for calls in CALLS.values() for call in calls})))
        assert done.returncode == 0, done.stderr
        lines = log.read_text().splitlines()
        # Only those of the process itself. Its threads and forks are counted anew.
        pid = lines[0].split()[0]
        counts: Counter[str] = Counter()
        began = False
        for line in lines:
            if not (found := re.match(rf"{pid} +(\w+)\((.*)", line)):
                continue
            call, rest = found[1], _WORKING_DIRECTORY.sub("", found[2])
            counts[call] += 1
            began |= str(self.folder) in rest
            if not began or not (about := self._about(call, rest)):
                continue
            for error, calls in CALLS.items():
                if call in calls and _is_possible(error, call, rest):
                    yield Fault(error, call, counts[call]), about

    def _about(self, call: str, rest: str) -> str:
        """Return what a call is about, without numbers that differ between builds; nothing if it is not ours."""
        if "AT_EMPTY_PATH" in rest:
            # Of an open file, whose status the kernel knows.
            return ""
        if str(self.folder) in rest:
            if "O_CREAT" not in rest and (found := re.search(r"/tree/|/cache/environments/\w+/\d+/", rest)):
                return found[0]
            return _CHANGES.sub("N", rest.partition(" = ")[0])
        if "pipe:" in rest or "/proc/" in rest or not re.search('[<"]/', rest):
            return "memory" if call == "mmap" else re.sub(r"\d+", "N", rest.partition(")")[0])
        return ""

    def verdict(self, scenario: Scenario, fault: Fault) -> dict[str, str]:
        """Run a build with a fault; return what is wrong after it, by the kind of damage."""
        log = self.folder / "strace.log"
        log.unlink(missing_ok=True)
        self.restore(scenario.cache)
        wrong = {}
        try:
            done = self.run(scenario, fault.strace(log))
        except subprocess.TimeoutExpired as error:
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
            return {"hangs": str(error)}
        words = done.stdout + done.stderr
        made = list((self.folder / "out").iterdir())
        if any(not _is_whole(path) for path in made if not path.name.startswith(".")):
            wrong["torn"] = str(made)
        if done.returncode == 0 and not made:
            wrong["succeeds without an artifact"] = words
        left = [*(self.folder / "tmp").iterdir(), *(path for path in made if path.name.startswith("."))]
        left = [path for path in left if not _LOCKS.fullmatch(path.name)]
        if left and fault.error == "KILL":
            wrong["left by a killed build"] = str(left)
            subprocess.run([*CACHE_COMMAND, "prune"], env=self.environ, stdout=subprocess.DEVNULL, check=True)
            # No clean-up knows the out-dirs of users: a hidden file stays there. So does an empty one in TMPDIR that
            # was to become uv's lock file: a name there proves nothing to a clean-up.
            left = [path for path in left if path.exists() and path.parent != self.folder / "out"]
            left = [path for path in left if not _UNFINISHED_LOCK.fullmatch(path.name) or path.stat().st_size]
        if left and fault.call not in _REMOVING:
            wrong["left"] = str(left)
        if _OUR_TRACEBACK.search(words):
            wrong["tracebacks"] = words
        if fault.error == "ENOSPC" and done.returncode and "No space left on device" not in words:
            wrong["not called a full disk"] = words
        if "Backend operation failed" in words:
            wrong["blamed on the backend"] = words
        try:
            self.build(*scenario.options, source=scenario.source)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            wrong["locked" if "Gave up after" in str(error) else "broken"] = f"{error}\nafter {words}"
        if not wrong:
            return {}
        with contextlib.suppress(FileNotFoundError):
            wrong["at"] = "".join(line for line in log.read_text().splitlines() if "INJECTED" in line)
        return wrong


def _is_possible(error: str, call: str, rest: str) -> bool:
    """Tell whether a call can fail in this way, or change what a kill leaves."""
    if error in ("ENOSPC", "EIO") and "pipe:" in rest:
        return False
    if call == "openat" and error in ("ENOSPC", "KILL"):
        return "O_CREAT" in rest
    return call != "fcntl" or "F_DUPFD" in rest


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                return wheel.testzip() is None and len(wheel.namelist()) == 4
        with tarfile.open(path) as sdist:
            return [name.rpartition("/")[2] for name in sdist.getnames()][-1] == "PKG-INFO"
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError):
        return False


def describe(fault: Fault, wrong: dict[str, str]) -> str:
    return f"{fault.error} at {fault.call} {fault.number}: {json.dumps(wrong, indent=1)}"
