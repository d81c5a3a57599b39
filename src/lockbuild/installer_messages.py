"""What pip and uv say when they fail, as one sentence. No option of either gives the reason in a form for programs.

Imported only after a failure. What is not recognized gives the last line of the output.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Signs that an index or a file cannot be reached, as opposed to: that there is no such version.
_UNREACHABLE = re.compile(
    r"Could not fetch URL \S+: (?:connection error|There was a problem confirming the ssl certificate|5\d\d )"
    r"|connection broken by|NewConnectionError|NameResolutionError|ProxyError|Max retries exceeded"
    r"|error sending request|client error \(Connect\)|dns error|Network is unreachable"
)

# A line of pip's log about a page of an index.
_NOT_FETCHED = re.compile(r"Could not fetch URL (\S+): (.*) - skipping")

# The cause in a chain of exceptions that is printed on one line: the one that was raised first stands last.
_CAUSES = re.compile(
    r"\[Errno -?\d+\] ([\w ]+)|(certificate verify failed: [\w -]+)|(timed out)|(Cannot connect to proxy)"
)

# The beginning of a chain of errors, as versions of uv print it, and its further links.
_CAUSE_OF_UV = r"(cause:|Caused by:|╰─▶) "
_LINK_OF_UV = rf"(error:|\u00d7) |{_CAUSE_OF_UV}"

_ERROR_OF_PIP = r"(ERROR:|error:|\u00d7) "

# Where a requirement stands in the temporary file that pip is given.
_TEMPORARY_FILE = re.compile(r" \(from (-r |line \d+ of )\S+build-(requirements|constraints)-\S+( \(line \d+\))?\)")

# Lines that pip prints after the one with the reason.
_WITHOUT_REASON = (
    *("No matching distribution found", "ResolutionImpossible", "subprocess-exited", "metadata-generation"),
    "Exception:",
)

# How many of the versions that do not match are named: the newest ones.
_VERSIONS_NAMED = 3


def is_unreachable(output: str) -> bool:
    """Tell whether an installer has failed because it could not reach an index."""
    return _UNREACHABLE.search(output) is not None


def hides_unreachable(output: str) -> bool:
    """Tell whether pip may have failed because it could not reach an index, and names the index only in its log."""
    return "(from versions: none)" in output and _NOT_FETCHED.search(output) is None


def reason(output: str) -> str:
    """Return why an installer has failed, from all that it has printed and logged."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    found = (
        _unreachable_page(output)
        or _reason_of_uv(lines)
        or next(_reasons_of_pip(lines), "")
        or next(iter(lines[-1:]), "it printed nothing")
    )
    return _few_versions(_TEMPORARY_FILE.sub("", found).rstrip("."))


def _unreachable_page(output: str) -> str:
    for url, chain in _NOT_FETCHED.findall(output):
        if is_unreachable(f"Could not fetch URL {url}: {chain}"):
            return f"Could not fetch {url}: {_first_cause(chain)}"
    return ""


def _first_cause(chain: str) -> str:
    causes = ["".join(each).strip() for each in _CAUSES.findall(chain)]
    return causes[-1] if causes else chain


def _reason_of_uv(lines: list[str]) -> str:
    """Return the first and the last link of a chain such as ``error: A``, ``cause: B``, ``cause: C``."""
    links = [re.sub(_LINK_OF_UV, "", line, count=1) for line in lines if re.match(_LINK_OF_UV, line)]
    if not any(re.match(_CAUSE_OF_UV, line) for line in lines):
        return ""
    # "Request failed after 3 retries" says less than the link after it, which has the address.
    first = next((link for link in links if "://" in link), links[0])
    # What a backend has printed, for a requirement that uv builds, stands below the chain.
    return f"{first.rstrip(':')}: {next(_raised(lines), re.sub(r' .os error [0-9]+.$', '', links[-1]))}"


def _reasons_of_pip(lines: list[str]) -> Iterator[str]:
    """Yield what may be the reason, the best first."""
    errors = [re.sub(_ERROR_OF_PIP, "", line, count=1) for line in lines if re.match(_ERROR_OF_PIP, line)]
    # What a backend has printed, for a requirement that pip builds, is the reason of the reason.
    ends = [position for position, line in enumerate(lines) if line.endswith("[end of output]") and position]
    for error in reversed(errors):
        if error.startswith(_WITHOUT_REASON):
            continue
        if error.startswith("Cannot install "):
            yield f"{error.rstrip('.')}: {'; '.join(_conflict(lines))}"
        yield f"{error.rstrip('.')}: {lines[ends[0] - 1]}" if ends else error
    # pip itself may end with a traceback.
    yield from (*_raised(lines), *reversed(errors))


def _raised(lines: list[str]) -> Iterator[str]:
    """Yield the last lines of tracebacks, the last one first."""
    return (line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception|Warning): ", line))


def _conflict(lines: list[str]) -> Iterator[str]:
    if "The conflict is caused by:" in lines:
        for line in lines[lines.index("The conflict is caused by:") + 1 :]:
            if not re.match(r"The user requested |\S+ \S+ depends on ", line):
                return
            yield line


def _few_versions(text: str) -> str:
    """Shorten pip's list of the versions that do not match."""

    def shorten(match: re.Match[str]) -> str:
        versions = match[1].split(", ")
        return f"(from versions: {', '.join(['…', *versions[-_VERSIONS_NAMED:]] if len(versions) > 4 else versions)})"

    return re.sub(r"\(from versions: ([^)]*)\)", shorten, text)
