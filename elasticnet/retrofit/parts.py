"""A model taken apart into what ElasticWrapper needs, and the proof that the parts reproduce it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet._modules.compare import largest_difference, same_bits
from elasticnet._modules.kept_attributes import attributes_put_back
from elasticnet._net.in_place_writes import OverwrittenError
from elasticnet.distillation import position_axes
from elasticnet.parameter_groups import ParameterGroups
from elasticnet.retrofit.graph import cut
from elasticnet.retrofit.split_from import ModelSource, skeleton_source
from elasticnet.retrofit.tracing import said_of_assignments
from elasticnet.taps import resolve_taps
from elasticnet.wrapper import ElasticWrapper, evaluating

logger = logging.getLogger(__name__)

LAYOUTS = {3: "b n c", 4: "b c h w", 5: "b c t h w"}  # by the number of axes
POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}  # by the number of position axes
# what parts raise that were cut at the wrong place
PART_ERRORS = (
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
NOT_RUN = "the parts do not run"
# what a model raises for a batch size that it does not take
BATCH_ERRORS = (AssertionError, RuntimeError, ValueError)


class Split(NamedTuple):
    """The parts of a model: its own modules and parameters, so that training them trains the model.

    Attributes:
        stem: What runs before the first block.
        blocks: The blocks, in the order in which they run.
        head: What runs behind the last block.
        layout: The axes of the features, such as "b c h w" or "b n c".
        prefix_tokens: How many tokens stand before the grid of positions, such as a class token.
        adapters: New modules by depth, for taps whose shape the head does not take.
        call_block: How a block is called that takes more than x; see `ElasticWrapper`.
        head_skip: What the head takes beside the features: "input", "stem" or nothing.
        copy_features: Whether the parts get copies, because one of them changes in place what it
            is given; see `ElasticWrapper`.
        checkpoint_blocks: Whether the model computes its blocks again in the backward pass (its own
            gradient checkpointing was switched on); what `wrap` does by default.
        mask_keyword: The input of the model that says which positions count; see `ElasticWrapper`.
        keyword_names: The further inputs of the model, by their names; see `ElasticWrapper`.
        refusals: Methods of the model that the net does not have, by name, with what to do instead.
        source: What the network remembers of the model, for `elasticnet.retrofit.to_model`. None:
            the model cannot be copied.
        parameter_groups: What the model says of its parameters to optimisers. None: nothing.
    """

    stem: nn.Module
    blocks: Sequence[nn.Module]
    head: nn.Module
    layout: str
    prefix_tokens: int = 0
    adapters: Mapping[int, nn.Module] = {}
    call_block: Callable[..., tuple[Any, Any]] | None = None
    head_skip: str | None = None
    copy_features: bool = False
    checkpoint_blocks: bool = False
    mask_keyword: str | None = None
    keyword_names: frozenset[str] | None = None
    refusals: Mapping[str, str] = {}
    source: ModelSource | None = None
    parameter_groups: ParameterGroups | None = None

    def wrap(
        self, taps: Iterable[int] | None = None, checkpoint_blocks: bool | None = None
    ) -> ElasticWrapper:
        """Return the elastic network of these parts.

        Args:
            taps: The depths that carry a prediction; None means every depth.
            checkpoint_blocks: Recompute each block in the backward pass instead of keeping its
                activations, which saves memory in training. None means as the model does it.
        """
        if checkpoint_blocks is None:
            checkpoint_blocks = self.checkpoint_blocks
        depths = resolve_taps(taps, num_blocks=len(self.blocks))
        adapters = {depth: module for depth, module in self.adapters.items() if depth in depths}
        net = ElasticWrapper(
            self.blocks,
            self.head,
            stem=self.stem,
            taps=depths,
            adapters=adapters,
            head_skip=self.head_skip,
            layout=self.layout,
            prefix_tokens=self.prefix_tokens,
            call_block=self.call_block,
            checkpoint_blocks=checkpoint_blocks,
            copy_features=self.copy_features,
            mask_keyword=self.mask_keyword,
        )
        for name, remedy in self.refusals.items():
            setattr(net, name, Refusal(name=name, remedy=remedy))
        net.keyword_names = self.keyword_names
        net.split_from = self.source
        net.parameter_groups = self.parameter_groups
        return net


class Refusal:
    """Stands where a method of the model would be: a call says what to do instead.

    Args:
        name: The method.
        remedy: The end of the message.
    """

    def __init__(self, name: str, remedy: str) -> None:
        self.name = name
        self.remedy = remedy

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an error that names the remedy.

        Args:
            *args: Ignored.
            **kwargs: Ignored.

        Raises:
            TypeError: Always.
        """
        raise TypeError(f"an elastic net has no {self.name}: {self.remedy}")


class TapAdapter(nn.Module):
    """Maps an earlier stage's features to the last stage's shape: a mean over windows, then linear.

    Tokens are pooled along their order; prefix tokens are not.

    Args:
        channels_in: The channels of the earlier stage.
        channels_out: The channels of the last stage.
        layout: The axes of the features, as in `elasticnet.distillation`.
        strides: The size of the windows, one number for each position axis.
        prefix_tokens: How many tokens before the grid are left as they are.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        layout: str,
        strides: Sequence[int],
        prefix_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.channel_axis = layout.split().index("c")
        self.strides = tuple(strides)
        self.prefix_tokens = prefix_tokens
        self.linear = nn.Linear(channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features in the last stage's shape.

        Args:
            x: The features of the earlier stage, with its axes as in the layout.
        """
        x = x.movedim(self.channel_axis, 1)  # (b, c, *positions)
        if max(self.strides) > 1:
            prefix = x[:, :, : self.prefix_tokens]
            grid = x[:, :, self.prefix_tokens :]
            pool: Any = POOLS[len(self.strides)]
            x = pool(grid, self.strides, ceil_mode=True)
            if self.prefix_tokens > 0:
                x = torch.cat([prefix, x], dim=2)
        x = self.linear(x.movedim(1, -1))  # (b, *positions, channels_out)
        return x.movedim(-1, self.channel_axis)


def split(
    model: nn.Module,
    blocks: str | Sequence[str],
    example: Any,
    *,
    layout: str | None = None,
    prefix_tokens: int = 0,
    adapters: bool | Mapping[int, nn.Module] = False,
) -> Split:
    """Take apart any model whose forward is stem -> blocks -> head; the model stays as it is.

    The parts are proved to give the model's own output on the example, bit for bit in eval mode,
    and for a batch of another size.

    The forward around the blocks is traced by torch.fx: it takes one input, and no branch or loop
    in it may depend on a tensor's values or shape. Do not run models in other threads meanwhile.

    Args:
        model: Any module.
        blocks: The dotted path of a module that holds the blocks ("encoder.layers"), or the paths
            of the blocks in the order in which they run.
        example: An input of the model.
        layout: The axes of the features; None takes tokens "b n c" for three axes, images
            "b c h w" for four.
        prefix_tokens: How many tokens stand before the grid of positions, such as a class token.
        adapters: True makes a `TapAdapter` for each tap that differs in shape from the last one;
            a mapping {depth: module} brings modules of your own.

    Returns:
        The parts; `split(...).wrap()` is the elastic network.

    Raises:
        ValueError: The model is not such a chain, or the parts do not reproduce it; the message
            says why.

    Example:
        `net = split(model, "encoder.layers", images).wrap()`
    """
    names = children(model, blocks) if isinstance(blocks, str) else list(blocks)
    with attributes_put_back(model):
        return assemble(
            model, names, example, layout=layout, prefix_tokens=prefix_tokens, adapters=adapters
        )


def assemble(
    model: nn.Module,
    names: Sequence[str],
    example: Any,
    *,
    layout: str | None,
    prefix_tokens: int,
    adapters: bool | Mapping[int, nn.Module],
    leaf_functions: Iterable[Callable[..., Any]] = (),
) -> Split:
    """Cut a model at the blocks of these names, prove the parts and add what the taps need.

    Args:
        model: As in `split`.
        names: The paths of the blocks, in the order in which they run.
        example: As in `split`.
        layout: As in `split`.
        prefix_tokens: As in `split`.
        adapters: As in `split`.
        leaf_functions: Functions that tracing calls as they are.

    Returns:
        The parts.

    Raises:
        ValueError: As in `split`.
    """
    parts = cut(model, names, leaf_functions)
    split_model = Split(
        stem=parts.stem,
        blocks=parts.blocks,
        head=parts.head,
        layout="b n c",  # any valid one, until the features are known
        adapters={} if isinstance(adapters, bool) else dict(adapters),
        call_block=parts.call_block,
        head_skip=parts.head_skip,
        checkpoint_blocks=parts.recomputes_blocks,
        keyword_names=frozenset(),  # A traced forward has one input.
    )
    split_model = with_copies_if_needed(split_model, example)
    _verify_and_name_assignments(split_model, model, example, parts.assigned)

    # the axes of the features, and adapters for those that differ
    with evaluating(model), torch.no_grad():
        features = split_model.wrap().forward_taps(example, depths=[-1]).features
    layout = _checked_layout(layout, features[-1])
    split_model = split_model._replace(layout=layout, prefix_tokens=prefix_tokens)
    if adapters is True:
        made = _adapters(features, layout, prefix_tokens)
        split_model = split_model._replace(adapters=made)

    net = split_model.wrap()
    _check_head(net, example, last_shape=tuple(features[-1].shape))
    source = skeleton_source(
        model,
        stem=split_model.stem,
        head=split_model.head,
        blocks=split_model.blocks,
        block_paths=names,
        example=example,
    )
    return split_model._replace(source=source)


def _checked_layout(layout: str | None, features: Tensor) -> str:
    """The layout given, or the usual one for features of so many axes."""
    if layout is None:
        layout = LAYOUTS.get(features.ndim)
    if layout is None or len(layout.split()) != features.ndim:
        raise ValueError(
            f"layout {layout!r}: the features have shape {tuple(features.shape)}, pass layout="
        )
    position_axes(layout)  # refuses names that are no layout
    return layout


def _check_head(net: ElasticWrapper, example: Any, last_shape: tuple[int, ...]) -> None:
    """Refuse taps whose shape the head does not take."""
    refused = [tap for tap in net.check(example) if tap.problem]
    if refused:
        depths = ", ".join(str(tap.depth) for tap in refused)
        raise ValueError(
            f"the head does not take the taps at depths {depths}, of shape {refused[0].shape} at "
            f"the first (the last tap has {last_shape}): pass adapters=True, modules of your own, "
            "or only the blocks behind them"
        )


def with_copies_if_needed(split_model: Split, example: Any) -> Split:
    """Return a split whose parts get copies if one of them overwrites what a pass keeps.

    Args:
        split_model: The split.
        example: An input of the model.

    Returns:
        The split as it was, or with `copy_features`.
    """
    try:
        split_model.wrap().check(example)
    except OverwrittenError as error:
        logger.warning("%s. This split does so by itself", error)
        return split_model._replace(copy_features=True)
    except PART_ERRORS:
        pass  # `verify` runs the parts again, and says what is wrong
    return split_model


def _adapters(features: Sequence[Tensor], layout: str, prefix_tokens: int) -> dict[int, nn.Module]:
    """An adapter for each tap whose features differ in shape from the last one's."""
    last = features[-1]
    channel_axis = layout.split().index("c")
    wanted_sizes = _grid_sizes(last, channel_axis, prefix_tokens)
    adapters: dict[int, nn.Module] = {}
    for depth, feature in enumerate(features, start=1):
        if feature.shape == last.shape:
            continue
        sizes = _grid_sizes(feature, channel_axis, prefix_tokens)
        strides = [
            math.ceil(size / wanted) for size, wanted in zip(sizes, wanted_sizes, strict=True)
        ]
        adapter = TapAdapter(
            channels_in=feature.shape[channel_axis],
            channels_out=last.shape[channel_axis],
            layout=layout,
            strides=strides,
            prefix_tokens=prefix_tokens,
        )
        adapters[depth] = adapter.to(last)  # its device and dtype
    return adapters


def _grid_sizes(features: Tensor, channel_axis: int, prefix_tokens: int) -> list[int]:
    """How long the position axes are, without prefix tokens, which only token layouts have."""
    axes = [axis for axis in range(features.ndim) if axis not in (0, channel_axis)]
    return [features.shape[axis] - prefix_tokens for axis in axes]


# --- the proof


def verify(
    parts: Split,
    model: nn.Module,
    example: Any,
    call: Callable[..., Any] | None = None,
    **inputs: Any,
) -> None:
    """Prove that the parts give the model's own output, bit for bit, in eval mode.

    Args:
        parts: The parts.
        model: The model that they were taken from.
        example: An input of the model. A tensor is tried as a batch of another size, too, because
            a trace may have frozen its size.
        call: What runs the model, where its result is more than the parts give; None means the
            model itself.
        **inputs: Further inputs of the model.

    Raises:
        ValueError: The parts do not run, or they give something else.
    """
    run: Callable[..., Any] = model if call is None else call
    net = parts.wrap()
    name = type(model).__name__
    with evaluating(model), evaluating(net), torch.no_grad():
        expected = run(example, **inputs)
        try:
            _compare(net, example, expected, inputs, name)
        except ValueError as error:
            if same_bits(run(example, **inputs), expected):
                raise
            raise ValueError(
                f"{name} gives another output each time, in eval mode, too: it draws random "
                "numbers, or keeps something from run to run"
            ) from error
        if isinstance(example, Tensor) and not inputs:
            other = example[:1] if len(example) > 1 else torch.cat([example, example])
            try:
                expected = run(other)
            except BATCH_ERRORS:
                return  # it is the model that takes no other
            _compare(net, other, expected, {}, name)


def _verify_and_name_assignments(
    parts: Split, model: nn.Module, example: Any, assigned: Sequence[str]
) -> None:
    """Prove the parts of a model whose forward may assign attributes, which the parts do not."""
    try:
        verify(parts, model, example)
        if assigned:
            verify(parts, model, example)  # again, since what was assigned may change the output
    except ValueError as error:
        if not assigned:
            raise
        raise ValueError(f"{error}{said_of_assignments(assigned)}") from error


def _compare(
    net: ElasticWrapper, x: Any, expected: Any, inputs: Mapping[str, Any], name: str
) -> None:
    """Raise ValueError unless the parts give what the model of this name gave."""
    try:
        actual = net(x, **inputs)
    except PART_ERRORS as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{NOT_RUN} as {name} does: {reason}") from error
    if not same_bits(actual, expected):
        raise ValueError(f"the parts do not reproduce {name}: {_difference(actual, expected)}")


def _difference(actual: Any, expected: Any) -> str:
    """How two outputs differ, in words."""
    try:
        difference = largest_difference(actual, expected)
    except ValueError:
        return f"on the example they give {_described(actual)}, the model {_described(expected)}"
    return f"on the example their output differs by up to {difference:.3g}"


def _described(output: Any) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__


def children(model: nn.Module, path: str) -> list[str]:
    """Return the paths of a container's modules, in their order.

    Those that hold no parameters count, too, for they may be blocks.

    Args:
        model: The model.
        path: The dotted path of the container.

    Raises:
        ValueError: There is no such module, or it holds none.
    """
    try:
        container = model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"blocks {path!r}: {type(model).__name__} has no such module") from error
    names = [f"{path}.{name}" for name, _ in container.named_children()]
    if not names:
        raise ValueError(f"blocks {path!r}: this {type(container).__name__} holds no modules")
    return names
