"""Finds the blocks of an image model by running it once, and splits it there."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elasticnet.retrofit.parts import Split, assemble, children
from elasticnet.wrapper import evaluating

NEARLY, LEAST = 0.9, 0.5  # shares of the parameters that the blocks of one resolution hold


class Ran(NamedTuple):
    """A block-like module that ran: its path, the shape of what it returned, and when that was."""

    name: str
    shape: tuple[int, ...]
    time: int


def split_found(
    model: nn.Module,
    example: Tensor,
    stages: int | None,
    blocks: str | None,
    prefix_tokens: int,
    leaf_functions: Iterable[Callable[..., Any]] = (),
) -> Split:
    """Split `model` at the blocks found: the first choice that is a chain and reproduces the model.

    stages, blocks: see `timm.split`. prefix_tokens: how many tokens stand before the grid in a
    token layout, where the blocks have them already.
    """
    if stages is not None and (type(stages) is not int or stages < 1):
        raise ValueError(f"stages {stages!r}: expected a whole number, at least 1")
    if stages is not None and blocks is not None:
        raise ValueError(f"stages={stages} and blocks={blocks!r}: pass one of them")
    ran = _run(model, example)
    if blocks is None:
        choices = _choices(model, ran, stages)
    else:
        named = [ran[name] for name in children(model, blocks) if name in ran]
        if not named:
            raise ValueError(
                f"blocks {blocks!r}: none of its modules ran once and returned features"
            )
        choices = iter([named])
    reasons = []
    for taps in choices:
        layout = _layout(model, taps[-1].shape)
        prefix = _prefix_tokens(taps[-1].shape, example, prefix_tokens) if layout == "b n c" else 0
        try:
            return assemble(
                model,
                [tap.name for tap in taps],
                example,
                layout=layout,
                prefix_tokens=prefix,
                adapters=stages is not None or blocks is not None,
                leaf_functions=leaf_functions,
            )
        except ValueError as error:
            reasons.append(str(error))
    if not reasons:
        few = "its last resolution has no two blocks of one shape; stages=k taps the blocks of the last k resolutions"
        reasons = [
            few
            if stages is None
            else f"there are no two blocks in its last {stages} resolutions, or not so many"
        ]
    raise ValueError(f"{type(model).__name__} is not split: {reasons[0]}")


def _run(model: nn.Module, example: Tensor) -> dict[str, Ran]:
    """Run the model once; return the modules that ran once and returned features, by path, in the
    order of return.
    """
    calls: dict[str, list[Ran]] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            shape = tuple(first.shape) if isinstance(first, Tensor) else ()
            calls.setdefault(name, []).append(Ran(name, shape, len(calls)))

        return hook

    hooks = [
        module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name
    ]
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: ran[0] for name, ran in calls.items() if len(ran) == 1 and len(ran[0].shape) >= 3}


def _choices(model: nn.Module, ran: dict[str, Ran], stages: int | None) -> Iterator[list[Ran]]:
    """Yield runs of blocks that end at the last resolution, the likeliest first."""
    chains = _chains(model, ran)
    runs: list[list[Ran]] = []
    for chain in chains:
        key = (
            (lambda block: block.shape)
            if stages is None
            else (lambda block: _positions(model, block.shape))
        )
        pieces = [list(run) for _, run in groupby(chain, key=key)]
        if stages is None:
            runs += pieces
        elif stages <= len(pieces):
            runs.append([block for piece in pieces[-stages:] for block in piece])
    ends = sorted((chain[-1] for chain in chains if len(chain) > 1), key=lambda end: -end.time)
    done = set()
    for final in (_positions(model, end.shape) for end in ends):
        if final not in done:
            done.add(final)
            # A class token may join behind the blocks, so one position more or less is still the
            # same resolution.
            here = [run for run in runs if abs(_positions(model, run[-1].shape) - final) <= 1]
            yield from _ranked(model, here)
        if final > 1:
            # a single position may also be a class token with blocks of its own: then the ones
            # before count
            return


def _ranked(model: nn.Module, runs: list[list[Ran]]) -> list[list[Ran]]:
    """The runs of two or more blocks, by what they hold of the parameters.

    Of those that hold nearly the same the one of most blocks comes first, for stages hold their
    blocks. Those that hold little are left out: lists of layers inside of a block, for one.
    """

    def held(run: list[Ran]) -> int:
        return sum(
            weight.numel()
            for block in run
            for weight in model.get_submodule(block.name).parameters()
        )

    most = max(map(held, runs), default=0)
    runs = [run for run in runs if len(run) > 1 and held(run) >= LEAST * most]
    return sorted(
        runs, key=lambda run: (-len(run), 0) if held(run) >= NEARLY * most else (0, -held(run))
    )


def _chains(model: nn.Module, ran: dict[str, Ran]) -> list[list[Ran]]:
    """Blocks in the order in which they ran, of lists that are siblings: stages.0.blocks and
    stages.1.blocks, say.
    """
    groups: dict[str, list[Ran]] = {}
    # of blocks of lists: what they hold under single names is no list of blocks
    inside: list[str] = []
    for path, container in model.named_modules():
        prefix = f"{path}." if path else ""
        blocks = {
            prefix + name: child
            for name, child in container.named_children()
            if prefix + name in ran
        }
        blocks = {name: child for name, child in blocks.items() if _is_block(child)}
        in_order = sorted(blocks, key=lambda name: ran[name].time)
        if isinstance(container, (nn.Sequential, nn.ModuleList)):
            inside += [f"{name}." for name in in_order]
        elif prefix.startswith(tuple(inside)):
            continue
        else:  # the last two or more of a kind in a row
            kinds = [
                list(kind) for _, kind in groupby(in_order, key=lambda name: type(blocks[name]))
            ]
            in_order = kinds[-1] if kinds and len(kinds[-1]) > 1 else []
            in_order = [
                name
                for name in in_order
                if not isinstance(blocks[name], (nn.Sequential, nn.ModuleList))
            ]
        groups.setdefault(re.sub(r"\d+", "#", path), []).extend(ran[name] for name in in_order)
    return [sorted(chain, key=lambda block: block.time) for chain in groups.values() if chain]


def _is_block(module: nn.Module) -> bool:
    """Whether a module is made of others and holds a matrix or a filter (a norm with an activation
    does not).
    """
    return any(True for _ in module.children()) and any(
        weight.ndim > 1 for weight in module.parameters()
    )


def _layout(model: nn.Module, shape: Sequence[int]) -> str:
    if len(shape) == 3:
        return "b n c"
    if len(shape) != 4:
        raise ValueError(f"features of shape {tuple(shape)}: expected tokens or images")
    if (shape[1] == shape[2]) != (shape[2] == shape[3]):  # the two equal sides are height and width
        return "b h w c" if shape[1] == shape[2] else "b c h w"
    channels = {getattr(model, "num_features", None)}
    channels |= {
        info["num_chs"]
        for info in getattr(model, "feature_info", None) or []
        if isinstance(info, dict)
    }
    last = (shape[3] in channels) > (shape[1] in channels)
    return "b h w c" if last or getattr(model, "output_fmt", "") == "NHWC" else "b c h w"


def _positions(model: nn.Module, shape: Sequence[int]) -> int:
    return math.prod(
        size
        for axis, size in zip(_layout(model, shape).split(), shape, strict=True)
        if axis not in "bc"
    )


def _prefix_tokens(shape: Sequence[int], example: Tensor, prefix: int) -> int:
    """The number given, if what is left of the tokens is a grid of the image's aspect; otherwise
    none have joined.
    """
    aspect = example.shape[-2] / example.shape[-1]
    height = round(math.sqrt(max(0, shape[1] - prefix) * aspect))
    return prefix if height and height * round(height / aspect) == shape[1] - prefix else 0
