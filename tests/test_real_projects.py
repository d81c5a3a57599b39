"""Real projects: `lockbuild` gives what `python -m build` gives, byte for byte, and locks where setuptools is.

The build environments are filled from the package index, by uv, which is quick. Both frontends build at the same path,
one after the other in a fresh tree, because compilers write paths into what they build.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from witness import LOCKBUILD, PYTHON_BUILD

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

# For builds and for commits.
_EPOCH = "1700000000"

_MODULE = {"demo/__init__.py": '"""A package."""\n', "demo/data.txt": "data\n"}
_PROJECT = '[project]\nname = "demo"\nversion = "1.0"\ndescription = "A demo"\n'


def build_system(backend: str, *requires: str, path: str | None = None) -> str:
    in_tree = f'backend-path = ["{path}"]\n' if path else ""
    return f'[build-system]\nrequires = {list(requires)}\nbuild-backend = "{backend}"\n{in_tree}\n'


def not_locked(backend: str) -> str:
    return f"Not locking TREE: its backend is {backend}, and its build environment has no setuptools"


@dataclass(frozen=True)
class Sample:
    """A project, and what lockbuild says of its lock: the messages for the sdist, then for the wheel, of a TREE."""

    files: Mapping[str, str]
    says: str
    of_the_wheel: tuple[str, ...] = ()
    """What is said of the wheel's tree, where that is not the same as of the sdist's."""
    example: str | None = None
    git: bool = False
    """Whether the tree is a git repository with a tag 1.0."""
    same_sdist: Literal["file", "tar", "members"] = "file"
    """What two sdists of one frontend have in common: gzip's header or the tar's members may hold times of the build,
    whatever SOURCE_DATE_EPOCH says. All wheels are the same whole."""


BUILD_META = "Locking TREE: its backend is setuptools.build_meta"
LEGACY = "Locking TREE: its backend is setuptools.build_meta:__legacy__"
BROUGHT = "Locking TREE: setuptools is in its build environment"

SAMPLES = {
    "setuptools with pyproject.toml": Sample(
        {**_MODULE, "pyproject.toml": build_system("setuptools.build_meta", "setuptools") + _PROJECT},
        BUILD_META,
        same_sdist="members",
    ),
    "setuptools with setup.cfg": Sample(
        {
            **_MODULE,
            "pyproject.toml": build_system("setuptools.build_meta", "setuptools"),
            "setup.cfg": "[metadata]\nname = demo\nversion = 1.0\n[options]\npackages = demo\n"
            "[options.package_data]\ndemo = data.txt\n",
        },
        BUILD_META,
        same_sdist="members",
    ),
    "setuptools with a bare setup.py": Sample(
        {
            **_MODULE,
            "setup.py": "from setuptools import setup\n\nsetup(name='demo', version='1.0', packages=['demo'])\n",
        },
        LEGACY,
        same_sdist="members",
    ),
    "setuptools with a C extension": Sample({}, BUILD_META, example="setuptools", same_sdist="members"),
    "setuptools-scm": Sample(
        {
            **_MODULE,
            "pyproject.toml": build_system("setuptools.build_meta", "setuptools", "setuptools-scm")
            + '[project]\nname = "demo"\ndynamic = ["version"]\n'
            + '[tool.setuptools_scm]\nversion_file = "demo/version.py"\n',
        },
        BUILD_META,
        git=True,
        same_sdist="members",
    ),
    "an in-tree wrapper of setuptools": Sample(
        {
            **_MODULE,
            "pyproject.toml": build_system("wrapper", "setuptools", path="backend") + _PROJECT,
            "backend/wrapper.py": "from setuptools.build_meta import *\n",
            "setup.cfg": "[options]\npackages = demo\n",
            "MANIFEST.in": "graft backend\nglobal-exclude *.pyc\n",
        },
        BROUGHT,
        same_sdist="members",
    ),
    # pbr alone is required; it brings setuptools.
    "pbr.build": Sample(
        {
            **_MODULE,
            "pyproject.toml": build_system("pbr.build", "pbr>=6"),
            "setup.cfg": "[metadata]\nname = demo\n[files]\npackages = demo\n",
        },
        BROUGHT,
        git=True,
        same_sdist="members",
    ),
    "poetry-core with a build script that runs setup.py": Sample(
        {
            **_MODULE,
            "pyproject.toml": build_system("poetry.core.masonry.api", "poetry-core", "setuptools")
            + _PROJECT
            + '[[tool.poetry.include]]\npath = "setup.py"\nformat = "sdist"\n'
            + '[[tool.poetry.include]]\npath = "demo/generated.py"\nformat = "wheel"\n'
            + '[tool.poetry.build]\nscript = "make.py"\ngenerate-setup-file = false\n',
            "make.py": "import subprocess, sys\n\nsubprocess.run([sys.executable, 'setup.py', 'build'], check=True)\n"
            "with open('demo/generated.py', 'w') as file:\n    file.write('generated = True\\n')\n",
            "setup.py": "from setuptools import setup\n\nsetup(name='demo', version='1.0', packages=['demo'])\n",
        },
        BROUGHT,
    ),
    "flit_core": Sample(
        {**_MODULE, "pyproject.toml": build_system("flit_core.buildapi", "flit_core>=3.12") + _PROJECT},
        not_locked("flit_core.buildapi"),
    ),
    "hatchling": Sample(
        {**_MODULE, "pyproject.toml": build_system("hatchling.build", "hatchling") + _PROJECT},
        not_locked("hatchling.build"),
    ),
    "pdm-backend": Sample(
        {**_MODULE, "pyproject.toml": build_system("pdm.backend", "pdm-backend") + _PROJECT},
        not_locked("pdm.backend"),
        same_sdist="tar",
    ),
    # It asks for setuptools only when it is asked for its extra requirements, and only for a wheel.
    "pdm-backend that runs setuptools": Sample(
        {
            **_MODULE,
            "pyproject.toml": build_system("pdm.backend", "pdm-backend")
            + _PROJECT
            + '[tool.pdm.build]\nrun-setuptools = true\ncustom-hook = "hook.py"\n',
            "hook.py": "def pdm_build_update_setup_kwargs(context, kwargs):\n    kwargs['packages'] = ['demo']\n",
        },
        not_locked("pdm.backend"),
        of_the_wheel=(not_locked("pdm.backend"), BROUGHT),
        same_sdist="tar",
    ),
    "meson-python": Sample(
        {
            **_MODULE,
            "pyproject.toml": build_system("mesonpy", "meson-python", "ninja") + _PROJECT,
            "meson.build": "project('demo', version: '1.0')\n"
            "import('python').find_installation().install_sources('demo/__init__.py', subdir: 'demo')\n",
        },
        not_locked("mesonpy"),
        git=True,
    ),
    "scikit-build-core": Sample(
        {
            **_MODULE,
            "pyproject.toml": build_system("scikit_build_core.build", "scikit-build-core")
            + _PROJECT
            + "[tool.scikit-build]\nwheel.cmake = false\nwheel.packages = ['demo']\n",
        },
        not_locked("scikit_build_core.build"),
    ),
    "a pure in-tree backend": Sample(
        {
            **_MODULE,
            "pyproject.toml": build_system("own", path="backend"),
            "backend/own.py": """\
import io, tarfile, zipfile

METADATA = "Metadata-Version: 2.1\\nName: demo\\nVersion: 1.0\\n"
WHEEL = "Wheel-Version: 1.0\\nGenerator: own\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    files = {"demo/__init__.py": open("demo/__init__.py").read()}
    files |= {"demo-1.0.dist-info/METADATA": METADATA, "demo-1.0.dist-info/WHEEL": WHEEL}
    files["demo-1.0.dist-info/RECORD"] = "".join(f"{name},,\\n" for name in files)
    with zipfile.ZipFile(f"{wheel_directory}/demo-1.0-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return "demo-1.0-py3-none-any.whl"

def build_sdist(sdist_directory, config_settings=None):
    files = {name: open(name, "rb").read() for name in ("pyproject.toml", "backend/own.py", "demo/__init__.py")}
    files["PKG-INFO"] = METADATA.encode()
    with tarfile.open(f"{sdist_directory}/demo-1.0.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"demo-1.0/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return "demo-1.0.tar.gz"
""",
        },
        not_locked("own"),
        same_sdist="tar",
    ),
}


def make_tree(sample: Sample, tree: Path) -> None:
    if sample.example:
        built = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__", "*.so")
        shutil.copytree(EXAMPLES / sample.example, tree, ignore=built)
    for name, content in sample.files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    if sample.git:
        for command in ("init --quiet", "add .", "commit --quiet --message=First", "tag 1.0"):
            subprocess.run(["git", *command.split()], cwd=tree, check=True, env=os.environ | git_environ())
    for path in (tree, *tree.rglob("*")):
        # An sdist records when a file was last changed.
        os.utime(path, (int(_EPOCH), int(_EPOCH)))


def git_environ() -> dict[str, str]:
    environ = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for role in ("AUTHOR", "COMMITTER"):
        environ |= {
            f"GIT_{role}_NAME": "A",
            f"GIT_{role}_EMAIL": "a@example.org",
            f"GIT_{role}_DATE": f"{_EPOCH} +0000",
        }
    return environ


def build_both(sample: Sample, folder: Path, command: tuple[str, ...], **variables: str) -> tuple[dict[str, Path], str]:
    """Build an sdist and a wheel from it in a new tree; return them by their names, and standard error."""
    tree, extracted, out_dir = folder / "tree", folder / "extracted", folder / "out"
    make_tree(sample, tree)
    finished = subprocess.run(
        # The folder of the unpacked sdist is named, because a temporary one has another path in every build.
        [*command, "-v", "--installer=uv", f"--sdist-extract-dir={extracted}", f"--outdir={out_dir}", str(tree)],
        env=os.environ | {"SOURCE_DATE_EPOCH": _EPOCH, "COLUMNS": "1000"} | variables,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    kept = folder / "-".join([command[-1], *variables])
    out_dir.rename(kept)
    shutil.rmtree(tree)
    shutil.rmtree(extracted)
    return {path.name: path for path in kept.iterdir()}, finished.stderr


def members_of_wheel(path: Path) -> list[tuple[str, int, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(info.filename, info.external_attr, archive.read(info)) for info in archive.infolist()]


def members_of_sdist(path: Path) -> list[tuple[str, bytes, int, str, bytes | None]]:
    members = []
    with tarfile.open(path) as archive:
        for info in archive:
            file = archive.extractfile(info)
            members.append((info.name, info.type, info.mode, info.linkname, file.read() if file else None))
    return members


def assert_same(sample: Sample, built: Mapping[str, Path], expected: Mapping[str, Path]) -> None:
    assert built.keys() == expected.keys()
    for artifact, reference in expected.items():
        if artifact.endswith(".whl"):
            assert members_of_wheel(built[artifact]) == members_of_wheel(reference)
        else:
            assert members_of_sdist(built[artifact]) == members_of_sdist(reference)
            if sample.same_sdist == "tar":
                assert gzip.decompress(built[artifact].read_bytes()) == gzip.decompress(reference.read_bytes())
        if artifact.endswith(".whl") or sample.same_sdist == "file":
            assert built[artifact].read_bytes() == reference.read_bytes()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_build_gives_what_python_build_gives_and_locks_where_setuptools_is(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    expected, _ = build_both(sample, tmp_path, PYTHON_BUILD)
    built, said = build_both(sample, tmp_path, LOCKBUILD)

    assert sorted(path.rpartition(".")[2] for path in expected) == ["gz", "whl"]
    assert_same(sample, built, expected)

    # The backend imported anew for each hook.
    plain, said_plain = build_both(sample, tmp_path, LOCKBUILD, LOCKBUILD_PREIMPORT="0")
    assert_same(sample, plain, expected)

    unpacked = tmp_path / "extracted" / next(path for path in built if path.endswith(".tar.gz")).removesuffix(".tar.gz")
    for words in (said, said_plain):
        told = [line.strip() for line in words.splitlines() if "ocking " in line and ": " in line]
        assert told == [
            sample.says.replace("TREE", str(tmp_path / "tree")),
            *(each.replace("TREE", str(unpacked)) for each in sample.of_the_wheel or (sample.says,)),
        ]
