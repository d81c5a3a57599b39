"""Kept environments are filled with what pip resolves and fetches, and are those that pip itself would make."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from importlib.metadata import distribution, version
from pathlib import Path
from tempfile import gettempdir

import pytest

from installed import assert_equal
from lockbuild.environments.fresh import FreshEnvironment
from lockbuild.environments.request import EnvironmentRequest
from lockbuild.events import Reporter
from lockbuild.request import BuildRequest
from wheelhouse import ProbeTree, Wheelhouse, processes_naming, served, site_packages
from witness import PATIENCE

# Each of them takes a second or more, and there are many.
pytestmark = pytest.mark.slow


def add_features(house: Wheelhouse) -> None:
    """Add wheels with everything that a wheel can have."""
    data = "featured-1.0.data"
    house.add_wheel(
        "featured",
        files={
            "featured/__init__.py": "def main():\n    print('main')\n",
            "featured/data with blank.txt": "",
            "featured-1.0.dist-info/entry_points.txt": "[console_scripts]\nfeatured = featured:main\n"
            "[gui_scripts]\nfeatured-gui = featured:main\n[other]\nx = y\n",
            "featured-1.0.dist-info/licenses/LICENSE": "free\n",
            f"{data}/scripts/featured-script": "#!python -E\nprint(1)\n",
            f"{data}/scripts/featured-shell": "#!/bin/sh\necho 1\n",
            f"{data}/scripts/featured": "#!python\n# as setuptools once made for the entry point\n",
            f"{data}/data/share/featured/file.txt": "data\n",
            f"{data}/headers/featured.h": "#define FEATURED\n",
            f"{data}/purelib/featured_pure.py": "",
            f"{data}/platlib/featured_plat.py": "",
        },
        requires=["Helper.Of.Featured>=1"],
    )
    house.add_wheel("helper-of-featured", files={"helper.py": ""})


@pytest.mark.slow
def test_a_kept_environment_has_what_pip_would_have_installed(tree: ProbeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    add_features(tree.wheelhouse)
    tree.wheelhouse.add_sdist("from-sdist")
    requirements = ["probe-backend", "featured", "from-sdist", 'absent; python_version < "3"']
    tree.require(*requirements[1:3])
    tree.build()
    [kept] = tree.environments()
    for name, value in tree.environ().items():
        monkeypatch.setenv(name, value)
    with FreshEnvironment(
        EnvironmentRequest(requirements, "", BuildRequest("."), 0.0, (), Reporter(), gettempdir)
    ) as fresh:
        theirs = Path(fresh.python_executable).parents[1]
        assert_equal(kept, theirs)
    run = [kept / "bin" / "featured"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "main\n"


def errors_of_pip(message: str) -> str:
    """Return what pip complains of, without line breaks and what follows it."""
    lines = [line.lstrip("< ") for line in message.splitlines() if not line.startswith((">", "ERROR"))]
    told = re.sub(r"\s", "", " ".join(lines).partition("ERROR:")[2])
    # Requirements are handed over in temporary files.
    return re.sub(r"\(from-r.+?\.txt", "(from-rFILE", told)


@pytest.mark.slow
@pytest.mark.parametrize("digest", ["right", "wrong"])
def test_hashes_in_the_constraints_mean_what_they_mean_to_pip_install(tree: ProbeTree, digest: str) -> None:
    """Some versions of pip take them from there; others say that they are missing where the requirement is."""
    wheel = tree.wheelhouse.folder / "probe_backend-1.0-py3-none-any.whl"
    right = hashlib.sha256(wheel.read_bytes()).hexdigest()
    constraints = tree.control / "constraints.txt"
    constraints.write_text(f"probe-backend==1.0 --hash=sha256:{right if digest == 'right' else '0' * 64}\n")
    # pip wants the pin where the requirement is, too.
    project = tree.path / "pyproject.toml"
    project.write_text(project.read_text().replace("'probe-backend'", "'probe-backend==1.0'"))
    statuses, errors = [], []
    for option in ("--no-cache", "--refresh"):
        build = tree.start(option, "--dependency-constraints-txt", str(constraints))
        errors.append(errors_of_pip(build.communicate()[1]))
        statuses.append(build.returncode)
    assert statuses[0] == statuses[1]
    assert errors[0] == errors[1]
    if digest == "wrong":
        assert statuses[1] == 1
        assert "hash" in errors[1].lower()
        assert tree.environments() == []


@pytest.mark.slow
def test_a_hash_that_the_index_gives_is_enforced(tree: ProbeTree) -> None:
    with served(tree.wheelhouse) as index:
        env = {"PIP_NO_INDEX": None, "PIP_FIND_LINKS": None, "PIP_INDEX_URL": index.url}
        index.fragment = f"#sha256={'0' * 64}"
        assert "THESEPACKAGESDONOTMATCHTHEHASHES" in errors_of_pip(tree.build(env=env, status=1))


_has_cooldown = pytest.mark.skipif(
    int(version("pip").partition(".")[0]) < 26, reason="this pip has no uploaded-prior-to"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("installer", "variable", "setting"),
    [
        pytest.param("pip", "PIP_UPLOADED_PRIOR_TO", "[install]\nuploaded-prior-to = {}\n", marks=_has_cooldown),
        ("uv", "UV_EXCLUDE_NEWER", 'exclude-newer = "{}"\n'),
    ],
)
def test_a_cooldown_holds_and_another_one_is_another_environment(
    tree: ProbeTree, installer: str, variable: str, setting: str
) -> None:
    tree.wheelhouse.add_backend("2.0")
    old, new = "2026-01-01T00:00:00Z", "2026-03-01T00:00:00Z"
    configuration = tree.control / "configuration"
    with served(tree.wheelhouse) as index:
        index.uploaded = {
            "probe_backend-1.0-py3-none-any.whl": old,
            "probe_backend-2.0-py3-none-any.whl": new,
        }
        env: dict[str, str | None] = dict.fromkeys(("PIP_NO_INDEX", "PIP_FIND_LINKS", "UV_NO_INDEX"))
        env |= {"UV_FIND_LINKS": None, "UV_NO_CONFIG": None, "PIP_INDEX_URL": index.url, "UV_INDEX_URL": index.url}
        configured: dict[str, str | None] = {
            "PIP_CONFIG_FILE": str(configuration),
            "UV_CONFIG_FILE": str(configuration),
        }
        found = []
        for moment, in_file in (("2026-02-01", False), ("2026-04-01", False), ("2026-02-02", True), (None, False)):
            configuration.write_text(setting.format(moment) if in_file else "")
            cooldown = {variable: None if in_file else moment}
            tree.build("--installer", installer, env={**env, **cooldown, **configured})
            found += tree.hooks()[-1]["distributions"]
    assert found == [f"probe-backend {version}" for version in ("1.0", "2.0", "1.0", "2.0")]
    assert len({*tree.prefixes()}) == 4


@pytest.mark.slow
def test_what_a_configuration_file_sets_for_pip_install_holds(tree: ProbeTree) -> None:
    """``pip wheel``, which is what runs, would not read this section."""
    tree.wheelhouse.add_backend("2.0rc1")
    configuration = tree.control / "pip.conf"
    configuration.write_text(
        f"[global]\nno-index = false\n[install]\nno_index = true\nfind-links =\n    {tree.control}\n"
        f"    {tree.wheelhouse.folder}\n--pre = yes\n"
    )
    env = {"PIP_CONFIG_FILE": str(configuration), "PIP_NO_INDEX": None, "PIP_FIND_LINKS": None}
    tree.build(env=env)
    assert tree.hooks()[-1]["distributions"] == ["probe-backend 2.0rc1"]
    # A variable overrides it, as it does for pip.
    tree.build(env={**env, "PIP_PRE": "0"})
    assert tree.hooks()[-1]["distributions"] == ["probe-backend 1.0"]


@pytest.mark.slow
def test_an_sdist_that_two_environments_need_is_built_once(tree: ProbeTree) -> None:
    tree.wheelhouse.add_sdist("slow")
    tree.wheelhouse.add_wheel("other")
    for requirements in (["slow"], ["slow", "other"]):
        tree.require(*requirements)
        tree.build()
    assert len(tree.environments()) == 2
    assert tree.sdist_log.read_text().count("enter") == 1


@pytest.mark.slow
def test_a_requirement_of_an_sdist_that_is_an_sdist_itself_is_built_for_it(tree: ProbeTree) -> None:
    tree.wheelhouse.add_sdist("inner")
    tree.wheelhouse.add_sdist("outer", requires=["inner"])
    tree.require("outer")
    tree.build()
    assert [line.split()[::2] for line in tree.sdist_log.read_text().splitlines()][:3] == [
        ["enter", "inner"],
        ["leave", "inner"],
        ["enter", "outer"],
    ]
    # It is not in the environment itself.
    assert tree.hooks()[0]["distributions"] == ["outer 1.0", "probe-backend 1.0"]


@pytest.mark.slow
def test_sdists_that_need_each_other_are_an_error_and_no_hang(tree: ProbeTree) -> None:
    """Two builds at once, one of which begins with the one and one with the other."""
    tree.wheelhouse.add_sdist("one", requires=["two"])
    tree.wheelhouse.add_sdist("two", requires=["one"])
    projects = [tree.require(name, path=tree.path.with_name(name)) for name in ("one", "two")]
    builds = [tree.start("--lock-timeout", "30", source=project) for project in projects]
    for build in builds:
        _, error = build.communicate(timeout=PATIENCE)
        assert build.returncode == 1
        assert "is already being built: " in " ".join(error.replace("<", "").split())
    assert not tree.sdist_log.exists()
    assert tree.environments() == tree.debris() == []
    assert not processes_naming(tree.store)


@pytest.mark.slow
def test_a_second_environment_links_the_files_of_the_first(tree: ProbeTree) -> None:
    tree.build()
    tree.wheelhouse.add_wheel("other")
    tree.require("other")
    tree.build("--link-mode", "hardlink")
    tree.require("other", "other>=1")
    tree.wheelhouse.add_wheel("third")
    tree.require("third")
    tree.build(env={"LOCKBUILD_LINK_MODE": "copy"})
    files = [site_packages(each) / "probe_backend_late.py" for each in tree.environments()]
    shared = sorted(file.stat().st_ino for file in files)
    assert len(set(shared)) == 2
    assert sorted(file.stat().st_nlink for file in files) == [1, 3, 3]


def test_a_link_mode_that_nobody_knows_is_an_error(tree: ProbeTree) -> None:
    error = tree.build(env={"LOCKBUILD_LINK_MODE": "magic"}, status=1)
    assert error == "ERROR LOCKBUILD_LINK_MODE must be one of auto, hardlink, copy, not 'magic'\n"


@pytest.mark.slow
def test_a_damaged_wheel_is_told_of_in_one_line(tree: ProbeTree) -> None:
    wheel = tree.wheelhouse.add_wheel("damaged", files={"damaged.py": "VALUE = 1\n"})
    wheel.write_bytes(wheel.read_bytes().replace(b"VALUE = 1", b"VALUE = 2"))
    tree.require("damaged")
    error = tree.build(status=1)
    assert "Traceback" not in error
    assert re.search(r"^ERROR The wheel \S+damaged\S+ cannot be installed: ", error, re.MULTILINE)
    assert tree.environments() == tree.debris() == []


def disturbed_pip(tree: ProbeTree, times: int) -> str:
    """Make a pip that fails so many times as an old one does beside another; return a PYTHONPATH that leads there."""
    runner = distribution("pip").locate_file("pip/__pip-runner__.py")
    folder = tree.control / "disturbed"
    (folder / "pip").mkdir(parents=True)
    (folder / "pip-99.dist-info").mkdir()
    (folder / "pip-99.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pip\nVersion: 99\n")
    # By this a pip is told from one of which a Linux distribution has taken parts away.
    (folder / "pip-99.dist-info" / "RECORD").write_text("pip/_vendor/__init__.py,,\n")
    (folder / "pip" / "__pip-runner__.py").write_text(
        f"""
import os, sys
with open({str(tree.control / "runs")!r}, "a+") as file:
    print("run", file=file, flush=True)
    file.seek(0)
    if len(file.readlines()) <= {times}:
        sys.exit("origin = DirectUrl.from_json(origin_path.read_text())\\nJSONDecodeError: Expecting value")
os.execv(sys.executable, [sys.executable, {str(runner)!r}, *sys.argv[1:]])
"""
    )
    return str(folder)


@pytest.mark.parametrize("options", [(), ("-v",)])
def test_an_old_pip_that_was_disturbed_by_another_is_run_again(tree: ProbeTree, options: tuple[str, ...]) -> None:
    error = tree.build(*options, env={"PYTHONPATH": disturbed_pip(tree, 2)})
    assert (tree.control / "runs").read_text() == "run\n" * 3
    assert ("JSONDecodeError" in error) == bool(options)


def test_a_pip_that_fails_so_again_and_again_is_believed(tree: ProbeTree) -> None:
    error = tree.build(env={"PYTHONPATH": disturbed_pip(tree, 100)}, status=1)
    assert 1 < len((tree.control / "runs").read_text().splitlines()) < 10
    # Once in what the last pip has said, and once as the reason.
    assert error.count("JSONDecodeError") == 2


def test_looking_for_pip_leaves_the_modules_of_setuptools_alone() -> None:
    script = (
        "import distutils.core, sys; from lockbuild.pip_library import _pip_runner; before = {**sys.modules}; "
        "print(bool(_pip_runner()), before.keys() - sys.modules.keys())"
    )
    # setuptools warns of its own replacement of distutils.
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True set()\n"
