"""Shared builds: of several processes that ask for one build, one builds; the others wait and take its outcome.

They meet in the folder of a key (`key.py`), which covers everything that can change the result. A process that asks
first notes which builds it finds there. Then it takes the folder's lock, looks at the outcomes again, and either takes
one or builds (`build.py`). A successful build keeps its outcome (`outcomes.py`) before it frees the lock. A failed one
keeps nothing, so the next process that gets the lock builds.

Names, not clocks, decide which outcome is recent enough. Each build gets a folder with a random name when it begins,
under the lock and before it reads anything of its source. The folder keeps that name. A file that is renamed into it
last makes it complete.

- **A tree** may be edited at any time. A process takes the outcome of a build whose folder did not exist when it
  asked: that build began afterwards, and so has seen each edit that was made before.
- **An sdist** cannot change. A process takes an outcome that was not complete when it asked: that build was running, or
  began afterwards. With ``--reuse`` it takes any outcome.

The interleavings of a builder A and a process B that asks for the same:

- B asks before A begins: A's folder does not exist. B may take A's outcome, whatever its source.
- B asks after A has begun and before A's outcome is complete: B may take it for an sdist, but not for a tree.
- B asks after A's outcome is complete: B builds again, except for an sdist with ``--reuse``.
- A is killed while it builds: A's hooks inherit the lock, which is free when they have ended. The next process finds a
  folder that is not complete, and builds. When that build is complete, it removes all others.
- A is killed after its outcome is complete: B takes it, although A may not have published it.
- The cache is removed while A builds: B, which asks afterwards, does not see A's folder, and would take A's outcome for
  one of a later build. So A does not make its folder again, and its outcome is not kept.
"""
