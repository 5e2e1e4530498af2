"""Start a training from the weights of another network: of another depth, another scale, another
head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elasticnet.wrapper import ElasticWrapper

# arguments of a builder that leave the head what it is
SAME_HEAD = ("num_blocks", "fold", "tap_affine")


@torch.no_grad()
def warm_start(net: ElasticWrapper, source: ElasticWrapper) -> list[str]:
    """Copy the weights of `source` into `net` as far as they fit; return lines that say what was
    taken and what not.

    Stem and blocks are taken and must have equal shapes (ValueError otherwise). Blocks that
    `source` does not have are made identities by `init_identity()`, so that all deeper exits start
    as its deepest one; blocks that `net` does not have are left out. Head and adapters are taken
    where they do the same: their shapes are equal, and both nets, where a builder made them, were
    built alike but for the number of blocks. Otherwise they stay as they were made.
    """
    common = min(len(net.blocks), len(source.blocks))
    pairs = {"stem": (getattr(net, "stem", None), getattr(source, "stem", None))}
    pairs |= {
        f"blocks.{index}": (net.blocks[index], source.blocks[index]) for index in range(common)
    }
    for name, (mine, theirs) in pairs.items():
        if problem := _difference(mine, theirs):
            raise ValueError(
                f"warm start: {name} differs: {problem}; the body must be built alike (channels, block)"
            )
    for index, block in enumerate(net.blocks[common:], start=common):
        if not hasattr(block, "init_identity"):
            raise ValueError(
                f"warm start: blocks.{index} is new, and {type(block).__name__} has no init_identity(): give it one, "
                f"or take {common} blocks"
            )
        block.init_identity()  # pyright: ignore[reportCallIssue]
    for mine, theirs in pairs.values():
        _copy(mine, theirs)

    said = [f"stem and {common} of {len(source.blocks)} blocks taken"]
    if len(net.blocks) > common:
        said.append(f"{len(net.blocks) - common} new blocks start as identities")
    reason = _built_differently(net, source) or _difference(net.head, source.head)
    if reason:
        said.append(f"the head is made anew ({reason})")
    else:
        _copy(net.head, source.head)
        said.append("the head taken")
    for depth, adapter in net.adapters.items():
        other = source.adapters[depth] if depth in source.adapters else None
        if reason := _difference(adapter, other):
            said.append(f"the adapter of depth {depth} is made anew ({reason})")
        else:
            _copy(adapter, other)
    for depth in source.adapters:
        if int(depth) <= common and depth not in net.adapters:
            said.append(f"the adapter of depth {depth} is left out")
    return said


def _built_differently(net: ElasticWrapper, source: ElasticWrapper) -> str:
    if net.origin is None or source.origin is None:
        return ""
    (architecture, mine), (other, theirs) = net.origin, source.origin
    if architecture != other:
        return f"{other} there, {architecture} here"
    names = [name for name in mine if name not in SAME_HEAD and mine[name] != theirs.get(name)]
    return ", ".join(f"{name} {theirs.get(name)} there, {mine[name]} here" for name in names)


def _difference(mine: nn.Module | None, theirs: nn.Module | None) -> str:
    """Why the state of one module does not fit the other, in a few words; empty when it fits."""
    shapes, others = _shapes(mine), _shapes(theirs)
    for name in sorted({*shapes, *others}):
        if shapes.get(name) != others.get(name):
            return (
                f"{name} is {others.get(name, 'absent')} there, {shapes.get(name, 'absent')} here"
            )
    return ""


def _shapes(module: nn.Module | None) -> dict[str, tuple[int, ...]]:
    state: dict[str, Tensor] = {} if module is None else module.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _copy(mine: nn.Module | None, theirs: nn.Module | None) -> None:
    if mine is not None and theirs is not None:
        mine.load_state_dict(theirs.state_dict())
