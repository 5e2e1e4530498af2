"""Compiled and parallel modules: what is inside, and the names without what is around."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from elasticnet._modules.unwrapping import is_compiled, match_names, plain_name, unwrapped

Wrap = Callable[[nn.Module], nn.Module]


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # pyright: ignore[reportReturnType]


WRAPPERS = [compiled, nn.DataParallel, AveragedModel, checkpoint_wrapper]
# torch.compile makes a function, not a module, of a module that is compiled already.
PAIRS = [(outer, inner) for outer in WRAPPERS for inner in WRAPPERS if outer is not inner]


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
def test_what_is_inside_two_wrappers_is_found(outer: Wrap, inner: Wrap) -> None:
    layer = nn.Linear(2, 2)
    found = unwrapped(outer(inner(layer)))
    assert type(found) is nn.Linear
    assert torch.equal(found.weight, layer.weight)
    assert unwrapped(layer) is layer


class Holder(nn.Module):
    """A module of one's own, whose attribute is called as that of nn.DataParallel."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_module_of_ones_own_is_no_wrapper() -> None:
    holder = Holder(nn.Linear(2, 2))
    assert unwrapped(holder) is holder
    assert plain_name(holder, "module.weight") == "module.weight"


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
def test_keys_lose_what_wrappers_add(outer: Wrap, inner: Wrap) -> None:
    layer = nn.Sequential(inner(nn.Linear(2, 2)), Holder(nn.Linear(2, 2)))
    net = nn.Sequential(outer(layer))
    names = [plain_name(net, key) for key in net.state_dict() if "averaged" not in key]
    assert sorted(names) == [
        "0.0.bias",
        "0.0.weight",
        "0.1.module.bias",
        "0.1.module.weight",
    ]


def test_names_in_files_are_matched_with_and_without_the_pieces() -> None:
    names = ["a._orig_mod.weight", "b.module.weight", "c._orig_mod.module.weight", "d.weight", "e"]
    known = ["a.weight", "b.module.weight", "c.weight", "d.weight"]
    assert match_names(names, known) == {
        "a._orig_mod.weight": "a.weight",
        "b.module.weight": "b.module.weight",
        "c._orig_mod.module.weight": "c.weight",
        "d.weight": "d.weight",
    }


def test_a_name_that_is_taken_is_not_matched_again() -> None:
    assert match_names(["a._orig_mod.x", "a.x"], known=["a.x"]) == {"a.x": "a.x"}
    assert match_names(["a.module.x", "a._orig_mod.x"], known=["a.x"]) == {"a.module.x": "a.x"}


def test_a_compiled_module_is_known_in_both_ways_to_compile() -> None:
    in_place = nn.Sequential(nn.Linear(2, 2))
    in_place.get_submodule("0").compile(backend="eager")
    assert is_compiled(in_place)
    assert is_compiled(nn.Sequential(compiled(nn.Linear(2, 2))))
    assert not is_compiled(nn.Sequential(nn.Linear(2, 2)))
