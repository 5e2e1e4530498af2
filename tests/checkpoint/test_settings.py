"""Which attributes of two modules count as settings, and when they differ."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from elasticnet.checkpoint.settings import differing_setting


class Block(nn.Module):
    """Keeps what it is given as `value`, and other things under other names."""

    __constants__ = ("groups",)

    def __init__(self, value: Any = 1, groups: int = 1) -> None:
        super().__init__()
        self.value = value
        self.groups = groups
        self.calls = 0
        self.cache: list[int] = []
        self.last_output: Any = None
        self._private = 1
        self.mode = "fast"


def scaled(factor: float) -> Any:
    return lambda x: x * factor


def recursive(step: int) -> Any:
    def run(x: int) -> int:
        return x if x <= 0 else run(x - step)

    return run


DIFFERENT = [
    (1, 2),
    (1.0, 0.1),
    (None, 1),
    (True, False),
    ("zeros", "reflect"),
    ((1, 1), (2, 2)),
    ((1, 1), (1, 1, 1)),
    ([1, 2], [1, 3]),
    (torch.float32, torch.float16),
    (F.relu, F.gelu),
    (torch.relu, torch.tanh),
    (nn.ReLU, nn.GELU),
    (scaled(1.0), scaled(2.0)),
    (recursive(1), recursive(2)),
    (partial(F.leaky_relu, negative_slope=0.1), partial(F.leaky_relu, negative_slope=0.2)),
    (partial(F.relu, inplace=True), partial(F.gelu)),
]


@pytest.mark.parametrize(("here", "there"), DIFFERENT)
def test_a_different_argument_of_the_constructor_is_found(here: Any, there: Any) -> None:
    assert differing_setting(Block(here), Block(there)) == ("value", here, there)


@pytest.mark.parametrize(
    "make",
    [
        lambda: 1,
        lambda: "zeros",
        lambda: (1, None, "a"),
        lambda: [1.5],
        lambda: scaled(2.0),
        lambda: recursive(2),
        lambda: partial(F.leaky_relu, negative_slope=0.1),
        lambda: torch.zeros(2),
        lambda: object(),
        lambda: {"a": object()},
    ],
)
def test_equal_values_and_those_that_cannot_be_compared_are_no_difference(make: Any) -> None:
    assert differing_setting(Block(make()), Block(make())) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("calls", 7),
        ("cache", [1, 2]),
        ("last_output", torch.zeros(2)),
        ("_private", 2),
        ("training", False),
        ("added_by_a_trainer", True),
    ],
)
def test_what_changes_in_use_is_no_setting(name: str, value: Any) -> None:
    used = Block()
    setattr(used, name, value)
    assert differing_setting(used, Block()) is None


def test_a_word_is_a_setting_whatever_its_name_is() -> None:
    changed = Block()
    changed.mode = "slow"
    assert differing_setting(changed, Block()) == ("mode", "slow", "fast")


def test_a_constant_of_the_class_is_a_setting() -> None:
    changed = Block()
    changed.groups = 2
    assert differing_setting(changed, Block()) == ("groups", 2, 1)
