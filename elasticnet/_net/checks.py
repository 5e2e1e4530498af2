"""What the wrapper refuses, how its messages say it, and what `check` reports of a tap."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from elasticnet._net.head_statistics import batch_norms
from elasticnet._net.in_place_writes import GuardedTensors
from elasticnet._net.nests import tensors_in
from elasticnet.taps import TapReport, Taps, is_whole_number

logger = logging.getLogger(__name__)

HEAD_SKIPS = (None, "stem", "input", "context")


class Rejection(NamedTuple):
    """What `check` gets in the place of a prediction if the head rejects the features.

    Attributes:
        message: The error.
    """

    message: str


class RejectionError(RuntimeError):
    """The head, or an adapter, fails for the features at a tap."""


def check_containers(blocks: Any, adapters: Any) -> None:
    """Raise unless the blocks are listed and the adapters are given by depth.

    Args:
        blocks: What the user passed as the blocks.
        adapters: What the user passed as adapters, or None.

    Raises:
        TypeError: They are not.
    """
    if not isinstance(blocks, Iterable):
        raise TypeError(f"body_blocks is a {type(blocks).__name__}: expected a list of modules")
    if adapters is not None and not hasattr(adapters, "keys"):
        raise TypeError(
            f"adapters is a {type(adapters).__name__}: expected modules by depth, {{1: module}}"
        )


def check_modules(blocks: Sequence[nn.Module], head: nn.Module, stem: nn.Module | None) -> None:
    """Raise unless there are blocks and all parts are modules.

    Args:
        blocks: The blocks of the net.
        head: Its head.
        stem: Its stem. None: it has none.

    Raises:
        ValueError: There is no block.
        TypeError: A part is not a module.
    """
    if not blocks:
        raise ValueError("body_blocks is empty: an elastic network needs at least one block")
    parts: dict[str, Any] = {f"body_blocks[{index}]": block for index, block in enumerate(blocks)}
    parts["shared_head"] = head
    if stem is not None:
        parts["stem"] = stem
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            raise TypeError(f"{name} is a {type(part).__name__}: expected a torch.nn.Module")


def check_settings(head_skip: str | None, call_block: Any) -> None:
    """Raise unless these arguments of the wrapper are valid.

    Args:
        head_skip: What the head takes beside the features.
        call_block: The function that calls a block, or None.

    Raises:
        ValueError: There is no such `head_skip`.
        TypeError: `call_block` is a module.
    """
    if head_skip not in HEAD_SKIPS:
        raise ValueError(f"head_skip {head_skip!r}: expected None, 'stem', 'input' or 'context'")
    if isinstance(call_block, nn.Module):
        raise TypeError(
            "call_block is a module: expected a function; keep parameters in the stem or the blocks"
        )


def check_number_of_blocks(num_blocks: int, deepest_tap: int) -> None:
    """Raise if blocks were added or removed since a net was made, as by `del net.blocks[-1]`.

    Without this error, `net(x, depth=5)` of a net that has 4 blocks left would be depth 4.

    Args:
        num_blocks: How many blocks the net has.
        deepest_tap: The depth of its last tap.

    Raises:
        ValueError: The two differ.
    """
    if num_blocks != deepest_tap:
        raise ValueError(
            f"the net has {num_blocks} blocks, and its deepest tap is at depth "
            f"{deepest_tap}: blocks were added to net.blocks or removed from it. Use "
            "net.truncate or net.grow, or make a new ElasticWrapper"
        )


def check_not_overwritten_since(guarded: GuardedTensors, depth: int) -> None:
    """Raise if a tensor of a state was written to since the state was made.

    Args:
        guarded: What the state guards.
        depth: The depth of the state.

    Raises:
        ValueError: It was written to.
    """
    if guarded.is_overwritten():
        raise ValueError(
            f"a tensor of the state at depth {depth} was written to in place after the state was "
            "made: write into a copy, or run the net again"
        )


def check_adapter_depths(adapters: Mapping[int, nn.Module], taps: Sequence[int]) -> None:
    """Raise unless each adapter belongs to a tap.

    Args:
        adapters: The adapters by depth, as the user gave them.
        taps: The taps of the net.

    Raises:
        ValueError: A depth is no tap.
    """
    for depth in adapters:
        if not is_whole_number(depth) or depth not in taps:  # True and 1.0 are equal to 1
            raise ValueError(
                f"adapter at depth {depth!r}: this net has taps at depths {listed(taps)}"
            )


def check_context_is_read(is_read: bool) -> None:
    """Raise unless a part reads the context that a stem has returned beside the features.

    Args:
        is_read: Whether the net has `call_block` or `head_skip="context"`.

    Raises:
        ValueError: No part reads it.
    """
    if not is_read:
        raise ValueError(
            "the stem returned (x, context): pass call_block to use the context in the blocks, "
            "or head_skip='context' to use it in the head"
        )


def refuse_unexpected(keywords: Iterable[str]) -> None:
    """Raise if there is a keyword argument that no part gets; it may be misspelt.

    Args:
        keywords: The names of such keyword arguments of `net(x, **keywords)`.

    Raises:
        TypeError: There is one.
    """
    names = list(keywords)
    if names:
        raise TypeError(
            f"unexpected keyword argument {names[0]!r}: neither the stem nor call_block gets it; "
            "name it in the stem's forward, or pass a call_block, whose context holds it"
        )


def is_plain_tuple(output: Any) -> TypeGuard[tuple[Any, ...]]:
    """Return whether an output is a tuple of parts, and not of a class like PackedSequence.

    Args:
        output: What a part of the net returned.
    """
    return type(output) is tuple


def check_is_no_tuple(features: Any, depth: int) -> None:
    """Raise if a block that returned a tuple was given one, too.

    Args:
        features: What it was given.
        depth: Its depth.

    Raises:
        TypeError: They are a tuple.
    """
    if is_plain_tuple(features):
        raise TypeError(
            f"block {depth} takes a tuple and returns a tuple, and only the first entry would "
            "go on: pass call_block, which says what the features are, or let the blocks take "
            "and return a list or a named tuple, which go on as they are"
        )


def features_and_context(returned: Any, source: str) -> tuple[Any, Any]:
    """Return what the stem or call_block returned; raise unless it is a pair.

    A tensor with a batch of two could be unpacked like a pair, too.

    Args:
        returned: What it returned.
        source: What messages call the part that returned it.

    Raises:
        TypeError: It is no tuple of two.
    """
    if _is_pair(returned):
        return returned
    found = f"a {type(returned).__name__}"
    if is_plain_tuple(returned):
        found = f"a tuple of {len(returned)}"
    raise TypeError(f"{source} returned {found}: expected a tuple (features, context)")


def _is_pair(value: Any) -> TypeGuard[tuple[Any, Any]]:
    return isinstance(value, tuple) and len(value) == 2  # pyright: ignore[reportUnknownArgumentType]


def check_predictions(predictions: Any, num_taps: int) -> None:
    """Raise unless there is a prediction for each tap; only a head that takes all taps can err.

    Args:
        predictions: What the head returned.
        num_taps: The number of taps that it was called for.

    Raises:
        TypeError: They are not a tuple of that many predictions.
    """
    if not is_plain_tuple(predictions) or len(predictions) != num_taps:
        raise TypeError(
            f"the head has takes_all_taps and returned a {type(predictions).__name__}: "
            f"expected a tuple of {num_taps} predictions, one for each tap"
        )


def rejection_message(features_by_depth: Mapping[int, Any], error: Exception) -> str:
    """Return what to say if the head, or an adapter, fails for the features at these depths.

    Args:
        features_by_depth: The features that the head was called for.
        error: What it raised.
    """
    taps = "taps" if len(features_by_depth) > 1 else "tap"
    depths = listed(features_by_depth)
    found = ", ".join(_found(each) for each in features_by_depth.values())
    return (
        f"the head rejects the {taps} at depth {depths}, whose features {found}: {error}. "
        f"If channels or resolution differ there, adapters={{{depths}: module}} maps these "
        "features to what the head takes"
    )


def _found(features: Any) -> str:
    """Return what features are, as the end of a sentence about them."""
    if isinstance(features, Tensor):
        return f"have shape {tuple(features.shape)}"
    return f"are a {type(features).__name__}"


def listed(depths: Iterable[int | str]) -> str:
    """Return depths as messages list them: `1, 2, 3`.

    Args:
        depths: In this order.
    """
    return ", ".join(str(depth) for depth in depths)


def shape_of(features: Any) -> tuple[Any, ...]:
    """Return the shape of features, or the shapes of the tensors in a nest of them.

    Args:
        features: A tensor, or a nest of lists, tuples, dicts and dataclasses.
    """
    if isinstance(features, Tensor):
        return tuple(features.shape)
    return tuple(tuple(tensor.shape) for tensor in tensors_in(features))


def tap_reports(outputs: Taps) -> list[TapReport]:
    """Return a report of each tap, shallowest first.

    Args:
        outputs: What a pass over all taps returned, with a `Rejection` for each prediction that the
            head could not give.
    """
    # The deepest block always has a tap, and the last features are the deepest.
    deepest_shape = shape_of(outputs.features[-1])
    reports: list[TapReport] = []
    for depth, prediction, features in zip(*outputs, strict=True):
        reports.append(_report(depth, prediction, features, deepest_shape))
    return reports


def _report(
    depth: int, prediction: Any, features: Any, deepest_shape: tuple[Any, ...]
) -> TapReport:
    """Return the report of one tap."""
    shape = shape_of(features)
    tensors = tensors_in(features)
    num_not_finite = sum(_count_not_finite(tensor) for tensor in tensors)
    problem = None
    if num_not_finite:  # This comes first: it explains a rejection by the head, too.
        num_values = sum(tensor.numel() for tensor in tensors)
        problem = (
            f"depth {depth}: {num_not_finite} of {num_values} features are not finite "
            "(NaN or infinity)"
        )
    elif isinstance(prediction, Rejection):
        problem = prediction.message
        if shape != deepest_shape:
            problem += f" (the deepest tap has shape {deepest_shape})"
    return TapReport(
        depth=depth,
        shape=shape,
        output_shape=tuple(prediction.shape) if isinstance(prediction, Tensor) else None,
        finite=num_not_finite == 0,
        problem=problem,
    )


def _count_not_finite(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor)).sum())


def warn_of_statistics(
    head: nn.Module, adapters: nn.ModuleDict, head_statistics: nn.ModuleDict, taps: Sequence[int]
) -> None:
    """Log a warning if running statistics of BatchNorm do not fit the depths that read them.

    Args:
        head: The shared head.
        adapters: The adapters by depth.
        head_statistics: The head's statistics by depth.
        taps: The taps of the net.
    """
    norms_in_head = batch_norms(head)
    shared = [depth for depth in taps if str(depth) not in head_statistics]
    if norms_in_head and shared and len(taps) > 1:
        logger.warning(
            "the head's BatchNorm %r has one set of running statistics for depths %s, and their "
            "mean fits no depth: call elasticnet.recalibration.recalibrate(net, batches) after "
            "training, or use a norm without running statistics",
            next(iter(norms_in_head)),
            listed(shared),
        )

    norms = batch_norms(adapters)
    unmeasured = [path for path, norm in norms.items() if _num_measured(norm) == 0]
    if unmeasured and len(unmeasured) < len(norms):
        logger.warning(
            "the BatchNorm %r has measured no batch, and others have. "
            "torch.optim.swa_utils.update_bn(loader, net) resets all of them and measures the "
            "deepest depth alone: call elasticnet.recalibration.recalibrate(net, batches) instead",
            f"adapters.{unmeasured[0]}",
        )

    for path, depths in _depths_of_norms(adapters).items():
        if len(depths) > 1:
            logger.warning(
                "the BatchNorm %r is in the adapters at depths %s, and the mean of their "
                "statistics fits none of them: give each depth an adapter of its own",
                path,
                listed(depths),
            )


def _depths_of_norms(adapters: nn.ModuleDict) -> dict[str, list[str]]:
    """Return at which depths adapters hold each BatchNorm, by its path at the first of them."""
    path_of: dict[int, str] = {}  # by the id of the norm
    depths_at: dict[str, list[str]] = {}
    for depth, adapter in adapters.items():
        for path, norm in batch_norms(adapter).items():
            first_path = path_of.setdefault(id(norm), f"adapters.{depth}.{path}".removesuffix("."))
            depths_at.setdefault(first_path, []).append(depth)
    return depths_at


def _num_measured(norm: nn.Module) -> int | None:
    """Return how many batches a BatchNorm has measured; None if it does not know."""
    count: Any = norm.num_batches_tracked
    if count is None or count.is_meta:
        return None
    return int(count)
