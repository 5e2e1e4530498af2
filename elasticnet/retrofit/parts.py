"""Split: a model taken apart into what ElasticWrapper needs, and the proof that the parts reproduce
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet.distillation import position_axes
from elasticnet.retrofit.graph import cut
from elasticnet.taps import resolve_taps
from elasticnet.wrapper import ElasticWrapper, evaluating

LAYOUTS = {3: "b n c", 4: "b c h w", 5: "b c t h w"}


class Split(NamedTuple):
    """The parts of a model: its own modules with their parameters, so that training the parts
    trains the model.

    adapters: new modules by depth, for taps whose shape the head does not take. The other fields
    are arguments of `ElasticWrapper`.
    """

    stem: nn.Module
    blocks: Sequence[nn.Module]
    head: nn.Module
    layout: str
    prefix_tokens: int = 0
    adapters: Mapping[int, nn.Module] = {}
    call_block: Callable[..., tuple[Any, Any]] | None = None
    head_skip: str | None = None

    def wrap(
        self, taps: Iterable[int] | None = None, checkpoint_blocks: bool = False
    ) -> ElasticWrapper:
        """Return the elastic network of these parts; `taps`, `checkpoint_blocks` as
        `ElasticWrapper` takes them.
        """
        depths = resolve_taps(taps, len(self.blocks))
        return ElasticWrapper(
            self.blocks,
            self.head,
            self.stem,
            depths,
            {depth: module for depth, module in self.adapters.items() if depth in depths},
            self.head_skip,
            self.layout,
            self.prefix_tokens,
            self.call_block,
            checkpoint_blocks,
        )


class TapAdapter(nn.Module):
    """Maps an earlier stage's features to the last stage's shape: mean over windows of `strides`,
    then a linear map.

    layout: as in `attention`; strides: one a position axis. Tokens are pooled along their order,
    prefix tokens are not.
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
        self.axis = layout.split().index("c")
        self.strides = tuple(strides)
        self.prefix_tokens = prefix_tokens
        self.linear = nn.Linear(channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(self.axis, 1)  # (b, c, positions)
        if max(self.strides) > 1:
            pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(self.strides) - 1]
            prefix, x = x[:, :, : self.prefix_tokens], x[:, :, self.prefix_tokens :]
            x = pool(x, self.strides, ceil_mode=True)
            x = torch.cat([prefix, x], dim=2) if self.prefix_tokens else x
        return self.linear(x.movedim(1, -1)).movedim(-1, self.axis)


def split(
    model: nn.Module,
    blocks: str | Sequence[str],
    example: Any,
    *,
    layout: str | None = None,
    prefix_tokens: int = 0,
    adapters: bool | Mapping[int, nn.Module] = False,
) -> Split:
    """Take apart any model whose forward is stem -> blocks -> head; neither its modules nor its
    code are changed.

    blocks: the dotted path of a module that holds the blocks ("encoder.layers"), or the paths of
    the blocks in the order in which they run. example: an input of the model; the parts are proved
    to give the model's own output on it, bit for bit in eval mode, and for a batch of another size.
    layout: axes of the features; None takes tokens "b n c" for three axes, images "b c h w" for
    four. adapters: True makes a `TapAdapter` for each tap that differs in shape from the last; or a
    mapping of your own.

    The forward around the blocks is traced by torch.fx: it takes one input, and no branch or loop
    in it may depend on a tensor's values or shape. Do not run models in other threads meanwhile.
    Raises ValueError, which says why, for a model that is not such a chain, and for one that the
    parts do not reproduce.
    """
    names = children(model, blocks) if isinstance(blocks, str) else list(blocks)
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
    """Cut at the blocks of these names, prove it on `example` and add the adapters."""
    parts = cut(model, names, leaf_functions)
    given = {} if isinstance(adapters, bool) else dict(adapters)
    found = Split(
        parts.stem, parts.blocks, parts.head, "b n c", 0, given, parts.call_block, parts.head_skip
    )
    verify(found, model, example)
    with evaluating(model), torch.no_grad():
        features = found.wrap().forward_taps(example, depths=[-1]).features
    layout = layout or LAYOUTS.get(features[-1].ndim)
    if layout is None or len(layout.split()) != features[-1].ndim:
        raise ValueError(
            f"layout {layout!r}: the features have shape {tuple(features[-1].shape)}, pass layout="
        )
    position_axes(layout)
    found = found._replace(layout=layout, prefix_tokens=prefix_tokens)
    if adapters is True:
        found = found._replace(adapters=_adapters(features, layout, prefix_tokens))
    net = found.wrap()
    problems = [tap for tap in net.check(example) if tap.problem]
    if problems:
        raise ValueError(
            f"the head does not take the taps at depths {', '.join(str(tap.depth) for tap in problems)}, of shape "
            f"{problems[0].shape} at the first (the last tap has {tuple(features[-1].shape)}): pass adapters=True, "
            "modules of your own, or only the blocks behind them"
        )
    with evaluating(net), torch.no_grad():
        if not equal(net.forward_taps(example).predictions[-1], net(example)):
            raise ValueError(
                "the head changes the features in place: build the model without in-place activations"
            )
    return found


def verify(
    parts: Split,
    model: nn.Module,
    example: Any,
    call: Callable[..., Any] | None = None,
    **inputs: Any,
) -> None:
    """Raise ValueError unless the parts give the model's own output, bit for bit, in eval mode
    without gradients.

    call: what runs the model, where its result is more than the parts give.
    """
    run: Any = call or model
    net = parts.wrap()
    with evaluating(model), evaluating(net), torch.no_grad():
        _compare(net, model, run, example, inputs)
        # sizes that a trace froze show in a batch of another size
        if isinstance(example, Tensor) and not inputs:
            other = example[:1] if len(example) > 1 else torch.cat([example, example])
            try:
                run(other)
            except (AssertionError, RuntimeError, ValueError):
                return  # it is the model that takes no other
            _compare(net, model, run, other, inputs)


def _compare(
    net: ElasticWrapper, model: nn.Module, run: Any, x: Any, inputs: dict[str, Any]
) -> None:
    expected = run(x, **inputs)
    try:
        actual = net(x, **inputs)
    except (
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"the parts do not run as {type(model).__name__} does: {reason}"
        ) from error
    if not equal(actual, expected):
        raise ValueError(
            f"the parts do not reproduce {type(model).__name__}: {_difference(actual, expected)}"
        )


def children(model: nn.Module, path: str) -> list[str]:
    """The paths of a container's modules; those that hold no parameters count too, for they may be
    blocks.
    """
    try:
        names = [f"{path}.{name}" for name, _ in model.get_submodule(path).named_children()]
    except AttributeError as error:
        raise ValueError(f"blocks {path!r}: {type(model).__name__} has no such module") from error
    if not names:
        raise ValueError(
            f"blocks {path!r}: this {type(model.get_submodule(path)).__name__} holds no modules"
        )
    return names


def _adapters(features: Sequence[Tensor], layout: str, prefix_tokens: int) -> dict[int, nn.Module]:
    last, axis = features[-1], layout.split().index("c")
    adapters: dict[int, nn.Module] = {}
    for depth, feature in enumerate(features, start=1):
        if feature.shape != last.shape:
            sizes, wanted = (
                [
                    size - prefix_tokens
                    for place, size in enumerate(x.shape)
                    if place not in (0, axis)
                ]
                for x in (feature, last)
            )
            strides = [math.ceil(size / want) for size, want in zip(sizes, wanted, strict=True)]
            adapter = TapAdapter(
                feature.shape[axis], last.shape[axis], layout, strides, prefix_tokens
            )
            adapters[depth] = adapter.to(last)
    return adapters


def equal(actual: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return isinstance(actual, Tensor) and torch.equal(actual, expected)
    if isinstance(expected, Mapping):
        return isinstance(actual, Mapping) and all(
            equal(actual.get(name), expected[name]) for name in expected
        )
    if isinstance(expected, (tuple, list)):
        same = isinstance(actual, (tuple, list)) and len(actual) == len(expected)
        return same and all(map(equal, actual, expected))
    return actual == expected


def _difference(actual: Any, expected: Any) -> str:
    if (
        isinstance(actual, Tensor)
        and isinstance(expected, Tensor)
        and actual.shape == expected.shape
    ):
        return f"on the example their output differs by up to {(actual - expected).abs().max():.3g}"
    shapes = [
        tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in (actual, expected)
    ]
    return f"on the example they give {shapes[0]}, the model {shapes[1]}"
