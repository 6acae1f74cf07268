"""The next one is made while the one before is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Generator[Made, None, None]:
    """`make(item)` of each, in order: that of the next is made on a thread of its own meanwhile.

    To be closed: until then the thread may be at work. What `make` raises is raised where its item is due.
    """
    # Nothing here refers to what is in use: it goes when its user lets go of it.
    coming: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        for item in items:
            coming.append(pool.submit(make, item))
            if len(coming) > 1:
                yield _due(coming.popleft())
        while coming:
            yield _due(coming.popleft())


def _due(made: Future[Made]) -> Made:
    """What the thread has made; waits where it has not yet."""
    return made.result()
