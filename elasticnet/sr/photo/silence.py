"""Silence Pillow's warnings while photographs are read, in any number of threads."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager

_lock = threading.Lock()
_inside: list[warnings.catch_warnings] = []  # the block that has changed the filters, if any
_num_inside = 0  # blocks that are running


@contextmanager
def without_warnings() -> Generator[None, None, None]:
    """Ignore all warnings in a `with` block.

    The filters of warnings belong to the whole process. `warnings.catch_warnings` puts back what it
    has found: of two threads whose blocks overlap, the second would find the filters of the first,
    and leave them for ever. Here the first block that begins changes the filters, and the last one
    that ends puts them back.

    Yields:
        Nothing.
    """
    global _num_inside
    with _lock:
        if _num_inside == 0:
            block = warnings.catch_warnings()
            block.__enter__()
            warnings.simplefilter("ignore")
            _inside.append(block)
        _num_inside += 1
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            if _num_inside == 0:
                _inside.pop().__exit__(None, None, None)
