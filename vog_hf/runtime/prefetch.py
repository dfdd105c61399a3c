"""ahead: the next item is made in a thread while the last one is used."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items in the same order; an error while one is made is raised where it would have been used.

    Example:
        >>> list(ahead("abc"))
        ['a', 'b', 'c']
    """
    making = iter(items)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="vog-ahead") as thread:
        coming = thread.submit(_next, making)
        while item := coming.result():
            coming = thread.submit(_next, making)
            yield item[0]


def _next(making: Iterator[T]) -> tuple[T] | None:
    for item in making:
        return (item,)
    return None
