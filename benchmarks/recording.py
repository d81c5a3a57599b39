"""Record two builds at once in one setuptools tree, by ``python -m build`` and by lockbuild, as an animated SVG.

    .venv/bin/python benchmarks/recording.py [docs/recording.svg]

The commands run in bash, in a tree of 1,500 modules in a temporary folder. The interpreter that runs this script must
have lockbuild, which requires ``build``. lockbuild's cache holds the build environment already, as it does after the
first build of a day.

The picture has what the commands printed, when they printed it. Two things differ: the temporary folder and the
interpreter's folder are written as ``~``, and a pause is cut to two seconds. Both builds of ``python -m build`` can
succeed by chance. The script then says so and tries again, five times at most.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from textwrap import TextWrapper

ROOT = Path(__file__).resolve().parent.parent
TWICE = 'twice() { for n in 1 2; do ("$@" -o $n >$n.log 2>&1; echo "$n: exit status $?") & done; wait; }'
PYPROJECT = """\
[build-system]
requires = ["setuptools >=77"]
build-backend = "setuptools.build_meta"

[project]
name = "demo"
version = "1.0"
"""
PACKAGES, MODULES = 60, 25
ATTEMPTS = 5

COLUMNS, LONGEST_PAUSE, TYPING = 101, 2.0, 0.9
FONT_SIZE, CHARACTER, LINE, MARGIN, TITLE = 13, 7.83, 19, 16, 34
STYLE = """\
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #c9d1d9;
  white-space: pre }
.command { fill: #ffffff } .prompt { fill: #7ee787 } .bad { fill: #ff7b72 } .good { fill: #7ee787 }
.title { fill: #8b949e; text-anchor: middle }
@keyframes appear { from { opacity: 0 } to { opacity: 1 } }
.line { animation: appear 0.15s both }
@media (prefers-reduced-motion: reduce) { .line { animation: none } }
"""


@dataclass(frozen=True)
class Line:
    """A line of the terminal, and how many seconds after the one before it appeared."""

    text: str
    pause: float
    is_command: bool = False


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "recording.svg"
    with tempfile.TemporaryDirectory(prefix="lockbuild-recording-") as folder:
        lines = record(Path(folder).resolve())
    target.write_text(draw(lines), encoding="utf-8")


def record(folder: Path) -> list[Line]:
    tree = make_tree(folder / "demo")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("LOCKBUILD_", "PYTHONDONT"))}
    environ["LOCKBUILD_CACHE_DIR"] = str(folder / "cache")
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"

    def run(command: str) -> list[Line]:
        return [Line(command, TYPING, is_command=True), *output_of(command, tree, environ)]

    run("lockbuild --wheel -o ../first >../first.log 2>&1")
    clean = "rm -r build src/*.egg-info [12]*"
    for attempt in range(1, ATTEMPTS + 1):
        run("rm -rf build src/*.egg-info [12]*")
        theirs = [*run("twice python -m build --wheel"), *run("grep error: *.log")]
        if any(line.text.endswith("exit status 1") for line in theirs):
            break
        print(f"attempt {attempt}: no build of python -m build failed", file=sys.stderr)
    else:
        sys.exit("python -m build was lucky each time; nothing is recorded")
    lines = [
        Line(TWICE, TYPING, is_command=True),
        *theirs,
        *run(clean),
        *run("twice lockbuild --wheel"),
        *run("grep 'the lock' *.log"),
        *run("ls */*.whl"),
    ]
    check(tree)
    return [Line(without_paths(line.text, folder), line.pause, line.is_command) for line in lines]


def make_tree(path: Path) -> Path:
    for package in range(PACKAGES):
        parent = path / "src" / "demo" / f"part{package}"
        parent.mkdir(parents=True)
        for module in range(MODULES):
            (parent / f"module{module}.py").write_text(f"value = {module}\n")
    (path / "pyproject.toml").write_text(PYPROJECT)
    return path


def output_of(command: str, tree: Path, environ: dict[str, str]) -> Iterator[Line]:
    process = subprocess.Popen(
        ["bash", "-c", f"{TWICE}\n{command}"],
        cwd=tree,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    last = time.monotonic()
    for text in process.stdout:
        now = time.monotonic()
        yield Line(text.rstrip("\n"), min(now - last, LONGEST_PAUSE))
        last = now
    process.wait()


def check(tree: Path) -> None:
    """End the program unless both wheels of lockbuild are complete."""
    for number in ("1", "2"):
        [wheel] = (tree / number).glob("*.whl")
        modules = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
        if len(modules) != PACKAGES * MODULES:
            sys.exit(f"{wheel} has {len(modules)} modules")


def without_paths(text: str, folder: Path) -> str:
    text = text.replace(f"{Path(sys.executable).parent}/", "~/venv/bin/").replace(str(folder), "~")
    for path in (str(Path.home()), str(ROOT), tempfile.gettempdir()):
        if path != "/" and f"{path}/" in text:
            sys.exit(f"a path of this machine is in the recording: {text}")
    return text


def draw(lines: Sequence[Line]) -> str:
    wrapper = TextWrapper(COLUMNS, break_on_hyphens=False, drop_whitespace=False)
    rows: list[str] = []
    moment = 0.0
    for line in lines:
        moment += line.pause
        prompt = "$ " if line.is_command else ""
        for number, part in enumerate(wrapper.wrap(prompt + line.text) or [""]):
            y = TITLE + MARGIN + FONT_SIZE + len(rows) * LINE
            text = escape(part, quote=False)
            if number == 0 and line.is_command:
                text = f'<tspan class="prompt">$</tspan>{text[1:]}'
            kind = f"line {kind_of(line)}".rstrip()
            rows.append(
                f'<text class="{kind}" style="animation-delay:{moment:.2f}s" x="{MARGIN}" y="{y}">{text}</text>'
            )
    width = round(2 * MARGIN + COLUMNS * CHARACTER)
    height = TITLE + 2 * MARGIN + len(rows) * LINE
    size = f'width="{width}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {width} {height}" xml:space="preserve">',
            "<title>Two builds at once in one source tree</title>",
            f"<style>{STYLE}</style>",
            f'<rect {size} rx="8" fill="#0d1117"/>',
            f'<text class="title" x="{width // 2}" y="22">two builds at once, in one source tree</text>',
            *rows,
            "</svg>\n",
        ]
    )


def kind_of(line: Line) -> str:
    if line.is_command:
        return "command"
    if line.text.endswith("exit status 0"):
        return "good"
    return "bad" if "exit status" in line.text or "error:" in line.text else ""


if __name__ == "__main__":
    main()
