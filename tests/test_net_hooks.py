"""A forward hook on the net is one function in all forms of the net: it sees predictions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from contract import same
from elasticnet import ElasticObjective, ElasticWrapper, Taps
from tiny_nets import TogetherHead, conv_blocks, conv_net

X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))


def doubled(module: nn.Module, inputs: Any, output: Any) -> Any:
    return output * 2


def clamped(module: nn.Module, inputs: Any, output: Any) -> Any:
    return output.clamp(0, 1)


def doubled_if_tensor(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A hook that people write: for anything but a tensor it would do nothing, without a word."""
    return output * 2 if isinstance(output, Tensor) else None


def doubled_in_place(module: nn.Module, inputs: Any, output: Any) -> None:
    output.mul_(2)


def written_by_data(module: nn.Module, inputs: Any, output: Any) -> None:
    output.data[:, :1] = 3


def minus_input(module: nn.Module, inputs: Any, output: Any) -> Any:
    (x,) = inputs
    return output - x.mean()


def scaled_by_depth(module: nn.Module, inputs: Any, keywords: Any, output: Any) -> Any:
    assert set(keywords) == {"depth"}
    return output * keywords["depth"]


def into_dict(module: nn.Module, inputs: Any, output: Any) -> Any:
    return {"logits": output}


class Kind(NamedTuple):
    """A kind of hook, and how it is registered."""

    hook: Callable[..., Any]
    options: Mapping[str, Any] = MappingProxyType({})


KINDS = {
    "doubled": Kind(doubled),
    "clamped": Kind(clamped),
    "doubled if tensor": Kind(doubled_if_tensor),
    "in place": Kind(doubled_in_place),
    "by data": Kind(written_by_data),
    "reads the input": Kind(minus_input),
    "with keywords": Kind(scaled_by_depth, {"with_kwargs": True}),
    "always called": Kind(doubled, {"always_call": True}),
    "in front": Kind(clamped, {"prepend": True}),
    "partial": Kind(functools.partial(doubled)),
}


def build(head: str, blocks: str) -> ElasticWrapper:
    torch.manual_seed(0)
    heads: dict[str, Callable[[], nn.Module]] = {
        "conv": lambda: nn.Conv2d(4, 4, 1),
        "nothing": nn.Identity,  # predictions are the features themselves
        "view": lambda: nn.Flatten(2),
        "together": lambda: TogetherHead("b c h w", 4, 4),
    }
    modules = {"conv": conv_blocks(3), "nothing": [nn.Identity() for _ in range(3)]}[blocks]
    return ElasticWrapper(modules, heads[head](), stem=nn.Conv2d(4, 4, 1)).eval()


@given(
    st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3, unique=True),
    st.sampled_from(["conv", "nothing", "view", "together"]),
    st.sampled_from(["conv", "nothing"]),
    st.sets(st.sampled_from([1, 2, 3]), min_size=1),
)
def test_a_hook_is_the_same_function_in_all_forms(
    kinds: list[str], head: str, blocks: str, depths: set[int]
) -> None:
    net = build(head, blocks)
    features = net(X, taps=net.taps).features
    for kind in kinds:
        net.register_forward_hook(KINDS[kind].hook, **KINDS[kind].options)
    with torch.no_grad():
        expected = {depth: net(X, depth=depth) for depth in net.taps}
        taps = net(X, taps=depths)
        for depth, prediction in zip(taps.depths, taps.predictions, strict=True):
            same(prediction, expected[depth], f"prediction at depth {depth}")
            same(net.truncate(depth)(X, depth=depth), expected[depth], f"truncate({depth})")
        same(net.forward_taps(X).predictions, tuple(expected.values()), "forward_taps")
        same(taps.features, features, "features")


def test_a_hook_is_called_for_each_prediction_shallowest_first() -> None:
    net = conv_net(3, stem=Shifted()).eval()
    calls: list[tuple[Any, Any, Tensor]] = []

    def record(module: nn.Module, inputs: Any, keywords: Any, output: Tensor) -> None:
        assert module is net
        calls.append((inputs, keywords, output))

    net.register_forward_hook(record, with_kwargs=True)
    taps = net(X, None, taps=[3, 1], shift=2.0)
    assert [keywords for _, keywords, _ in calls] == [
        {"depth": 1, "shift": 2.0},
        {"depth": 3, "shift": 2.0},
    ]
    assert [len(inputs) for inputs, _, _ in calls] == [1, 1]
    same([output for _, _, output in calls], list(taps.predictions), "what it saw")


class Shifted(nn.Module):
    def forward(self, x: Tensor, shift: float = 0.0) -> Tensor:
        return x + shift


def test_a_hook_may_make_anything_of_a_prediction() -> None:
    net = conv_net(2).eval()
    net.register_forward_hook(into_dict)
    same(net(X, taps=net.taps).predictions[0], net(X, depth=1), "a dict")


def test_the_objective_trains_what_a_hook_makes() -> None:
    net = conv_net(3)
    target = torch.zeros(2, 2, 5, 5)
    net.register_forward_hook(doubled_if_tensor)
    expected = [nn.functional.l1_loss(net(X, depth=depth), target) for depth in net.taps]
    losses = ElasticObjective(net, nn.L1Loss(), psd_weight=0.1)(X, target).per_depth
    same(list(losses.values()), expected, "losses")


def test_a_compiled_net_calls_its_hook_for_each_prediction() -> None:
    torch._dynamo.reset()
    net = conv_net(2).eval()
    net.register_forward_hook(doubled_in_place)
    expected = [net(X, depth=depth) for depth in net.taps]
    compiled: Any = torch.compile(net, backend="aot_eager")
    torch.testing.assert_close(list(compiled(X, taps=net.taps).predictions), expected)


def test_an_error_of_a_hook_is_its_own() -> None:
    def failing(module: nn.Module, inputs: Any, output: Any) -> None:
        raise TypeError("not today")

    net = conv_net(2)
    net.register_forward_hook(failing)
    with pytest.raises(TypeError, match=r"^not today$"):
        net(X, taps=net.taps)


def test_an_always_called_hook_runs_after_a_failed_pass() -> None:
    net = conv_net(2)
    outputs: list[Any] = []
    net.register_forward_hook(lambda *arguments: outputs.append(arguments[-1]), always_call=True)
    with pytest.raises(ValueError, match="depth 7"):
        net(X, taps=[7])
    assert outputs == [None]


# --- hooks that run once a pass


def negated(module: nn.Module, inputs: Any, output: Any) -> Any:
    if not isinstance(output, Taps):
        return -output
    return output._replace(predictions=tuple(-each for each in output.predictions))


def test_a_hook_may_ask_for_the_whole_taps() -> None:
    calls: list[Any] = []

    def whole(module: nn.Module, inputs: Any, output: Any) -> Any:
        calls.append(output)
        return negated(module, inputs, output)

    whole.takes_all_taps = True  # pyright: ignore[reportFunctionMemberAccess]
    net = conv_net(2)
    expected = [-each for each in net(X, taps=net.taps).predictions]
    net.register_forward_hook(whole)
    same(list(net(X, taps=net.taps).predictions), expected, "predictions")
    assert [type(each) for each in calls] == [Taps]


@pytest.mark.parametrize("module", ["torch.distributed.fsdp", "lightning.pytorch", "deepspeed.x"])
def test_a_hook_of_a_package_that_shards_or_counts_runs_once(module: str) -> None:
    calls: list[Any] = []

    def hook(net: nn.Module, inputs: Any, output: Any) -> None:
        calls.append(output)

    hook.__module__ = module
    net = conv_net(3)
    net.register_forward_hook(functools.partial(hook))
    net(X, taps=net.taps)
    assert [type(each) for each in calls] == [Taps]


def test_a_hook_that_runs_once_must_leave_a_taps() -> None:
    def first(module: nn.Module, inputs: Any, output: Any) -> Any:
        return output[0]

    first.takes_all_taps = True  # pyright: ignore[reportFunctionMemberAccess]
    net = conv_net(2)
    handle = net.register_forward_hook(first)
    with pytest.raises(TypeError, match=r"the forward hook .*first got a Taps.* returned a tuple"):
        net(X, taps=net.taps)
    handle.remove()
    assert isinstance(net(X, taps=net.taps), Taps)
