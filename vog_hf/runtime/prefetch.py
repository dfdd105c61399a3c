"""prefetch: prepare the next item in a thread while the current one is used."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """The same items in the same order; an error while preparing an item is raised when the item is due.

    Example:
        >>> list(prefetch("abc"))
        ['a', 'b', 'c']
    """
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="vog-prefetch") as thread:
        future = thread.submit(_next, iterator)
        while item := future.result():
            future = thread.submit(_next, iterator)
            yield item[0]


def _next(iterator: Iterator[T]) -> tuple[T] | None:
    for item in iterator:
        return (item,)
    return None
