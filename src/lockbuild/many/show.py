"""What a terminal shows of a run while it lasts: a line for each build that runs, and a bar for all of them."""

from __future__ import annotations

import contextlib
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lockbuild.errors import shown
from lockbuild.live import can_be_live
from lockbuild.many.run import RunReporter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress, TaskID

    from lockbuild.many.plan import PlannedBuild


@contextlib.contextmanager
def shown_run(total: int) -> Iterator[RunReporter]:
    """Show a run on a terminal, if the library rich is installed; yield what has to hear of it."""
    if not can_be_live(sys.stderr) or find_spec("rich") is None:
        yield RunReporter()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bars(progress, total)


class _Bars(RunReporter):
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._whole = progress.add_task("Building", total=total)
        self._bars: dict[PlannedBuild, TaskID] = {}

    def started(self, build: PlannedBuild) -> None:
        self._bars[build] = self._progress.add_task(shown(build.label), total=None)

    def activity(self, build: PlannedBuild, words: str) -> None:
        self._progress.update(self._bars[build], description=f"{shown(build.label)}: {words}")

    def ended(self, build: PlannedBuild, *, is_over: bool) -> None:
        self._progress.remove_task(self._bars.pop(build))
        if is_over:
            self._progress.advance(self._whole)
