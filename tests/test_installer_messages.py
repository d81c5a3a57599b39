"""The last line of a build whose installer has failed: its own reason in one sentence, and what asked for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lockbuild.installer_messages import reason
from wheelhouse import ProbeTree, make_probe_tree

# Where nothing listens.
_NOWHERE = "http://127.0.0.1:9/simple"

_INDEX = {
    **dict.fromkeys(("PIP_NO_INDEX", "PIP_FIND_LINKS", "UV_NO_INDEX", "UV_FIND_LINKS"), None),
    "PIP_INDEX_URL": _NOWHERE,
    "UV_INDEX_URL": _NOWHERE,
    "UV_HTTP_RETRIES": "0",
}

both_installers = pytest.mark.parametrize("installer", ["pip", "uv"])


@pytest.fixture
def tree(tmp_path: Path) -> ProbeTree:
    return make_probe_tree(tmp_path / "probe")


def last_line(tree: ProbeTree, *options: str, **start: object) -> str:
    return tree.build(*options, status=1, **start).splitlines()[-1]


@both_installers
@pytest.mark.parametrize("options", [(), ("--no-cache",)], ids=["kept", "fresh"])
@pytest.mark.slow
def test_a_requirement_that_is_nowhere_is_named_with_what_asked_for_it(
    tree: ProbeTree, installer: str, options: tuple[str, ...]
) -> None:
    tree.wheelhouse.add_wheel("other-probe", "1.5")
    tree.require("other-probe >= 2")
    error = tree.build("--installer", installer, *options, status=1)
    last = error.splitlines()[-1]
    assert last.startswith(f"ERROR {installer} could not install build-system.requires: ")
    assert re.search("other-probe *>= *2", last)
    assert re.search(r"from versions: 1\.5|only other-probe==1\.5 is available", last)
    # The command is for those who ask for it.
    assert "\n> " not in error
    assert "\n> " in tree.build("--installer", installer, *options, "-v", status=1)


@pytest.mark.slow
def test_a_conflict_names_both_sides(tree: ProbeTree, tmp_path: Path) -> None:
    tree.wheelhouse.add_wheel("other", "1.5")
    tree.require("other")
    (tmp_path / "constraints.txt").write_text("other < 1\n")
    line = last_line(tree, "--dependency-constraints-txt", str(tmp_path / "constraints.txt"))
    assert "Cannot install other because these package versions have conflicting dependencies: " in line
    assert line.endswith("The user requested other; The user requested (constraint) other<1")


@both_installers
@pytest.mark.slow
def test_an_index_that_cannot_be_reached_is_named_once_with_the_reason_at_the_end(
    tree: ProbeTree, installer: str
) -> None:
    # Without a retry, pip tells that only its log.
    line = last_line(tree, "--installer", installer, env=_INDEX | {"PIP_RETRIES": "0"})
    assert re.fullmatch(rf"ERROR {installer} could not install .*{_NOWHERE}/[a-z-]+/: Connection refused", line)
    assert line.count("refused") == 1


@both_installers
@pytest.mark.slow
def test_a_requirement_that_cannot_be_built_ends_in_the_error_of_its_backend(tree: ProbeTree, installer: str) -> None:
    tree.wheelhouse.add_sdist("broken", runs=["false"])
    tree.require("broken")
    line = last_line(tree, "--installer", installer)
    assert line.endswith("subprocess.CalledProcessError: Command '['false']' returned non-zero exit status 1")


@pytest.mark.slow
def test_a_requirement_that_the_backend_asks_for_is_said_to_be_the_hooks(tree: ProbeTree) -> None:
    line = last_line(tree, env={"PROBE_REQUIRES": '["nowhere-to-be-found"]'})
    assert line.startswith("ERROR pip could not install what get_requires_for_build_wheel returns: Could not find a ")


@pytest.mark.slow
def test_what_is_no_requirement_is_told_without_a_temporary_file(tree: ProbeTree) -> None:
    tree.require("a b c")
    assert last_line(tree) == "ERROR pip could not install build-system.requires: Invalid requirement: 'a b c'"


_OF_OTHER_VERSIONS = {
    "  \u00d7 No solution found when resolving dependencies:\n  ╰─▶ Because x was not found in the registry, we can": (
        "No solution found when resolving dependencies: Because x was not found in the registry"
    ),
    "error: Request failed after 3 retries\n  Caused by: Failed to fetch: `https://host/simple/x/`\n"
    "  Caused by: dns error\n  Caused by: Name or service not known (os error 2)\n": (
        "Failed to fetch: `https://host/simple/x/`: Name or service not known"
    ),
    "WARNING: Retrying\nERROR: Failed to build 'x' when getting requirements to build wheel\n": (
        "Failed to build 'x' when getting requirements to build wheel"
    ),
    "Could not fetch URL https://host/x/: There was a problem confirming the ssl certificate: HTTPSConnectionPool("
    "host='host', port=443): Max retries exceeded with url: /x/ (Caused by SSLError(SSLCertVerificationError(1, '[SSL: "
    "CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1006)'))) - skipping\n": (
        "Could not fetch https://host/x/: certificate verify failed: self-signed certificate"
    ),
    "Could not fetch URL https://host/x/: 404 Client Error: Not Found for url: https://host/x/ - skipping\n"
    "ERROR: Could not find a version that satisfies the requirement x (from versions: none)\n"
    "ERROR: No matching distribution found for x\n": (
        "Could not find a version that satisfies the requirement x (from versions: none)"
    ),
    "ERROR: Could not find a version that satisfies the requirement x>9 (from versions: 1, 2, 3, 4, 5, 6)\n": (
        "Could not find a version that satisfies the requirement x>9 (from versions: …, 4, 5, 6)"
    ),
    "ERROR: Exception:\nTraceback (most recent call last):\n  File x\nDeprecationWarning: old\n": (
        "DeprecationWarning: old"
    ),
    "something else\nwent wrong.\n": "went wrong",
    "": "it printed nothing",
}


@pytest.mark.parametrize("output", _OF_OTHER_VERSIONS)
def test_the_reason_is_found_in_what_other_versions_print(output: str) -> None:
    assert reason(output).startswith(_OF_OTHER_VERSIONS[output])
