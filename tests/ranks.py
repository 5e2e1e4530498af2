"""Processes for tests of training on several: they begin with torch imported."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing.spawn import start_processes

# imported once, in the process that all of them are forked from
multiprocessing.set_forkserver_preload(
    [
        "torch",
        "torch.distributed",
        "pytest",
        "hypothesis",
        "elasticnet.training.step",
        "elasticnet.sr",
    ]
)


def start_ranks(function: Callable[..., object], arguments: tuple[Any, ...], number: int) -> None:
    """Run `function(rank, *arguments)` in so many processes, and wait for them.

    Args:
        function: Of a module's top level.
        arguments: What can be pickled.
        number: How many.

    Raises:
        ProcessRaisedException: One of them has raised an error.
    """
    start_processes(function, arguments, nprocs=number, start_method="forkserver")
