import threading

import pytest

from vog_hf.runtime.prefetch import prefetch


def test_the_next_item_is_made_while_one_is_used():
    """Order is kept, and only one item is prepared while another is in use."""
    made, one_is_made = [], threading.Event()

    def items():
        for i in range(4):
            made.append(i)
            if i == 1:
                one_is_made.set()
            yield i

    coming = prefetch(items())
    assert next(coming) == 0
    assert one_is_made.wait(timeout=10)
    assert made == [0, 1]
    assert list(coming) == [1, 2, 3]
    assert list(prefetch([])) == []


def test_an_error_comes_where_its_item_would():
    """An error is raised after the items before it, and the thread ends."""

    def items():
        yield "a"
        raise ValueError("row 7")

    coming = prefetch(items())
    assert next(coming) == "a"
    with pytest.raises(ValueError, match="row 7"):
        next(coming)
    assert not any(thread.name.startswith("vog-prefetch") for thread in threading.enumerate())


def test_nothing_goes_on_after_the_last_use():
    """Stopping early leaves no thread behind."""
    coming = prefetch(range(100))
    next(coming)
    coming.close()
    assert not any(thread.name.startswith("vog-prefetch") for thread in threading.enumerate())
