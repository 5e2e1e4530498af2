"""What sits on the net itself (hooks, a class, buffers) stays in every form, or is named."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contract import same
from elasticnet import ElasticWrapper
from tiny_nets import TinyBlock, conv_net

X = torch.rand(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))


def halved(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0] / 2, *inputs[1:])


def negated(module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return -output
    return output._replace(predictions=tuple(-each for each in output.predictions))


class Normalising(ElasticWrapper):
    """A net that normalises its input, as people write models."""

    def __init__(self, channels: int) -> None:
        blocks = [TinyBlock("residual", "b c h w", channels) for _ in range(3)]
        super().__init__(blocks, nn.Conv2d(channels, 2, 1))
        self.register_buffer("mean", torch.full((1, channels, 1, 1), 0.5))

    def forward(self, x: Tensor, *arguments: Any, **keywords: Any) -> Any:
        return super().forward(x - self.get_buffer("mean"), *arguments, **keywords)


def hooked() -> ElasticWrapper:
    net = conv_net(3)
    net.register_forward_pre_hook(halved)
    net.register_forward_hook(negated)
    return net


def with_buffer() -> ElasticWrapper:
    net = conv_net(3)
    net.register_buffer("steps", torch.tensor(7))
    return net


MAKERS: dict[str, Callable[[], ElasticWrapper]] = {
    "hooks": hooked,
    "class": lambda: Normalising(4),
    "buffer": with_buffer,
}


def zeroed(block: nn.Module) -> None:
    block.init_identity()  # pyright: ignore[reportCallIssue]


@pytest.fixture(params=list(MAKERS))
def net(request: pytest.FixtureRequest) -> ElasticWrapper:
    torch.manual_seed(0)
    return MAKERS[request.param]().eval()


def test_every_form_is_the_same_function(net: ElasticWrapper) -> None:
    grown = net.grow([TinyBlock("residual", "b c h w", 4)], example=X)
    with torch.no_grad():
        taps = net(X, taps=net.taps)
        for depth, prediction in zip(net.taps, taps.predictions, strict=True):
            same(net(X, depth=depth), prediction, f"net(x, depth={depth})")
            same(net.truncate(depth)(X), prediction, f"truncate({depth})")
            same(grown(X, depth=depth), prediction, f"grown, depth {depth}")
        same(grown(X), net(X), "grown")
        same(net.with_taps([3])(X), net(X), "with_taps")
    assert type(net.truncate(1)) is type(grown) is type(net)


def test_buffers_stay_and_are_copied(net: ElasticWrapper) -> None:
    own = set(dict(net.named_buffers(recurse=False)))
    small = net.truncate(2)
    assert set(dict(small.named_buffers(recurse=False))) == own
    for name in own:
        assert small.get_buffer(name) is not net.get_buffer(name)
        assert net.with_taps([3]).get_buffer(name) is net.get_buffer(name)


def test_check_sees_what_the_net_sees() -> None:
    """The stem takes floats alone; a hook on the net makes them of bytes."""
    net = conv_net(2, stem=nn.Conv2d(4, 4, 1))
    net.register_forward_pre_hook(lambda module, inputs: (inputs[0] / 255, *inputs[1:]))
    outputs: list[Any] = []
    net.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    image = torch.randint(0, 256, (1, 4, 5, 5), dtype=torch.uint8)
    assert [report.problem for report in net.check(image)] == [None, None]
    assert outputs == []


def test_hooks_of_a_new_net_are_its_own() -> None:
    net = hooked().eval()
    expected = net(X)
    other = net.with_taps([3])
    other._forward_pre_hooks.clear()
    other.register_forward_hook(lambda module, inputs, output: None)
    same(net(X), expected, "the net, after the hooks of the other were changed")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("hooks", "the hook halved"),
        ("class", "the class Normalising"),
        ("buffer", "the buffer 'steps'"),
    ],
)
def test_a_sequence_cannot_hold_them_and_says_so(name: str, what: str) -> None:
    net = MAKERS[name]()
    assert what in net.additions()
    with pytest.raises(ValueError, match=f"a net with {what} is not a plain sequence"):
        net.to_sequential()


def test_a_net_as_it_is_built_has_no_additions() -> None:
    assert conv_net(2).additions() == []


def test_parameters_and_modules_on_the_net_are_named() -> None:
    net = conv_net(2)
    net.register_parameter("gain", nn.Parameter(torch.ones(1)))
    net.extra = nn.Linear(2, 2)
    assert net.additions() == ["the parameter 'gain'", "the module 'extra'"]


def test_a_replaced_forward_is_named() -> None:
    """Bound to the whole net, it would run all of it in the truncated one."""
    net = conv_net(3)

    def doubled(self: ElasticWrapper, *inputs: Any, **keywords: Any) -> Any:
        return 2 * ElasticWrapper.forward(self, *inputs, **keywords)

    net.forward = types.MethodType(doubled, net)
    assert net.additions() == ["a replaced forward"]
    calls: list[Callable[[], Any]] = [
        lambda: net.truncate(1),
        lambda: net.with_taps([3]),
        lambda: net.grow([copy.deepcopy(net.blocks[0])], X, init=zeroed),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"net\.forward was replaced.*del net\.forward"):
            call()
    with pytest.raises(ValueError, match="a net with a replaced forward is not"):
        net.to_sequential()


def test_a_forward_that_was_put_back_is_no_replacement() -> None:
    """As accelerate puts it back: the method of the class, set as an attribute."""
    net = conv_net(3).eval()
    method = net.forward
    net.forward = method
    assert net.additions() == []
    small = net.truncate(1)
    same(small(X), net(X, depth=1), "truncated")
    assert small.taps == (1,)


def test_a_compiled_net_is_truncated_to_one_that_is_not() -> None:
    net = conv_net(3).eval()
    net.compile(backend="eager")
    same(net.truncate(1)(X), net(X, depth=1), "truncated")


def test_growing_compares_with_the_net_that_the_user_holds() -> None:
    """A hook that depends on the net's identity is another function on a copy."""
    net = conv_net(2).eval()
    original = net

    def only_here(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        return (inputs[0] + 1, *inputs[1:]) if module is original else None

    net.register_forward_pre_hook(only_here)
    with pytest.raises(ValueError, match="a copy of this net gives another prediction"):
        net.grow([TinyBlock("residual", "b c h w", 4)], example=X)
