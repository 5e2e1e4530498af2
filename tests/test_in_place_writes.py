"""Modules that change in place what they are given: found and named, or given copies."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from contract import same
from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet._net.in_place_writes import GuardedTensors, OverwrittenError
from elasticnet._net.nests import copied, tensors_in
from tiny_nets import conv_blocks, conv_net

X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))


class InPlace(nn.Module):
    """A convolution that first changes its input, by one of the ways to do that."""

    def __init__(self, write: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.write = write

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        self.write(x if skip is None else skip)
        return self.conv(x)


def write_slice(x: Tensor) -> None:
    x[:, :2] = 0


def write_out(x: Tensor) -> None:
    torch.mul(x, 2, out=x)


def write_view(x: Tensor) -> None:
    x.flatten().neg_()


def write_data(x: Tensor) -> None:
    x.data.mul_(3)


COUNTED_WRITES = (nn.functional.relu_, write_slice, write_out, write_view)
ALL_WRITES = (*COUNTED_WRITES, write_data)


def net_with(place: str, write: Callable[[Tensor], Any], **options: Any) -> ElasticWrapper:
    """Return a net of three blocks in which one part writes in place."""
    torch.manual_seed(0)
    blocks = conv_blocks(3)
    stem: nn.Module = nn.Conv2d(4, 4, 1)
    head: nn.Module = nn.Conv2d(4, 4, 1)
    adapters: dict[int, nn.Module] = {}
    head_skip = None
    if place == "stem":
        stem = InPlace(write)
    if place == "block":
        blocks[1] = InPlace(write)
    if place == "first block":
        blocks[0] = InPlace(write)
        head_skip = "stem"
        head = InPlace(lambda x: None)
    if place == "adapter":
        adapters[2] = InPlace(write)
    if place == "head":
        head = InPlace(write)
    if place == "skip":
        head = InPlace(write)
        head_skip = "stem"
    return ElasticWrapper(
        blocks, head, stem, adapters=adapters, head_skip=head_skip, **options
    ).eval()


WRITERS = {
    "stem": "the stem writes in place into the input",
    "block": r"block 2 \(InPlace\) writes in place into the features at depth 1",
    "first block": r"block 1 \(InPlace\) writes in place into the stem's output",
    "adapter": "the head or its adapter at depth 2 writes in place into the features at depth 2",
    "head": "the head at depth 1 writes in place into the features at depth 1",
    "skip": "the head at depth 1 writes in place into the stem's output",
}


def run_with_copies(net: ElasticWrapper, x: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return features and prediction by hand, with a copy wherever something could write."""
    assert net.stem is not None
    features = net.stem(x.clone())
    stem_output = features.clone()
    for block in net.blocks[:depth]:
        features = block(features.clone())
    adapted = features.clone()
    if str(depth) in net.adapters:
        adapted = net.adapters[str(depth)](adapted)
    if net.head_skip == "stem":
        return features, net.head(adapted, stem_output)
    return features, net.head(adapted)


@pytest.mark.parametrize("write", COUNTED_WRITES)
@pytest.mark.parametrize("place", WRITERS)
def test_a_pass_names_the_part_that_writes_and_what_it_overwrites(
    place: str, write: Callable[[Tensor], Any]
) -> None:
    net = net_with(place, write)
    message = WRITERS[place] + r".*copy_features=True"
    with torch.no_grad(), pytest.raises(OverwrittenError, match=message):
        net(X.clone(), taps=net.taps)


@pytest.mark.parametrize("place", WRITERS)
def test_a_training_pass_names_it_too(place: str) -> None:
    net = net_with(place, nn.functional.relu_).train()
    objective = ElasticObjective(net, nn.L1Loss(), psd_weight=0.1)
    with pytest.raises(OverwrittenError, match=WRITERS[place]):
        objective(X.clone(), X)


@pytest.mark.parametrize("write", ALL_WRITES)
@pytest.mark.parametrize("place", WRITERS)
def test_check_finds_every_write(place: str, write: Callable[[Tensor], Any]) -> None:
    with pytest.raises(OverwrittenError, match=WRITERS[place]):
        net_with(place, write).check(X.clone())
    with torch.inference_mode(), pytest.raises(OverwrittenError, match=WRITERS[place]):
        net_with(place, write).check(X.clone())


@pytest.mark.parametrize("write", ALL_WRITES)
@pytest.mark.parametrize("place", WRITERS)
def test_copies_make_every_form_the_same_function(
    place: str, write: Callable[[Tensor], Any]
) -> None:
    net = net_with(place, write, copy_features=True)
    x = X.clone()
    with torch.no_grad():
        taps = net(x, taps=net.taps)
        for depth, prediction, features in zip(*taps, strict=True):
            expected_features, expected = run_with_copies(net, X, depth)
            same(prediction, expected, f"prediction at depth {depth}")
            same(features, expected_features, f"features at depth {depth}")
            same(net(x, depth=depth), expected, f"net(x, depth={depth})")
            same(net.truncate(depth)(x), expected, f"truncate({depth})(x)")
        assert [report.problem for report in net.check(x)] == [None, None, None]
    same(x, X, "the caller's input")


@pytest.mark.parametrize("place", ["block", "head"])
def test_what_nothing_needs_any_more_may_be_overwritten(place: str) -> None:
    """A pass to one depth keeps no features, and so needs no copies."""
    net = net_with(place, write_slice)
    with torch.no_grad():
        for depth in net.taps:
            same(net(X, depth=depth), run_with_copies(net, X, depth)[1], f"depth {depth}")


def test_a_block_may_overwrite_features_that_are_no_tap() -> None:
    net = net_with("block", write_slice).with_taps([2, 3])
    with torch.no_grad():
        same(net(X, taps=[3]).predictions[0], run_with_copies(net, X, 3)[1], "depth 3")


def test_a_part_may_not_overwrite_the_input_in_a_pass_to_one_depth() -> None:
    net = ElasticWrapper([InPlace(write_slice), nn.Conv2d(4, 4, 1)], nn.Conv2d(4, 2, 1))
    with pytest.raises(OverwrittenError, match=r"block 1 \(InPlace\) .* into the input"):
        net(X.clone(), depth=1)


def test_a_recomputed_block_may_not_overwrite_what_the_backward_pass_reads() -> None:
    """Recomputed from overwritten features, the gradient would be another one."""
    blocks = [nn.Conv2d(4, 4, 1), nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))]
    net = ElasticWrapper(blocks, nn.Conv2d(4, 2, 1), taps=[2], checkpoint_blocks=True)
    with pytest.raises(OverwrittenError, match="the features at depth 1, for the backward pass"):
        net(X)
    net.checkpoint_blocks = False
    net(X).sum().backward()


def test_a_head_that_returns_the_same_tensor_again_is_found() -> None:
    class Reusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("output", torch.empty(2, 4, 5, 5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.neg(x, out=self.get_buffer("output"))

    net = ElasticWrapper(conv_blocks(2), Reusing())
    with torch.no_grad(), pytest.raises(OverwrittenError, match="into the prediction at depth 1"):
        net(X, taps=net.taps)


def test_an_objective_trains_with_copies() -> None:
    """The same losses and gradients as with a head that is not in place."""
    output = nn.Conv2d(4, 2, 1)
    plain = ElasticWrapper(conv_blocks(3), nn.Sequential(nn.ReLU(), output))
    in_place = ElasticWrapper(
        plain.blocks, nn.Sequential(nn.ReLU(inplace=True), output), copy_features=True
    )
    target = torch.randn(2, 2, 5, 5)
    gradients: list[Any] = []
    for net in (plain, in_place):
        terms = ElasticObjective(net, nn.L1Loss(), psd_weight=0.1)(X, target)
        gradients.append(torch.autograd.grad(terms.total, list(net.parameters())))
    same(gradients[1], gradients[0], "gradients")


def test_check_names_a_head_that_writes_and_then_rejects() -> None:
    class WritesAndFails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.neg_()
            raise ValueError("not today")

    net = ElasticWrapper(conv_blocks(2), WritesAndFails())
    with pytest.raises(OverwrittenError, match="the head at depth 1 writes in place"):
        net.check(X)


def test_counters_that_are_missing_do_no_harm() -> None:
    net = conv_net(2).eval()
    expected = net(X, taps=net.taps)
    with torch.inference_mode():
        same(net(X.clone(), taps=net.taps), expected, "inference mode")
    batched = torch.func.vmap(lambda x: net(x[None], taps=net.taps).predictions)(X)
    torch.testing.assert_close(batched[1][:, 0], expected.predictions[1])


def test_settings_are_kept() -> None:
    net = conv_net(3, copy_features=True)
    assert net.truncate(2).copy_features
    assert net.with_taps([3]).copy_features
    assert not conv_net(1).copy_features


# --- GuardedTensors itself


def test_tensors_are_guarded_in_any_nest() -> None:
    first, second, third = torch.zeros(3, 2)
    nest = [first, ("text", {"key": second.clone()}), None, 3, {"last": [third.clone()]}]
    guarded = GuardedTensors()
    guarded.guard_features(nest, "the nest")
    assert not guarded.is_overwritten()
    tensors_in(nest)[2].add_(1)
    assert guarded.is_overwritten()
    with pytest.raises(OverwrittenError, match="somebody writes in place into the nest"):
        guarded.check_everything(writer="somebody")


def test_a_copy_guards_nothing() -> None:
    """The counters of copied tensors begin anew, so that it could raise without a reason."""
    tensor = torch.zeros(2).add_(1)
    guarded = GuardedTensors()
    guarded.guard_input(tensor, "the input")
    copy.deepcopy(guarded).check_everything(writer="nobody")


def test_copies_of_nests_keep_their_kind() -> None:
    packed = pack_padded_sequence(torch.randn(4, 2, 3), [4, 2])
    copies = copied({"packed": packed, "list": [X, None, 2], "tuple": (X,)})
    ordered = copied(OrderedDict(first=X))
    assert type(ordered) is OrderedDict
    assert ordered["first"] is not X
    assert isinstance(copies["packed"], PackedSequence)
    same(copies["packed"].data, packed.data, "packed sequence")
    assert copies["packed"].data is not packed.data
    assert copies["list"][1:] == [None, 2]
    assert copies["tuple"][0] is not X
    same(copies["tuple"], (X,), "tuple")
