"""Threads that enlarge small images side by side, each on one core.

The operations of a small image are so short that PyTorch's threads, which share each of them, wait
for each other most of the time. Several images at once keep all cores busy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class OneCoreWorkers:
    """As many threads as PyTorch has, in each of which PyTorch computes with one thread.

    They begin with the first call of `submit`. Used in a `with` block, at whose end calls that have
    not begun are cancelled and the others are waited for, whatever has happened.

    Args:
        num_workers: How many threads; 1 or fewer mean that nothing may be submitted.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> OneCoreWorkers:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel what has not begun, and wait for the rest."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, call: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> Future[T]:
        """Call a function in one of the threads, as soon as one is free.

        Args:
            call: The function.
            *arguments: Of the function.
            **keywords: Of the function.

        Returns:
            What the function returns or raises.
        """
        if self._pool is None:
            self._pool = _started_pool(self.num_workers)
        return self._pool.submit(call, *arguments, **keywords)


def _started_pool(num_workers: int) -> ThreadPoolExecutor:
    """A pool whose threads all run, each with one thread of PyTorch's."""
    import torch

    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(num_workers, "one-core", initializer=_compute_with_one_thread)
    # The pool begins a thread when all others are busy: here they wait until all have begun.
    all_have_begun = threading.Barrier(num_workers + 1)
    try:
        for _ in range(num_workers):
            pool.submit(all_have_begun.wait)
        all_have_begun.wait()
    except BaseException:  # the system gives no more threads, or Ctrl-C
        all_have_begun.abort()  # those that have begun would wait forever, and the program for them
        pool.shutdown(cancel_futures=True)
        raise
    # What a thread sets holds for itself and for threads that begin later, which are no workers.
    torch.set_num_threads(num_threads)
    return pool


def _compute_with_one_thread() -> None:
    """Let PyTorch compute with one thread in the present thread."""
    import torch

    # PyTorch sets up a thread when it is first asked, by what was set last anywhere: now, so that
    # this does not undo the next line later.
    torch.get_num_threads()
    torch.set_num_threads(1)
