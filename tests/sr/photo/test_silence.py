"""Warnings are silenced while photographs are read, and as before afterwards."""

from __future__ import annotations

import threading
import warnings

import pytest

from elasticnet.sr.photo.silence import without_warnings


def test_warnings_come_back_after_blocks_that_overlap() -> None:
    """The first block ends inside the second: with `catch_warnings` they stayed silenced."""
    first_is_inside, second_is_inside, first_is_out = (threading.Event() for _ in range(3))

    def first() -> None:
        with without_warnings():
            first_is_inside.set()
            second_is_inside.wait()
        first_is_out.set()

    def second() -> None:
        first_is_inside.wait()
        with without_warnings():
            second_is_inside.set()
            first_is_out.wait()
            warnings.warn("silenced", stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=each) for each in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(UserWarning, match="heard again"):
            warnings.warn("heard again", stacklevel=1)


def test_an_error_inside_puts_the_filters_back() -> None:
    before = list(warnings.filters)
    with pytest.raises(ValueError, match="inside"), without_warnings():
        raise ValueError("inside")
    assert warnings.filters == before
