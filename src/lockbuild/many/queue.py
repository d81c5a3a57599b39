"""The order of builds that need each other: a queue of those that are ready, and the circles among the others."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadyQueue(Generic[T]):
    """
    Things that wait for each other. What a thing needs may become known only after it was taken.

    `graphlib.TopologicalSorter` takes no new things once it gives out the first.
    """

    def __init__(self) -> None:
        self._needs: dict[T, set[T]] = {}
        """What each thing in the queue needs that is not done. The order is that of `add`."""
        self._taken: set[T] = set()
        self._failed: set[T] = set()
        self._done: set[T] = set()

    def __bool__(self) -> bool:
        """Tell whether there are things that are neither done nor failed."""
        return bool(self._needs)

    def __contains__(self, thing: T) -> bool:
        """Tell whether a thing was ever added."""
        return thing in self._needs or thing in self._done or thing in self._failed

    def add(self, thing: T) -> None:
        """Add a thing at the end."""
        self._needs[thing] = set()

    def need(self, thing: T, needed: T) -> None:
        """Have a thing wait until another one, which was added as well, is done. One that was taken is put back."""
        self._taken.discard(thing)
        if needed not in self._done:
            self._needs[thing].add(needed)

    def take(self) -> T | None:
        """Take the first thing that needs nothing any more; ``None`` if there is none."""
        for thing, needs in self._needs.items():
            if not needs and thing not in self._taken:
                self._taken.add(thing)
                return thing
        return None

    def done(self, thing: T) -> None:
        """Note that a thing is done, for those that need it."""
        del self._needs[thing]
        self._done.add(thing)
        for needs in self._needs.values():
            needs.discard(thing)

    def failed(self, thing: T) -> None:
        """Note that a thing will never be done."""
        del self._needs[thing]
        self._failed.add(thing)

    def hopeless(self) -> tuple[T, T] | None:
        """Return a thing that needs a failed one, and the failed one."""
        for thing, needs in self._needs.items():
            for needed in needs & self._failed:
                return thing, needed
        return None

    def circle(self) -> list[T] | None:
        """Return things each of which needs the next one, and the last one the first; ``None`` if there are none."""
        try:
            TopologicalSorter(self._needs).prepare()
        except CycleError as error:
            # It lists each thing before one that needs it, and the first one again at the end.
            return list(reversed(error.args[1][1:]))
        return None
