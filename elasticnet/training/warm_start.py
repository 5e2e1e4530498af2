"""Start a training from the weights of another network: of another depth, or with another head."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from elasticnet._modules.copies import detached_copy
from elasticnet._modules.ties import find_conflict, same_bytes, shared_names
from elasticnet._modules.unwrapping import plain_name, unwrapped
from elasticnet.wrapper import ElasticWrapper


@runtime_checkable
class _CanBeIdentity(Protocol):
    def init_identity(self) -> None: ...


class _Pair(NamedTuple):
    """One part of a network, and the same part of the network whose weights it takes."""

    name: str
    mine: nn.Module | None
    theirs: nn.Module | None


class _Choice(NamedTuple):
    """The parts of one kind that are taken, and phrases on what happens to these and the others."""

    taken: list[_Pair]
    report: list[str]


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
        net: The network to start; its weights are changed. It may be compiled or wrapped for
            parallel training, and so may `source`.
        source: The network to start from; nothing is changed in it.
        may_differ: Names of the builders' arguments that leave the head what it is, such as the
            number of blocks. Any other argument with another value means another head.

    Returns:
        Short phrases that say what was taken and what was made anew, with the reason.

    Raises:
        ValueError: Stem or blocks have other shapes; a new block has no `init_identity()`, or would
            change weights that it shares with what is taken; or `net` shares weights that differ in
            `source`. Nothing has been copied then.
    """
    net = unwrapped(net)
    source = unwrapped(source)
    num_common = min(len(net.blocks), len(source.blocks))
    body = _body_pairs(net, source, num_common)
    head = _choose_head(net, source, may_differ)
    adapters = _choose_adapters(net, source, num_common)
    taken = [*body, *head.taken, *adapters.taken]
    # All refusals come before the first copy.
    _refuse_another_body(body)
    new_blocks = _new_blocks(net, num_common)
    _refuse_untied(taken)
    _refuse_shared_new_blocks(new_blocks, taken)

    for pair in taken:
        _copy(pair)
    for block in new_blocks.values():
        block.init_identity()

    report = [f"stem and {num_common} of {len(source.blocks)} blocks taken"]
    if new_blocks:
        report.append(f"{len(new_blocks)} new blocks start as identities")
    return [*report, *head.report, *adapters.report]


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


def _new_blocks(net: ElasticWrapper, num_common: int) -> dict[str, _CanBeIdentity]:
    """Return the blocks that only `net` has, by name; refuse one that cannot be an identity."""
    new_blocks: dict[str, _CanBeIdentity] = {}
    for index, block in enumerate(net.blocks):
        if index < num_common:
            continue
        if not isinstance(block, _CanBeIdentity):
            raise ValueError(
                f"warm start: blocks.{index} is new, and {type(block).__name__} has no "
                f"init_identity(): give it one, or take {num_common} blocks"
            )
        new_blocks[f"blocks.{index}"] = block
    return new_blocks


def _refuse_untied(taken: list[_Pair]) -> None:
    """Refuse weights that are shared here and differ in the source: one copy would undo another."""
    targets: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    for pair in taken:
        targets.update(_named_state(pair.name, pair.mine))
        values.update(_named_state(pair.name, pair.theirs))
    conflict = find_conflict(targets, values)
    if conflict is not None:
        raise ValueError(
            f"warm start: {conflict.first} and {conflict.second} are shared here, and differ in "
            "the source: build a net in which they are separate"
        )


def _refuse_shared_new_blocks(new_blocks: Mapping[str, Any], taken: list[_Pair]) -> None:
    """Refuse a new block whose init_identity() would change weights that were just taken."""
    taken_state: dict[str, Tensor] = {}
    for pair in taken:
        taken_state.update(_named_state(pair.name, pair.mine))
    for name, block in new_blocks.items():
        state = _named_state(name, block)
        shared = shared_names(state, taken_state)
        if not shared:
            continue
        trial = detached_copy(block)
        trial.init_identity()
        changed_state = _named_state(name, trial)
        for own_name, taken_name in shared.items():
            if not same_bytes(state[own_name], changed_state[own_name]):
                raise ValueError(
                    f"warm start: {own_name} is new and must change to make its block the "
                    f"identity, but is shared with {taken_name}, which is taken: build a net in "
                    "which they are separate"
                )


def _choose_head(
    net: ElasticWrapper, source: ElasticWrapper, may_differ: Collection[str]
) -> _Choice:
    """Take the head if it is the same; otherwise say why it is not."""
    pair = _Pair("head", net.head, source.head)
    reason = _built_differently(net, source, may_differ) or _difference(pair)
    if reason:
        return _Choice(taken=[], report=[f"the head is made anew ({reason})"])
    return _Choice(taken=[pair], report=["the head taken"])


def _choose_adapters(net: ElasticWrapper, source: ElasticWrapper, num_common: int) -> _Choice:
    """Take the adapters that fit; the report has a phrase for each of the others."""
    taken: list[_Pair] = []
    report: list[str] = []
    for depth, adapter in net.adapters.items():
        theirs = source.adapters[depth] if depth in source.adapters else None
        pair = _Pair(f"adapters.{depth}", adapter, theirs)
        difference = _difference(pair)
        if difference:
            report.append(f"the adapter of depth {depth} is made anew ({difference})")
        else:
            taken.append(pair)
    for depth in source.adapters:
        if int(depth) <= num_common and depth not in net.adapters:
            report.append(f"the adapter of depth {depth} is left out")
    return _Choice(taken=taken, report=report)


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
    return {name: tuple(tensor.shape) for name, tensor in _plain_state(module).items()}


def _named_state(name: str, module: nn.Module | None) -> dict[str, Tensor]:
    """Return the tensors of a part of a net, by their names in the whole net."""
    return {f"{name}.{key}": tensor for key, tensor in _plain_state(module).items()}


def _plain_state(module: nn.Module | None) -> dict[str, Tensor]:
    """Return the tensors of a module by the names that they have if nothing is compiled."""
    if module is None:
        return {}
    inner = unwrapped(module)
    state: dict[str, Tensor] = inner.state_dict()
    return {plain_name(inner, key): tensor for key, tensor in state.items()}


def _copy(pair: _Pair) -> None:
    """Copy the weights of one part, whose names and shapes are known to be the same."""
    theirs = _plain_state(pair.theirs)
    for name, tensor in _plain_state(pair.mine).items():
        tensor.copy_(theirs[name])
