"""Finds the blocks of an image model by running it once, and splits it there."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from elasticnet._modules.kept_attributes import attributes_put_back
from elasticnet.retrofit.graph import first_of
from elasticnet.retrofit.parts import Split, assemble, children
from elasticnet.wrapper import evaluating

# Runs of blocks are ranked by the parameters that they hold, as shares of what the largest holds.
NEARLY_ALL = 0.9  # a run with as many is as good as the largest
ENOUGH = 0.5  # a run with fewer is no candidate

CONTAINERS = (nn.Sequential, nn.ModuleList)
ALL_STAGES = "all"
Stages = int | Literal["all"] | None


class Ran(NamedTuple):
    """A module that ran once and returned features.

    Attributes:
        name: Its path in the model.
        shape: The shape of what it returned, of a tuple the first entry.
        time: How many modules had returned by then.
    """

    name: str
    shape: tuple[int, ...]
    time: int


Blocks = list[Ran]


def split_found(
    model: nn.Module,
    example: Tensor,
    *,
    stages: Stages,
    blocks: str | None,
    prefix_tokens: int,
    leaf_functions: Iterable[Callable[..., Any]] = (),
) -> Split:
    """Split a model at the blocks found: the first choice that is a chain and reproduces the model.

    Args:
        model: An image model.
        example: An input (b, c, h, w).
        stages: See `elasticnet.retrofit.timm.split`.
        blocks: See `elasticnet.retrofit.timm.split`.
        prefix_tokens: How many tokens stand before the grid in a token layout, where the blocks
            have them already.
        leaf_functions: Functions that tracing calls as they are.

    Returns:
        The parts.

    Raises:
        ValueError: An argument is wrong, or no choice of blocks can be split.
    """
    is_number = type(stages) is int and stages >= 1
    if not (stages is None or stages == ALL_STAGES or is_number):
        raise ValueError(f'stages {stages!r}: expected a whole number, at least 1, or "all"')
    if stages is not None and blocks is not None:
        raise ValueError(f"stages={stages!r} and blocks={blocks!r}: pass one of them")
    with attributes_put_back(model):
        return _split_first_choice(
            model,
            example,
            stages=stages,
            blocks=blocks,
            prefix_tokens=prefix_tokens,
            leaf_functions=leaf_functions,
        )


def _split_first_choice(
    model: nn.Module,
    example: Tensor,
    *,
    stages: Stages,
    blocks: str | None,
    prefix_tokens: int,
    leaf_functions: Iterable[Callable[..., Any]],
) -> Split:
    """The parts of the first choice of blocks that is a chain and reproduces the model."""
    ran = _run(model, example)
    if blocks is not None:
        choices = iter([_named_blocks(model, blocks, ran)])
    elif stages == ALL_STAGES:
        choices = _choices_of_most_stages(model, ran)
    else:
        choices = _choices(model, ran, stages)

    reasons: list[str] = []
    for choice in choices:
        features = choice[-1].shape
        layout = _layout(model, features)
        is_tokens = layout == "b n c"
        try:
            return assemble(
                model,
                [block.name for block in choice],
                example,
                layout=layout,
                prefix_tokens=_prefix_tokens(features, example, prefix_tokens) if is_tokens else 0,
                adapters=stages is not None or blocks is not None,
                leaf_functions=leaf_functions,
            )
        except ValueError as error:
            reasons.append(str(error))
    # the first choice was the likeliest one, so its reason says most
    reason = reasons[0] if reasons else _why_no_choice(stages)
    raise ValueError(f"{type(model).__name__} is not split: {reason}")


def _named_blocks(model: nn.Module, path: str, ran: dict[str, Ran]) -> Blocks:
    """The modules of a container that the user named, which ran."""
    found = [ran[name] for name in children(model, path) if name in ran]
    if not found:
        raise ValueError(f"blocks {path!r}: none of its modules ran once and returned features")
    return found


def _why_no_choice(stages: Stages) -> str:
    if stages is None:
        return (
            "its last resolution has no two blocks of one shape; "
            'stages=k taps the blocks of the last k resolutions, stages="all" those of all'
        )
    if stages == ALL_STAGES:
        return "there are no two blocks at any of its resolutions"
    return f"there are no two blocks in its last {stages} resolutions, or not so many"


def check_is_module(model: Any) -> None:
    """Raise unless what is to be split is a model.

    Args:
        model: What the user passed as one.

    Raises:
        TypeError: It is not, such as the name of a model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model {model!r:.50}: expected a model, such as what timm.create_model(name) or a "
            "function of torchvision.models returns"
        )


def _run(model: nn.Module, example: Tensor) -> dict[str, Ran]:
    """Run the model once; return the modules that ran once and returned features, by path.

    They are in the order in which they returned.
    """
    calls: dict[str, list[Ran]] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            features = first_of(output)
            shape = tuple(features.shape) if isinstance(features, Tensor) else ()
            own_calls = calls.setdefault(name, [])
            own_calls.append(Ran(name=name, shape=shape, time=len(calls)))

        return hook

    hooks = [
        module.register_forward_hook(watch(name)) for name, module in _named_modules(model) if name
    ]
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        shape = tuple(example.shape)
        raise ValueError(
            f"{type(model).__name__} does not run on the example of shape {shape}: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    once = {name: own_calls[0] for name, own_calls in calls.items() if len(own_calls) == 1}
    return {name: block for name, block in once.items() if len(block.shape) >= 3}


def _named_modules(model: Any) -> list[tuple[str, nn.Module]]:
    """All modules with their paths, typed, which PyTorch's own method is not."""
    return list(model.named_modules())


# --- choices


def _choices(model: nn.Module, ran: dict[str, Ran], stages: int | None) -> Iterator[Blocks]:
    """Yield runs of blocks that end at the last resolution, the likeliest first."""
    chains = _chains(model, ran)
    if stages is None:
        runs = [run for chain in chains for run in _runs_of_one_shape(chain)]
    else:
        runs = [run for chain in chains for run in _last_stages(model, chain, stages)]

    ends = [chain[-1] for chain in chains if len(chain) > 1]
    latest_first = sorted(ends, key=lambda end: -end.time)
    tried: set[int] = set()
    for end in latest_first:
        positions = _positions(model, end.shape)
        if positions not in tried:
            tried.add(positions)
            # A class token may join behind the blocks, so one position more or less is still the
            # same resolution.
            here = [run for run in runs if abs(_positions(model, run[-1].shape) - positions) <= 1]
            yield from _ranked(model, here)
        # A single position may also be a class token with blocks of its own: then the blocks
        # before it count. Otherwise this was the last resolution.
        if positions > 1:
            return


def _choices_of_most_stages(model: nn.Module, ran: dict[str, Ran]) -> Iterator[Blocks]:
    """Yield the choices of the most stages first: how many can be cut is seen by trying."""
    most = max((len(_resolutions(model, chain)) for chain in _chains(model, ran)), default=0)
    found: list[Blocks] = []
    for stages in range(most, 0, -1):
        found += _choices(model, ran, stages)
    # Few blocks behind the network proper, such as those of a class token, may have more stages.
    largest = max((_num_parameters(model, choice) for choice in found), default=0)
    for choice in found:
        if _num_parameters(model, choice) >= ENOUGH * largest:
            yield choice


def _runs_of_one_shape(chain: Blocks) -> list[Blocks]:
    """The blocks of a chain, parted where their shape changes."""
    return [list(run) for _, run in groupby(chain, key=lambda block: block.shape)]


def _last_stages(model: nn.Module, chain: Blocks, stages: int) -> list[Blocks]:
    """The blocks at the last so many resolutions, as one run; none if there are not so many."""
    resolutions = _resolutions(model, chain)
    if stages > len(resolutions):
        return []
    return [[block for resolution in resolutions[-stages:] for block in resolution]]


def _resolutions(model: nn.Module, chain: Blocks) -> list[Blocks]:
    """The blocks of a chain, parted where the number of their positions changes."""
    runs = groupby(chain, key=lambda block: _positions(model, block.shape))
    return [list(run) for _, run in runs]


def _ranked(model: nn.Module, runs: list[Blocks]) -> list[Blocks]:
    """The runs of two or more blocks, by what they hold of the parameters.

    Of those that hold nearly the same the one of most blocks comes first, because stages hold their
    blocks. Those that hold little are left out: lists of layers inside of a block, for one.
    """
    most = max((_num_parameters(model, run) for run in runs), default=0)
    large: list[Blocks] = []
    smaller: list[Blocks] = []
    for run in runs:
        parameters = _num_parameters(model, run)
        if len(run) < 2 or parameters < ENOUGH * most:
            continue
        if parameters >= NEARLY_ALL * most:
            large.append(run)
        else:
            smaller.append(run)
    large.sort(key=len, reverse=True)
    smaller.sort(key=lambda run: _num_parameters(model, run), reverse=True)
    return large + smaller


def _num_parameters(model: nn.Module, run: Blocks) -> int:
    parameters = 0
    for block in run:
        for parameter in model.get_submodule(block.name).parameters():
            parameters += parameter.numel()
    return parameters


# --- chains


def _chains(model: nn.Module, ran: dict[str, Ran]) -> list[Blocks]:
    """Blocks in the order in which they ran, of lists that are siblings.

    stages.0.blocks and stages.1.blocks are siblings: their paths differ in numbers alone.
    """
    siblings: dict[str, Blocks] = {}
    # blocks that stand in lists: what they hold under single names is no list of blocks
    listed: list[str] = []
    for path, container in _named_modules(model):
        blocks = _blocks_in(path, container, ran)
        if isinstance(container, CONTAINERS):
            listed += [f"{block.name}." for block in blocks]
        elif f"{path}.".startswith(tuple(listed)):
            continue
        else:
            blocks = _last_of_a_kind(model, blocks)
        siblings.setdefault(re.sub(r"\d+", "#", path), []).extend(blocks)
    return [sorted(chain, key=lambda block: block.time) for chain in siblings.values() if chain]


def _blocks_in(path: str, container: nn.Module, ran: dict[str, Ran]) -> Blocks:
    """A container's own block-like modules that ran, in the order in which they ran."""
    prefix = f"{path}." if path else ""
    found: Blocks = []
    for name, child in container.named_children():
        if prefix + name in ran and _is_block(child):
            found.append(ran[prefix + name])
    return sorted(found, key=lambda block: block.time)


def _last_of_a_kind(model: nn.Module, blocks: Blocks) -> Blocks:
    """Of blocks that stand under single names, the last two or more of one class in a row."""
    kinds = [
        list(run) for _, run in groupby(blocks, key=lambda b: type(model.get_submodule(b.name)))
    ]
    if not kinds or len(kinds[-1]) < 2:
        return []
    # lists in a row are stages, not blocks
    return [
        block for block in kinds[-1] if not isinstance(model.get_submodule(block.name), CONTAINERS)
    ]


def _is_block(module: nn.Module) -> bool:
    """Whether a module is made of others and holds a matrix or a filter.

    A norm with an activation does not.
    """
    is_made_of_others = any(True for _ in module.children())
    return is_made_of_others and any(weight.ndim > 1 for weight in module.parameters())


# --- layouts


def _layout(model: nn.Module, shape: Sequence[int]) -> str:
    """The axes of features of this shape."""
    if len(shape) == 3:
        return "b n c"
    if len(shape) != 4:
        raise ValueError(f"features of shape {tuple(shape)}: expected tokens or images")
    _, second, third, fourth = shape
    # the two equal sides are height and width
    if second == third != fourth:
        return "b h w c"
    if second != third == fourth:
        return "b c h w"
    # undecided by the sides: the model may know its channels or its layout
    channels = _known_channels(model)
    if fourth in channels and second not in channels:
        return "b h w c"
    return "b h w c" if getattr(model, "output_fmt", "") == "NHWC" else "b c h w"


def _known_channels(model: nn.Module) -> set[int | None]:
    """The numbers of channels that a timm model gives for its features."""
    channels: set[int | None] = {getattr(model, "num_features", None)}
    feature_info: Any = getattr(model, "feature_info", None) or []
    for info in feature_info:
        if isinstance(info, dict) and "num_chs" in info:
            channels.add(info["num_chs"])  # pyright: ignore[reportUnknownArgumentType]
    return channels


def _positions(model: nn.Module, shape: Sequence[int]) -> int:
    """How many positions features of this shape have: height times width, or tokens."""
    axes = _layout(model, shape).split()
    return math.prod(
        length for axis, length in zip(axes, shape, strict=True) if axis not in ("b", "c")
    )


def _prefix_tokens(shape: Sequence[int], example: Tensor, prefix_tokens: int) -> int:
    """The number given, if what is left of the tokens is a grid of the image's aspect.

    Otherwise the prefix tokens have not joined yet, and there are none.
    """
    num_tokens = shape[1] - prefix_tokens
    aspect = example.shape[-2] / example.shape[-1]  # height / width
    # height * width = tokens, and height / width = aspect
    height = round(math.sqrt(max(0, num_tokens) * aspect))
    is_grid = height > 0 and height * round(height / aspect) == num_tokens
    return prefix_tokens if is_grid else 0
