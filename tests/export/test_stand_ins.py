"""A part of a network says what stands for it in a graph, and a wrong stand-in is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elasticnet import ElasticWrapper
from elasticnet.export import ExportError, OffersStandIn, export, runner
from elasticnet.export.stand_ins import put_stand_ins


class Doubled(nn.Module):
    """Doubles a tensor; in a graph, `stand_in` does."""

    def __init__(self, stand_in: Any) -> None:
        super().__init__()
        self.make_stand_in = stand_in

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def for_export(self) -> nn.Module:
        return self.make_stand_in()


class AddedToItself(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x


class Tripled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


class AskedHow(nn.Module):
    """Has a method of the same name that means something else."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def for_export(self, how: str) -> nn.Module:
        raise AssertionError(how)


def net_with(block: nn.Module) -> ElasticWrapper:
    torch.manual_seed(0)
    return ElasticWrapper([block, nn.Linear(4, 4)], nn.Linear(4, 2), layout="b c").eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 4, generator=torch.Generator().manual_seed(1))


def test_the_stand_in_is_what_is_traced(x, tmp_path):
    net = net_with(Doubled(AddedToItself))
    result = export(net, tmp_path / "net.pt2", example=x)
    program = torch.export.load(result.path)
    operators = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "aten.add.Tensor" in operators
    assert "aten.mul.Tensor" not in operators
    assert torch.equal(runner(result.path)(x), net(x))


def test_the_net_keeps_its_own_module(x, tmp_path):
    net = net_with(Doubled(AddedToItself))
    export(net, tmp_path / "net.pt2", example=x)
    assert isinstance(net.blocks[0], Doubled)


def test_a_stand_in_of_another_function_is_refused_with_the_difference(x, tmp_path):
    net = net_with(Doubled(Tripled))
    said = r"blocks\.0 \(Doubled\) is another function: .* differs by up to 0\.\d+ .* 0\.0001 is"
    with pytest.raises(ExportError, match=said):
        export(net, tmp_path / "net.pt2", example=x)
    assert not (tmp_path / "net.pt2").exists()


def test_a_stand_in_that_is_no_module_is_refused(x, tmp_path):
    net = net_with(Doubled(lambda: 7))
    said = r"blocks\.0 \(Doubled\): for_export\(\) returned int; expected a module"
    with pytest.raises(ExportError, match=said):
        export(net, tmp_path / "net.pt2", example=x)


def test_a_stand_in_that_cannot_be_made_is_refused(x, tmp_path):
    def fail() -> nn.Module:
        raise RuntimeError("no stand-in today")

    with pytest.raises(ExportError, match=r"for_export.* fails: no stand-in today"):
        export(net_with(Doubled(fail)), tmp_path / "net.pt2", example=x)


def test_a_method_that_needs_an_argument_is_something_else(x, tmp_path):
    net = net_with(AskedHow())
    assert torch.equal(runner(export(net, tmp_path / "net.pt2", example=x).path)(x), net(x))


def test_a_part_that_is_held_twice_has_one_stand_in():
    shared = Doubled(AddedToItself)
    inner = nn.Sequential(shared)
    net = nn.Sequential(shared, inner)
    assert put_stand_ins(net) == ["0 (Doubled)"]
    assert isinstance(net[0], AddedToItself)
    assert inner[0] is net[0]


def test_what_stands_inside_a_replaced_part_goes_with_it():
    outer = Doubled(AddedToItself)
    outer.inner = Doubled(Tripled)
    assert put_stand_ins(nn.Sequential(outer)) == ["0 (Doubled)"]


def test_a_part_that_returns_itself_was_not_replaced():
    part = Doubled(lambda: part)
    net = nn.Sequential(part)
    assert put_stand_ins(net) == []
    assert net[0] is part


def test_the_protocol_names_the_method():
    assert isinstance(Doubled(AddedToItself), OffersStandIn)
    assert not isinstance(nn.Linear(1, 1), OffersStandIn)
