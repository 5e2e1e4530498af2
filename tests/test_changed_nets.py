"""Nets that are changed after they were made, and features that blocks change as they go."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contract import same
from elasticnet import ElasticWrapper, load, save
from elasticnet.card import measure
from elasticnet.checkpoint import load_into
from elasticnet.export import export
from elasticnet.sr import Upscaler
from tiny_nets import TinyBlock, conv_net

X = torch.rand(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))


def residual() -> TinyBlock:
    return TinyBlock("residual", "b c h w", 4)


# --- features that a block changes instead of making new ones


@dataclasses.dataclass
class Maps:
    fine: Tensor


class DictBlock(nn.Module):
    """Sets a key of the dict that it is given, and returns that dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = residual()

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        maps["fine"] = self.inner(maps["fine"])
        return maps


class ListBlock(DictBlock):
    """Appends to the list that it is given, and returns that list."""

    def forward(self, maps: Any) -> Any:
        maps.append(self.inner(maps[-1]))
        return maps


class DataclassBlock(DictBlock):
    """Sets the field of the dataclass that it is given, and returns that."""

    def forward(self, maps: Any) -> Any:
        maps.fine = self.inner(maps.fine)
        return maps


def total_of(maps: Any) -> Tensor:
    if isinstance(maps, Maps):
        return maps.fine
    entries = list(maps.values()) if isinstance(maps, dict) else maps
    return torch.stack(entries).sum(dim=0)


class TotalHead(nn.Module):
    """Takes all taps together, so that it reads all features after the last block has run."""

    takes_all_taps = True

    def forward(self, features: tuple[Any, ...]) -> tuple[Tensor, ...]:
        return tuple(total_of(maps) for maps in features)


class InPlaceHead(nn.Module):
    def forward(self, maps: Any) -> Tensor:
        return maps.fine.mul_(2)


CONTAINERS = {
    "dict": (DictBlock, lambda: {"fine": X.clone()}),
    "list": (ListBlock, lambda: [X.clone()]),
    "dataclass": (DataclassBlock, lambda: Maps(X.clone())),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_block_may_change_the_container_that_it_is_given(kind: str) -> None:
    make_block, make_input = CONTAINERS[kind]
    net = ElasticWrapper([make_block() for _ in range(3)], TotalHead()).eval()
    taps = net(make_input(), taps=net.taps)
    for depth, prediction, features in zip(*taps, strict=True):
        same(prediction, net(make_input(), depth=depth), f"depth {depth}")
        same(total_of(features), prediction, f"the features at depth {depth}")


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_blocks_that_change_containers_compile_into_one_graph(kind: str) -> None:
    make_block, make_input = CONTAINERS[kind]
    net = ElasticWrapper([make_block() for _ in range(2)], TotalHead()).eval()
    compiled: Any = torch.compile(net, backend="eager", fullgraph=True)
    same(compiled(make_input()), net(make_input()), "compiled")


@pytest.mark.parametrize("kind", CONTAINERS)
def test_the_container_of_the_caller_stays_as_it_was(kind: str) -> None:
    make_block, make_input = CONTAINERS[kind]
    net = ElasticWrapper([make_block() for _ in range(3)], TotalHead()).eval()
    given = make_input()
    first = net(given)
    same(net(given), first, "the second call")


def test_a_write_into_a_tensor_of_a_dataclass_is_named() -> None:
    net = ElasticWrapper([DataclassBlock() for _ in range(2)], InPlaceHead()).eval()
    with pytest.raises(RuntimeError, match="the head at depth 1 writes in place"):
        net(Maps(X.clone()), taps=net.taps)


def test_dataclasses_are_copied_with_copy_features() -> None:
    blocks = [DataclassBlock() for _ in range(2)]
    net = ElasticWrapper(blocks, InPlaceHead(), copy_features=True).eval()
    taps = net(Maps(X), taps=net.taps)
    same(taps.predictions[1], net(Maps(X), depth=2), "depth 2")


# --- blocks and stems that are replaced


def test_removed_blocks_are_an_error() -> None:
    net = conv_net(4)
    net.blocks = net.blocks[:2]
    for call in (lambda: net(X, depth=4), lambda: net(X, taps=net.taps)):
        with pytest.raises(ValueError, match="has 2 blocks, and its deepest tap is at depth 4"):
            call()


def test_added_blocks_are_an_error() -> None:
    net = conv_net(2)
    net.blocks.append(residual())
    with pytest.raises(ValueError, match="has 3 blocks, and its deepest tap is at depth 2"):
        net(X)


def saved(net: ElasticWrapper, folder: Path) -> None:
    save(net, folder / "net.safetensors")


def filled(net: ElasticWrapper, folder: Path) -> None:
    save(conv_net(2), folder / "net.safetensors")
    load_into(net, folder / "net.safetensors")


def loaded(net: ElasticWrapper, folder: Path) -> None:
    save(conv_net(2), folder / "net.safetensors")
    load(folder / "net.safetensors", build=lambda: net)


def exported(net: ElasticWrapper, folder: Path) -> None:
    export(net, folder / "exported.pt2", example=X)


def exported_as_a_checkpoint(net: ElasticWrapper, folder: Path) -> None:
    export(net, folder / "exported.safetensors")


def measured(net: ElasticWrapper, folder: Path) -> None:
    measure(net, X, repeats=1, memory=False)


def upscaled(net: ElasticWrapper, folder: Path) -> None:
    Upscaler(net)


@pytest.mark.parametrize(
    "use", [saved, filled, loaded, exported, exported_as_a_checkpoint, measured, upscaled]
)
@pytest.mark.parametrize("num_blocks", [1, 3])
def test_a_net_of_another_number_of_blocks_than_it_was_made_of_is_used_by_nobody(
    tmp_path: Path, use: Callable[[ElasticWrapper, Path], None], num_blocks: int
) -> None:
    net = conv_net(2)
    net.blocks = nn.ModuleList([residual() for _ in range(num_blocks)])

    with pytest.raises(ValueError, match=f"has {num_blocks} blocks, and its deepest tap is at"):
        use(net, tmp_path)
    assert not list(tmp_path.glob("exported*"))


class Scaling(nn.Module):
    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return x * gain


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class WithDepth(nn.Module):
    def forward(self, x: Tensor, depth: Tensor) -> Tensor:
        return x + depth


def call_plainly(block: nn.Module, x: Any, context: Any, index: int) -> tuple[Any, Any]:
    return block(x), context


def test_a_new_stem_in_the_same_wrapper_gets_its_own_keyword_arguments() -> None:
    net = conv_net(2)
    net.stem = nn.DataParallel(Plain())
    expected = net(X * 2.0)

    net.stem = nn.DataParallel(Scaling())

    same(net(X, gain=2.0), expected, "prediction")


def test_a_new_stem_gets_its_own_keyword_arguments() -> None:
    net = conv_net(2, stem=nn.Identity(), call_block=call_plainly).eval()
    net.stem = Scaling()
    same(net(X, gain=3.0), net(X * 3.0), "the gain")
    assert "gain" in net.stem_keywords


def test_a_new_stem_may_not_take_a_reserved_word() -> None:
    net = conv_net(2, stem=nn.Identity(), call_block=call_plainly)
    net.stem = WithDepth()
    with pytest.raises(ValueError, match="the stem's forward has an argument 'depth'"):
        net(X, gain=3.0)


def test_a_stem_that_is_compiled_later_gets_its_keyword_arguments() -> None:
    net = conv_net(2, stem=Scaling(), call_block=call_plainly).eval()
    expected = net(X, gain=3.0, other=1)
    compiled: Any = torch.compile(net.stem, backend="eager")
    net.stem = compiled
    same(net(X, gain=3.0, other=1), expected, "the gain")


def test_a_traced_stem_takes_no_keyword_argument() -> None:
    """torch.jit.trace leaves a forward without a signature."""
    traced: Any = torch.jit.trace(nn.Conv2d(4, 4, 1), X)
    net = conv_net(2, stem=traced, call_block=call_plainly).eval()
    same(net(X, gain=3.0), net(X), "prediction")
    assert net.stem_keywords == frozenset()


# --- methods of the net as call_block and as hooks


class OwnMethods(ElasticWrapper):
    """A net whose call_block and whose hook are methods of its own, and read its buffer."""

    def __init__(self) -> None:
        blocks = [residual() for _ in range(4)]
        super().__init__(blocks, nn.Conv2d(4, 2, 1), call_block=self.run_scaled)
        self.register_buffer("gain", torch.tensor(1.5))
        self.register_forward_pre_hook(self.scale)
        self.register_forward_hook(self.count)
        self.num_calls = 0

    def run_scaled(self, block: nn.Module, x: Any, context: Any, index: int) -> tuple[Any, Any]:
        return block(x) * self.gain, context

    def scale(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0] * self.gain, *inputs[1:])

    def count(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.num_calls += 1


def test_methods_belong_to_the_truncated_net() -> None:
    net = OwnMethods().eval()
    small = net.truncate(1)
    same(small(X), net(X, depth=1), "truncated")
    # both read the buffer that the small net has now, and not one of the net it came from
    small.gain = torch.tensor(2.0)
    net.gain = torch.tensor(2.0)
    same(small(X), net(X, depth=1), "with another buffer")
    calls_before = net.num_calls
    small(X)
    assert net.num_calls == calls_before
    assert small.num_calls == 3


def test_a_truncated_net_does_not_hold_the_whole_one() -> None:
    net = OwnMethods()
    assert len(pickle.dumps(net.truncate(1))) < 0.6 * len(pickle.dumps(net))
