"""What every wrapped network must satisfy: one function for each invariant.

A test file inherits `NetworkContract` and gives `net` and `example`, or it calls
`check_contract(net, x, **keywords)`.
"""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import elasticnet
from elasticnet import ElasticObjective, ElasticWrapper

PLAIN_FORWARD = ElasticWrapper.forward


class NetworkContract:
    """Inherit it as `class TestMyNet(NetworkContract)`: it is tested in float32 and in float64.

    `keywords` are the keyword arguments that `net(example, **keywords)` needs.
    """

    keywords: ClassVar[Mapping[str, Any]] = {}

    def net(self) -> ElasticWrapper:
        raise NotImplementedError

    def example(self) -> Tensor:
        raise NotImplementedError

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_contract(self, dtype: torch.dtype) -> None:
        example = self.example()
        if example.is_floating_point():
            example = example.to(dtype)
        check_contract(self.net().to(dtype), example, **self.keywords)


def check_contract(net: ElasticWrapper, x: Any, **keywords: Any) -> None:
    """Check every invariant in eval mode; an AssertionError names the one that fails."""
    net.eval()
    for invariant in INVARIANTS:
        try:
            invariant(net, x, **keywords)
        except Exception as error:
            raise AssertionError(f"{invariant.__name__}: {error}") from error


def depths_agree(net: ElasticWrapper, x: Any, **keywords: Any) -> None:
    """All ways to a depth give the same bits: net, forward_taps, truncate, the parts by hand."""
    with torch.no_grad():
        taps = net.forward_taps(x, **keywords)
        assert taps.depths == net.taps, f"forward_taps gives {taps.depths}, the net has {net.taps}"
        assert len(taps.predictions) == len(taps.features) == len(net.taps), (
            "one prediction and one feature a tap"
        )
        for depth, prediction, features in zip(*taps, strict=True):
            expected_features, expected = by_hand(net, x, depth, **keywords)
            same(
                prediction, expected, f"forward_taps at depth {depth} against the parts run by hand"
            )
            same(features, expected_features, f"features at depth {depth}")
            same(net(x, depth=depth, **keywords), expected, f"net(x, depth={depth})")
            same(net.truncate(depth)(x, **keywords), expected, f"truncate({depth})(x)")
        same(net(x, **keywords), taps.predictions[-1], "net(x) against the deepest prediction")
        same(net(x, depth=-1, **keywords), taps.predictions[-1], "net(x, depth=-1)")


def requested_depths_only(net: ElasticWrapper, x: Any, **keywords: Any) -> None:
    """forward_taps(depths=...) changes no prediction or feature, and runs each block once."""
    with torch.no_grad():
        full = net.forward_taps(x, **keywords)
        for depth in net.taps:
            with recording(net) as calls:
                part = net.forward_taps(x, depths=[depth], **keywords)
            assert part.depths == (depth,), f"asked for {depth}, got {part.depths}"
            same(part.predictions, (full.predictions[net.taps.index(depth)],), f"depths=[{depth}]")
            same(part.features, full.features, f"features with depths=[{depth}]")
            assert calls.blocks == list(net.blocks), "every block runs once, in order"


def blocks_behind_the_depth_do_not_run(net: ElasticWrapper, x: Any, **keywords: Any) -> None:
    """net(x, depth=d) runs the first d blocks, once each and in order, and the head once."""
    with torch.no_grad():
        for depth in net.taps:
            with recording(net) as calls:
                net(x, depth=depth, **keywords)
            assert calls.blocks == list(net.blocks[:depth]), (
                f"depth {depth} ran {len(calls.blocks)} blocks"
            )
            assert calls.head == 1, f"depth {depth} called the head {calls.head} times"


def one_pass(net: ElasticWrapper, x: Any, **keywords: Any) -> None:
    """forward_taps runs each block once, and the head once, or else once a tap."""
    with torch.no_grad(), recording(net) as calls:
        net.forward_taps(x, **keywords)
    assert calls.blocks == list(net.blocks), (
        f"{len(calls.blocks)} block calls for {len(net.blocks)} blocks"
    )
    head_calls = 1 if takes_all_taps(net.head) else len(net.taps)
    assert calls.head == head_calls, (
        f"the head was called {calls.head} times for {len(net.taps)} taps"
    )


def a_pass_goes_on_where_it_rested(net: ElasticWrapper, x: Any, **keywords: Any) -> None:
    """run_to, continue_from and predict give every depth's bits, and run each block once."""
    if net._forward_pre_hooks or net._forward_hooks or type(net).forward is not PLAIN_FORWARD:
        return  # these are refused by name, see tests/test_run_to.py
    with torch.no_grad():
        expected = {depth: net(x, depth=depth, **keywords) for depth in net.taps}
        first, *deeper = net.taps
        with recording(net) as calls:
            state = net.run_to(x, first, **keywords)
            states = [state]
            for depth in deeper:
                state = net.continue_from(state, depth)
                states.append(state)
        assert calls.blocks == list(net.blocks), f"{len(calls.blocks)} block calls"
        assert calls.head == 0, "the head runs when a prediction is asked for"
        for state in reversed(states):  # a state stays what it was
            same(net.predict(state), expected[state.depth], f"predict at depth {state.depth}")
        if deeper:
            again = net.continue_from(states[0], -1)
            same(net.predict(again), expected[net.taps[-1]], "from the first to the deepest")


def truncated_keys_are_a_subset(net: ElasticWrapper, x: Any, **keywords: Any) -> None:
    """A truncated net has what its depth uses, under the same names, and nothing more."""
    whole = net.state_dict()
    for depth in net.taps:
        small = net.truncate(depth)
        behind = [f"blocks.{index}." for index in range(depth, len(net.blocks))]
        behind += [f"adapters.{tap}." for tap in net.taps if tap > depth]
        behind += [f"head_statistics.{tap}." for tap in net.taps if tap > depth]
        state = small.state_dict()
        assert set(state) == {name for name in whole if not name.startswith(tuple(behind))}, (
            f"keys at depth {depth}"
        )
        same(state, {name: whole[name] for name in state}, f"values at depth {depth}")
        assert small.training == net.training, "the mode is kept"
        assert small.taps == tuple(tap for tap in net.taps if tap <= depth), (
            f"truncate({depth}).taps = {small.taps}"
        )


def truncated_net_is_independent_and_elastic(net: ElasticWrapper, x: Any, **keywords: Any) -> None:
    """A truncated net is elastic below its depth, and shares no memory with the net."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for depth in net.taps:
            small = net.truncate(depth)
            for shallower in small.taps:
                expected = net(x, depth=shallower, **keywords)
                same(
                    small(x, depth=shallower, **keywords),
                    expected,
                    f"truncate({depth})(x, depth={shallower})",
                )
                same(
                    small.truncate(shallower)(x, **keywords),
                    expected,
                    f"truncate({depth}).truncate({shallower})(x)",
                )
            before, state = net(x, depth=depth, **keywords), copy.deepcopy(net.state_dict())
            shared = {p.data_ptr() for p in net.parameters()} & {
                p.data_ptr() for p in small.parameters()
            }
            assert not shared, (
                f"truncate({depth}) shares the memory of {len(shared)} parameters with the net"
            )
            disturb(small)
            same(net.state_dict(), state, f"the net's state after truncate({depth}) was changed")
            same(
                net(x, depth=depth, **keywords),
                before,
                f"the net after truncate({depth}) was changed",
            )
            small = net.truncate(depth)
            disturb(net)
            same(small(x, **keywords), before, f"truncate({depth}) after the net was changed")
            net.load_state_dict(state)


def head_stands_once(net: ElasticWrapper, x: Any, **keywords: Any) -> None:
    """The shared head is one module: each of its parameters stands once, under `head.`."""
    named = list(net.named_parameters(remove_duplicate=False))
    state = net.state_dict(keep_vars=True)
    for name, parameter in net.head.named_parameters():
        assert [place for place, other in named if other is parameter] == [f"head.{name}"], (
            f"head.{name}"
        )
        assert [place for place, other in state.items() if other is parameter] == [
            f"head.{name}"
        ], f"head.{name}"
    parts = {"stem", "blocks", "head", "adapters", "head_statistics"}
    assert {name.split(".")[0] for name in state} <= parts, f"keys {list(state)}"


def state_dict_round_trip(net: ElasticWrapper, x: Any, **keywords: Any) -> None:
    """load_state_dict makes a net with other values the same function at every depth."""
    other = copy.deepcopy(net)
    disturb(other)
    other.load_state_dict(net.state_dict())
    same(other.state_dict(), dict(net.state_dict()), "state dict")
    with torch.no_grad():
        same(
            other.forward_taps(x, **keywords),
            net.forward_taps(x, **keywords),
            "predictions after load_state_dict",
        )


def at_depth_is_restored(net: ElasticWrapper, x: Any, **keywords: Any) -> None:
    """at_depth changes what net(x) does, nests, and is put back, also after an exception."""
    with torch.no_grad():
        deepest = net(x, **keywords)
        for depth in net.taps:
            expected = net(x, depth=depth, **keywords)
            with net.at_depth(depth) as inside:
                assert inside is net, "at_depth gives the net itself"
                same(net(x, **keywords), expected, f"net(x) inside at_depth({depth})")
                with net.at_depth(-1):
                    same(net(x, **keywords), deepest, "net(x) inside a nested at_depth(-1)")
                same(
                    net(x, **keywords),
                    expected,
                    f"net(x) after a nested at_depth, inside at_depth({depth})",
                )
            same(net(x, **keywords), deepest, f"net(x) after at_depth({depth})")
            with pytest.raises(KeyError, match="on purpose"), net.at_depth(depth):
                raise KeyError("on purpose")
            same(net(x, **keywords), deepest, f"net(x) after an exception in at_depth({depth})")


def every_block_learns_from_its_own_tap(net: ElasticWrapper, x: Any, **keywords: Any) -> None:
    """The loss of tap d alone reaches block d and all before it, and no block behind it."""
    for depth in net.taps:
        prediction = net.forward_taps(x, **keywords).predictions[net.taps.index(depth)]
        reached = blocks_reached(net, projection(prediction))
        wanted = [index for index in learning_blocks(net) if index < depth]
        assert reached == wanted, (
            f"the loss at depth {depth} reaches blocks {reached}, expected {wanted}"
        )


def objective_reaches_the_same_blocks(net: ElasticWrapper, x: Any, **keywords: Any) -> None:
    """With all weight on depth d the objective gives gradient to blocks 1..d and to no other."""
    for depth in net.taps:
        weights = {tap: float(tap == depth) for tap in net.taps}
        objective = ElasticObjective(
            net, lambda prediction, target: projection(prediction), 0.0, tap_weights=weights
        )
        terms = objective(x, None, **keywords)
        reached = blocks_reached(net, terms.total)
        wanted = [index for index in learning_blocks(net) if index < depth]
        assert reached == wanted, (
            f"weight on depth {depth} alone reaches blocks {reached}, expected {wanted}"
        )
        # a tap of weight 0 is not computed, but for the deepest
        computed = tuple(sorted({depth, net.taps[-1]}))
        assert tuple(terms.per_depth) == computed, (
            f"losses for {tuple(terms.per_depth)}, expected {computed}"
        )


def save_and_load_every_depth(net: ElasticWrapper, x: Any, **keywords: Any) -> None:
    """elasticnet.load gives back, from one file, exactly the net cut to any depth."""

    def build() -> ElasticWrapper:
        other = copy.deepcopy(net)
        disturb(other)
        return other

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "net.safetensors"
        elasticnet.save(net, path)
        for depth in (None, *net.taps):
            loaded = elasticnet.load(path, depth, build=build)
            assert not loaded.training, "load gives a net in eval mode"
            same(
                loaded.state_dict(),
                dict(net.truncate(depth or -1).state_dict()),
                f"state loaded at depth {depth}",
            )
            same(
                loaded(x, **keywords),
                net(x, depth=depth, **keywords),
                f"prediction loaded at depth {depth}",
            )


def check_finds_nothing(net: ElasticWrapper, x: Any, **keywords: Any) -> None:
    """net.check reports each tap's shapes and no problem."""
    report = net.check(x, strict=True, **keywords)
    with torch.no_grad():
        taps = net.forward_taps(x, **keywords)
    assert [tap.depth for tap in report] == list(net.taps), (
        f"reported depths {[tap.depth for tap in report]}"
    )
    assert [tap.shape for tap in report] == [tuple(feature.shape) for feature in taps.features], (
        "feature shapes"
    )
    assert all(tap.finite and tap.problem is None for tap in report), str(report)


INVARIANTS: tuple[Callable[..., None], ...] = (
    depths_agree,
    requested_depths_only,
    blocks_behind_the_depth_do_not_run,
    one_pass,
    a_pass_goes_on_where_it_rested,
    truncated_keys_are_a_subset,
    truncated_net_is_independent_and_elastic,
    head_stands_once,
    state_dict_round_trip,
    at_depth_is_restored,
    every_block_learns_from_its_own_tap,
    objective_reaches_the_same_blocks,
    save_and_load_every_depth,
    check_finds_nothing,
)


def by_hand(net: ElasticWrapper, x: Any, depth: int, **keywords: Any) -> tuple[Tensor, Any]:
    """Return features and prediction at `depth` from the parts called one by one: the oracle."""
    features = x
    context: Any = keywords
    if net.stem is not None:
        names = inspect.signature(net.stem.forward).parameters
        for_stem = {name: value for name, value in keywords.items() if name in names}
        if getattr(net.stem, "takes_last_depth", False):
            for_stem["last_depth"] = depth
        features = net.stem(x, **for_stem)
        if isinstance(features, tuple):
            features, context = features
    stem_output = features
    for index in range(depth):
        block = net.blocks[index]
        if net.call_block is not None:
            features, context = net.call_block(block, features, context, index)
        else:
            features = block(features)
            if isinstance(features, tuple):
                features = features[0]
    adapted = features
    if str(depth) in net.adapters:
        adapted = net.adapters[str(depth)](features)
    if takes_all_taps(net.head):
        adapted = (adapted,)
    head = net.head
    if str(depth) in net.head_statistics:
        head = copy.deepcopy(net.head)
        head.load_state_dict(net.head_statistics[str(depth)].state_dict(), strict=False)
    if net.head_skip == "stem":
        prediction = head(adapted, stem_output)
    elif net.head_skip == "context":
        prediction = net.head(adapted, (context,) if takes_all_taps(net.head) else context)
    elif net.head_skip == "input":
        prediction = head(adapted, x)
    else:
        prediction = head(adapted)
    if takes_all_taps(net.head):
        (prediction,) = prediction
    return features, prediction


def takes_all_taps(head: nn.Module) -> bool:
    return getattr(head, "takes_all_taps", False)


def same(actual: Any, expected: Any, what: str) -> None:
    """Assert that tensors, or containers of them, are equal bit for bit, dtype and shape too."""
    if _plainly_equal(actual, expected):
        return

    def message(difference: str) -> str:
        return f"{what}: {difference}"

    torch.testing.assert_close(actual, expected, rtol=0, atol=0, msg=message)


def _plainly_equal(actual: Any, expected: Any) -> bool:
    """Return whether both are the same, as far as that is quick to tell.

    `assert_close` takes twenty times as long, and nearly all that is compared is equal.
    """
    if isinstance(actual, Tensor) and isinstance(expected, Tensor):
        return _plainly_equal_tensors(actual, expected)
    if isinstance(actual, dict) and isinstance(expected, dict):
        if actual.keys() != expected.keys():
            return False
        return all(_plainly_equal(actual[key], expected[key]) for key in actual)
    if isinstance(actual, (list, tuple)) and isinstance(expected, (list, tuple)):
        if len(actual) != len(expected):
            return False
        return all(_plainly_equal(*pair) for pair in zip(actual, expected, strict=True))
    return False


def _plainly_equal_tensors(actual: Tensor, expected: Tensor) -> bool:
    """Return whether two dense tensors are the same; False for other kinds of tensors."""
    if actual.is_meta or actual.layout != torch.strided or expected.layout != torch.strided:
        return False
    if (actual.dtype, actual.device) != (expected.dtype, expected.device):
        return False
    return torch.equal(actual, expected)  # and of one shape


def disturb(net: nn.Module) -> None:
    """Change every parameter and every floating-point buffer in place."""
    with torch.no_grad():
        for tensor in net.state_dict(keep_vars=True).values():
            if tensor.is_floating_point():
                tensor.mul_(0.5).add_(0.25)


def projection(prediction: Any) -> Tensor:
    """Return a scalar that depends on every entry of a prediction, each with its own weight."""
    if isinstance(prediction, Tensor):
        weights = torch.linspace(
            0.5, 1.5, prediction.numel(), dtype=prediction.dtype, device=prediction.device
        )
        return (prediction.flatten() * weights).sum()
    parts = prediction.values() if isinstance(prediction, Mapping) else prediction
    return torch.stack([projection(part) for part in parts]).sum()


def learning_blocks(net: ElasticWrapper) -> list[int]:
    """Return the index of every block that has parameters to learn."""
    return [
        index
        for index, block in enumerate(net.blocks)
        if any(parameter.requires_grad for parameter in block.parameters())
    ]


def blocks_reached(net: ElasticWrapper, loss: Tensor) -> list[int]:
    """Return the index of every block that the loss gives a gradient other than zero."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    reached: set[int] = set()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and gradient.count_nonzero() > 0:
            reached.add(id(parameter))
    return [
        index
        for index, block in enumerate(net.blocks)
        if any(id(parameter) in reached for parameter in block.parameters())
    ]


class Calls:
    """What ran inside `recording`: the blocks in order, and how often the head did."""

    def __init__(self) -> None:
        self.blocks: list[nn.Module] = []
        self.head = 0


@contextmanager
def recording(net: ElasticWrapper) -> Generator[Calls, None, None]:
    """Record, inside a `with` block, which parts of the net run."""
    calls = Calls()

    def block_runs(block: nn.Module, inputs: Any) -> None:
        calls.blocks.append(block)

    def head_runs(head: nn.Module, inputs: Any) -> None:
        calls.head += 1

    # A set, because one block may stand at several depths.
    hooks = [block.register_forward_pre_hook(block_runs) for block in {*net.blocks}]
    hooks.append(net.head.register_forward_pre_hook(head_runs))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
