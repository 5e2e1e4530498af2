"""Start a training from the weights of another network: of another depth, or with another head."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from elasticnet.wrapper import ElasticWrapper


@runtime_checkable
class _CanBeIdentity(Protocol):
    def init_identity(self) -> None: ...


class _Pair(NamedTuple):
    """One part of a network, and the same part of the network whose weights it takes."""

    name: str
    mine: nn.Module | None
    theirs: nn.Module | None


@torch.no_grad()
def warm_start(
    net: ElasticWrapper, source: ElasticWrapper, *, may_differ: Collection[str] = ()
) -> list[str]:
    """Copy the weights of `source` into `net` where they fit, and say what was taken.

    Stem and blocks are always taken. Blocks that `source` does not have are made identities by
    their `init_identity()`, so that every deeper tap starts as its deepest one; blocks that `net`
    does not have are left out. The head is taken if its shapes are equal and, where builders made
    both networks, they were built alike. An adapter is taken if its shapes are equal. What is not
    taken stays as it was made.

    Args:
        net: The network to start; its weights are changed.
        source: The network to start from; nothing is changed in it.
        may_differ: Names of the builders' arguments that leave the head what it is, such as the
            number of blocks. Any other argument with another value means another head.

    Returns:
        Short phrases that say what was taken and what was made anew, with the reason.

    Raises:
        ValueError: Stem or blocks have other shapes, or a new block has no `init_identity()`.
            Nothing has been copied then.
    """
    num_common = min(len(net.blocks), len(source.blocks))
    body = _body_pairs(net, source, num_common)
    # All refusals come before the first copy.
    _refuse_another_body(body)
    new_blocks = _new_blocks(net, num_common)

    for pair in body:
        _copy(pair)
    for block in new_blocks:
        block.init_identity()

    report = [f"stem and {num_common} of {len(source.blocks)} blocks taken"]
    if new_blocks:
        report.append(f"{len(new_blocks)} new blocks start as identities")
    report.append(_start_head(net, source, may_differ))
    report += _start_adapters(net, source, num_common)
    return report


def _body_pairs(net: ElasticWrapper, source: ElasticWrapper, num_common: int) -> list[_Pair]:
    pairs = [_Pair("stem", net.stem, source.stem)]
    for index in range(num_common):
        pairs.append(_Pair(f"blocks.{index}", net.blocks[index], source.blocks[index]))
    return pairs


def _refuse_another_body(pairs: list[_Pair]) -> None:
    for pair in pairs:
        difference = _difference(pair)
        if difference:
            raise ValueError(
                f"warm start: {pair.name} differs: {difference}; "
                "the body must be built alike (channels, block)"
            )


def _new_blocks(net: ElasticWrapper, num_common: int) -> list[_CanBeIdentity]:
    """Return the blocks that only `net` has; refuse one that cannot be made an identity."""
    new_blocks: list[_CanBeIdentity] = []
    for index, block in enumerate(net.blocks):
        if index < num_common:
            continue
        if not isinstance(block, _CanBeIdentity):
            raise ValueError(
                f"warm start: blocks.{index} is new, and {type(block).__name__} has no "
                f"init_identity(): give it one, or take {num_common} blocks"
            )
        new_blocks.append(block)
    return new_blocks


def _start_head(net: ElasticWrapper, source: ElasticWrapper, may_differ: Collection[str]) -> str:
    """Take the head if it is the same; return the phrase that says so, or why it is not."""
    pair = _Pair("head", net.head, source.head)
    reason = _built_differently(net, source, may_differ) or _difference(pair)
    if reason:
        return f"the head is made anew ({reason})"
    _copy(pair)
    return "the head taken"


def _start_adapters(net: ElasticWrapper, source: ElasticWrapper, num_common: int) -> list[str]:
    """Take the adapters that fit; return a phrase for each of the others."""
    report: list[str] = []
    for depth, adapter in net.adapters.items():
        theirs = source.adapters[depth] if depth in source.adapters else None
        pair = _Pair(f"adapters.{depth}", adapter, theirs)
        difference = _difference(pair)
        if difference:
            report.append(f"the adapter of depth {depth} is made anew ({difference})")
        else:
            _copy(pair)
    for depth in source.adapters:
        if int(depth) <= num_common and depth not in net.adapters:
            report.append(f"the adapter of depth {depth} is left out")
    return report


def _built_differently(
    net: ElasticWrapper, source: ElasticWrapper, may_differ: Collection[str]
) -> str:
    """Say how the builders' arguments differ; empty if they do not, or if no builder made both."""
    if net.origin is None or source.origin is None:
        return ""
    mine = net.origin
    theirs = source.origin
    if mine.architecture != theirs.architecture:
        return f"{theirs.architecture} there, {mine.architecture} here"
    differences: list[str] = []
    for name, value in mine.arguments.items():
        their_value = theirs.arguments.get(name)
        if name not in may_differ and value != their_value:
            differences.append(f"{name} {their_value} there, {value} here")
    return ", ".join(differences)


def _difference(pair: _Pair) -> str:
    """Say why the weights do not fit, by the first one that does not; empty if all fit."""
    mine = _shapes(pair.mine)
    theirs = _shapes(pair.theirs)
    for name in sorted({*mine, *theirs}):
        if mine.get(name) != theirs.get(name):
            return f"{name} is {theirs.get(name, 'absent')} there, {mine.get(name, 'absent')} here"
    return ""


def _shapes(module: nn.Module | None) -> dict[str, tuple[int, ...]]:
    if module is None:
        return {}
    state: dict[str, Tensor] = module.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _copy(pair: _Pair) -> None:
    if pair.mine is not None and pair.theirs is not None:
        pair.mine.load_state_dict(pair.theirs.state_dict())
