"""What every test beside a framework shares: it inherits no settings from another one."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def forget_settings() -> Iterator[None]:
    """Forget what an Accelerator sets for the whole process, such as its precision.

    A Trainer of transformers has one, too, so that a test of either may come before this one.
    """
    _forget()
    yield
    _forget()


def _forget() -> None:
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
