"""Warm starts: what is taken is equal bit for bit, what is not is said, and misfits are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from elasticnet import ElasticWrapper
from elasticnet.sr.models.asrn import asrn
from elasticnet.training.warm_start import warm_start
from elasticnet.wrapper import Origin
from tiny_nets import TinyHead, conv_net

X = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))
FEATURES = torch.rand(2, 4, 5, 6, generator=torch.Generator().manual_seed(2))
# arguments of asrn that leave its head what it is
MAY_DIFFER = ("num_blocks", "fold", "tap_affine")
TAKEN = "stem and {} of {} blocks taken"


def trained(net: ElasticWrapper, seed: int = 1) -> ElasticWrapper:
    """The net with weights that no initialisation makes, and every one of them another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return net.eval()


def state(module: nn.Module | None) -> dict[str, Tensor]:
    assert module is not None
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(actual: Any, expected: Any) -> None:
    """Equality to the bit."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def predictions(net: ElasticWrapper, x: Tensor = X) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return net.eval().forward_taps(x).predictions


@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([2, 3, 4]),
    st.sampled_from(["deconv", "subpixel"]),
    st.sampled_from(["mab", "shufflenet", "res2net"]),
    st.sampled_from([None, "bicubic"]),
)
@settings(max_examples=25)
def test_another_depth(
    here: int, there: int, scale: int, upsampler: str, block: str, skip: str | None
) -> None:
    """Exits that both have are equal; deeper ones start as the source's deepest.

    A shallower net is the truncated source.
    """
    options: dict[str, Any] = {"upsampler": upsampler, "block": block, "skip": skip}
    source = trained(asrn(scale, there, 24, **options))
    net = asrn(scale, here, 24, **options)
    before = state(source)
    said = warm_start(net, source, may_differ=MAY_DIFFER)
    expected = predictions(source)
    common = min(here, there)
    assert_same(predictions(net), expected[:common] + expected[-1:] * (here - common))
    if here <= there:
        assert_same(state(net), state(source.truncate(here)))
    new = [f"{here - there} new blocks start as identities"] if here > there else []
    assert said == [TAKEN.format(common, there), *new, "the head taken"]

    for parameter in net.parameters():
        parameter.data.zero_()
    assert_same(state(source), before)


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        ({"scale": 3}, "scale 2 there, 3 here"),
        ({"scale": 4, "num_blocks": 2}, "scale 2 there, 4 here"),
        ({"skip": "bicubic"}, "skip None there, bicubic here"),
        ({"upsampler": "subpixel"}, "upsampler deconv there, subpixel here"),
        ({"scale": 3, "skip": "bicubic"}, "scale 2 there, 3 here, skip None there, bicubic here"),
        ({"residual_links": False}, "residual_links True there, False here"),
    ],
)
def test_another_head_is_made_anew_and_this_is_said(here: dict[str, Any], reason: str) -> None:
    source = trained(asrn(2, 3, 24))
    net = asrn(**{"scale": 2, "num_blocks": 3, "channels": 24, **here})
    as_made = state(net.head)
    said = warm_start(net, source, may_differ=MAY_DIFFER)
    assert said == [TAKEN.format(len(net.blocks), 3), f"the head is made anew ({reason})"]
    assert_same(state(net.head), as_made)
    assert_same(state(net.stem), state(source.stem))
    for index, block in enumerate(net.blocks):
        assert_same(state(block), state(source.blocks[index]))


def test_an_argument_that_may_not_differ_means_another_head() -> None:
    source = trained(asrn(2, 2, 24))
    net = asrn(2, 3, 24)
    as_made = state(net.head)
    assert warm_start(net, source)[-1] == "the head is made anew (num_blocks 2 there, 3 here)"
    assert_same(state(net.head), as_made)


def test_a_folded_and_a_plain_net_are_built_alike() -> None:
    source = trained(asrn(2, 2, 24, fold=True))
    net = asrn(2, 2, 24, fold=False)
    assert warm_start(net, source, may_differ=MAY_DIFFER)[-1] == "the head taken"
    assert_same(state(net), state(source))


@pytest.mark.parametrize("here", [True, False])
def test_affines_in_front_of_the_head_leave_it_the_same(here: bool) -> None:
    source = trained(asrn(2, 2, 24, tap_affine=not here))
    net = asrn(2, 2, 24, tap_affine=here)
    kept = state(net.adapters)
    adapters = "made anew (bias is absent there, (24, 1, 1) here)" if here else "left out"
    expected = [
        "the head taken",
        *(f"the adapter of depth {depth} is {adapters}" for depth in (1, 2)),
    ]
    assert warm_start(net, source, may_differ=MAY_DIFFER)[1:] == expected
    assert_same(state(net.head), state(source.head))
    assert_same(state(net.adapters), kept)


def test_weights_arrive_in_the_net_s_own_dtype() -> None:
    source = trained(asrn(2, 2, 24)).double()
    net = asrn(2, 2, 24)
    warm_start(net, source)
    assert_same(state(net), state(source.float()))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            lambda: asrn(2, 3, 32),
            r"stem differs: 1.bias is \(24,\) there, \(32,\) here; the body must be built alike",
        ),
        (
            lambda: asrn(2, 3, 24, block="shufflenet"),
            r"blocks.0 differs: depthwise.weight is absent there, \(172, 1, 3, 3\) here",
        ),
        (
            lambda: asrn(2, 3, 24, fusion=False),
            r"blocks.0 differs: fusion.weight is \(24, 24, 1, 1\) there, absent here",
        ),
        (lambda: conv_net(3), r"stem differs: 0.bias is \(8,\) there, absent here"),
    ],
)
def test_another_body_is_refused_with_its_shapes_and_nothing_is_copied(
    net: Any, message: str
) -> None:
    made = net()
    before = state(made)
    with pytest.raises(ValueError, match=f"warm start: {message}"):
        warm_start(made, trained(asrn(2, 3, 24)))
    assert_same(state(made), before)


def test_a_difference_in_a_late_block_copies_nothing() -> None:
    net = conv_net(3)
    source = trained(conv_net(3))
    source.blocks[2] = nn.Conv2d(4, 4, 1)
    before = state(net)
    with pytest.raises(ValueError, match=r"blocks\.2 differs: bias is"):
        warm_start(net, source)
    assert_same(state(net), before)


def test_a_new_block_that_cannot_be_an_identity_is_refused() -> None:
    net = ElasticWrapper([nn.Conv2d(4, 4, 1) for _ in range(3)], nn.Conv2d(4, 2, 1))
    source = net.truncate(2)
    before = state(net)
    with pytest.raises(
        ValueError,
        match=r"blocks.2 is new, and Conv2d has no init_identity\(\): .*or take 2 blocks",
    ):
        warm_start(net, trained(source))
    assert_same(state(net), before)


def test_a_late_new_block_that_is_refused_leaves_the_earlier_ones_as_they_were() -> None:
    net = conv_net(4)
    net.blocks[3] = nn.Conv2d(4, 4, 1)
    before = state(net)
    with pytest.raises(ValueError, match=r"blocks\.3 is new, and Conv2d has no init_identity"):
        warm_start(net, trained(conv_net(2)))
    assert_same(state(net), before)


# --- nets that no builder made


def test_nets_without_an_origin_are_compared_by_shapes() -> None:
    source = trained(conv_net(2))
    net = conv_net(4)
    assert warm_start(net, source) == [
        TAKEN.format(2, 2),
        "2 new blocks start as identities",
        "the head taken",
    ]
    expected = predictions(source, FEATURES)
    assert_same(predictions(net, FEATURES), (*expected, expected[-1], expected[-1]))

    other = ElasticWrapper(conv_net(2).blocks, TinyHead("b c h w", 4, 5))
    as_made = state(other.head)
    assert (
        warm_start(other, source)[-1]
        == "the head is made anew (linear.bias is (2,) there, (5,) here)"
    )
    assert_same(state(other.head), as_made)


def test_an_origin_on_one_side_alone_does_not_count() -> None:
    source = trained(asrn(2, 2, 24))
    net = asrn(2, 2, 24)
    source.origin = None
    assert warm_start(net, source)[-1] == "the head taken"
    net.origin = Origin("asrn", {"scale": 2})
    source.origin = Origin("other", {"scale": 2})
    assert warm_start(net, source)[-1] == "the head is made anew (other there, asrn here)"


# --- adapters


def net_with_adapters(num_blocks: int, **kernels: int) -> ElasticWrapper:
    """Adapters by depth: depth_1=3 is a conv3x3 at depth 1."""
    adapters = {
        int(name[-1]): nn.Conv2d(4, 4, size, padding=size // 2) for name, size in kernels.items()
    }
    return conv_net(num_blocks, adapters=adapters)


def test_adapters_that_fit_are_taken() -> None:
    source = trained(net_with_adapters(3, depth_1=1, depth_2=3))
    net = net_with_adapters(2, depth_1=1, depth_2=3)
    assert warm_start(net, source) == [TAKEN.format(2, 3), "the head taken"]
    assert_same(predictions(net, FEATURES), predictions(source, FEATURES)[:2])


def test_adapters_that_differ_are_said() -> None:
    source = trained(net_with_adapters(2, depth_1=1, depth_2=3))
    net = net_with_adapters(3, depth_2=1, depth_3=1)
    as_made = state(net.adapters)
    assert warm_start(net, source)[3:] == [
        "the adapter of depth 2 is made anew (weight is (4, 4, 3, 3) there, (4, 4, 1, 1) here)",
        "the adapter of depth 3 is made anew (bias is absent there, (4,) here)",
        "the adapter of depth 1 is left out",
    ]
    assert_same(state(net.adapters), as_made)


# --- shared weights


def tied_net(num_blocks: int) -> ElasticWrapper:
    """One block at every depth."""
    block = conv_net(1).blocks[0]
    return ElasticWrapper([block] * num_blocks, TinyHead("b c h w", 4))


def separate_net(num_blocks: int) -> ElasticWrapper:
    return ElasticWrapper(conv_net(num_blocks).blocks, TinyHead("b c h w", 4))


def test_blocks_that_are_shared_here_and_differ_there_are_refused() -> None:
    net = tied_net(3)
    before = state(net)
    message = "blocks.0.first.weight and blocks.1.first.weight are shared here, and differ in the"
    with pytest.raises(ValueError, match=f"warm start: {message} source"):
        warm_start(net, trained(separate_net(3)))
    assert_same(state(net), before)


def test_blocks_that_are_shared_here_and_equal_there_are_taken() -> None:
    source = trained(separate_net(2))
    source.blocks[1].load_state_dict(source.blocks[0].state_dict())
    net = tied_net(2)
    warm_start(net, source)
    assert_same(predictions(net, FEATURES), predictions(source, FEATURES))


def test_a_new_block_that_is_shared_with_a_taken_one_is_refused() -> None:
    net = tied_net(3)
    before = state(net)
    message = "blocks.2.last.weight is new and must change .* is shared with blocks.1.last.weight"
    with pytest.raises(ValueError, match=f"warm start: {message}"):
        warm_start(net, trained(tied_net(2)))
    assert_same(state(net), before)


def test_a_new_block_may_share_what_its_identity_leaves_alone() -> None:
    net = separate_net(2)
    first: Any = net.blocks[0]
    second: Any = net.blocks[1]
    second.first.weight = first.first.weight
    source = trained(separate_net(1))
    warm_start(net, source)
    (expected,) = predictions(source, FEATURES)
    assert_same(predictions(net, FEATURES), (expected, expected))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrapped_nets_are_started(wrap: Any) -> None:
    source = trained(conv_net(2))
    net = conv_net(2)
    for index, block in enumerate(net.blocks):
        net.blocks[index] = wrap(block)
    warm_start(wrap(net), wrap(source))
    assert_same(predictions(net, FEATURES), predictions(source, FEATURES))
