"""The next one is made while the one before is used."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Generator[Made, None, None]:
    """`make(item)` of each, in order: that of the next is made on a thread of its own meanwhile.

    To be closed: until then the thread may be at work. What `make` raises is raised where its item is due.
    """
    coming: Future[Made] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        for item in items:
            following = pool.submit(make, item)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()
