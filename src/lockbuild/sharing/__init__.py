"""A build that several processes ask for is done once: one builds, the others wait and take what it has built.

They meet in the folder of a key (`key.py`), which covers all that can change the result, under that folder's lock.
What a builder passes on, and to whom, is in `tickets.py`: a process that comes leaves a ticket, and the builder
delivers to the tickets that are there. So no clock is asked who was first, and nothing of a build outlives those who
waited for it, but the last wheel of an sdist, which is kept for ``--reuse``.

The interleavings. A waiter first leaves its ticket and then tries the lock: it finds the lock free, or the builder
that has it finds the ticket. A builder that is killed loses the lock when its hooks have ended (they inherit it); one
of the waiters takes it, has no delivery, and is the next builder. If the wheel had been kept before the kill, the
waiter finds another one than when it came, and takes that. A waiter that is killed no longer has its ticket locked,
and nobody delivers to it.
"""
