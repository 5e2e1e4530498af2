"""Running statistics of BatchNorm measured anew, at every depth: what `update_bn` does for one.

BatchNorm in the stem and in blocks sees the same features at every depth. In the shared head it
sees those of all depths, and the mean over depths fits none of them; in eval mode that can cost
most of the accuracy. Adapters have BatchNorm of their own, but
`torch.optim.swa_utils.update_bn(loader, net)` resets all of it and then runs the deepest depth
alone, so that the shallower adapters keep a mean of 0 and a variance of 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from elasticnet._modules.not_elastic import say_not_elastic
from elasticnet._modules.unwrapping import network_inside, unwrapped
from elasticnet._net.head_statistics import BatchNorm, HeadStatistics, batch_norms
from elasticnet.taps import resolve_depths
from elasticnet.wrapper import ElasticWrapper, evaluating


def recalibrate(net: nn.Module, batches: Iterable[Any], *, trunk: bool = False) -> list[str]:
    """Measure the running statistics of BatchNorm anew, for each depth its own.

    Statistics in the shared head are kept for each depth from then on (`net.head_statistics`): at
    a depth the head reads, and in training mode updates, those of this depth. They are saved,
    loaded, truncated and exported with the net. Weights and biases stay shared.

    Each statistic becomes the plain mean over all batches, as `update_bn` computes it, with
    everything else in eval mode: no dropout, and the features that inference will see.

    Of several processes each measures its own batches: give all of them the same ones. A
    DistributedDataParallel made afterwards gives the statistics of process 0 to all.

    Args:
        net: An `ElasticWrapper`, which may be compiled, wrapped for parallel training, or adapted
            by peft.
        batches: Training inputs, a tensor each; of a tuple or list the first entry is the input. A
            mapping holds the net's arguments by name: `x`, and the keyword arguments of
            `net(x, **keywords)`. They are on the net's device. Large batches measure best.
        trunk: Whether BatchNorm in the stem and the blocks is measured first, as is needed after
            weights were averaged. `batches` is then gone through twice.

    Returns:
        The paths of the modules that were measured, such as "head.1"; empty if there are none.

    Raises:
        TypeError: `net` is not an ElasticWrapper.
        ValueError: `batches` is empty, a tensor, or an iterator though it is gone through twice, or
            a mapping has no `x`; or the head's BatchNorm cannot be measured for each depth, see
            `separate_statistics`. The statistics then stay as they were.

    Example:
        `recalibrate(net, train_loader)`
    """
    elastic = _elastic_net(net)
    if isinstance(batches, Tensor):
        # its entries would be taken for batches, each with an axis too few
        raise ValueError(
            f"batches is a tensor of shape {tuple(batches.shape)}: expected a list of batches, "
            "such as [x] for a single one"
        )
    if trunk and isinstance(batches, Iterator):
        raise ValueError(
            f"batches is a {type(batches).__name__}, an iterator, and trunk=True goes through it "
            "twice: pass a list or a DataLoader"
        )
    separate_statistics(elastic)

    measured: list[str] = []
    if trunk:
        measured += _measure(elastic, _norms_of(elastic, ("stem", "blocks")), batches)
    measured += _measure(elastic, _norms_of(elastic, ("head", "adapters")), batches)
    return measured


def separate_statistics(net: nn.Module, depths: Iterable[int] | None = None) -> None:
    """Give the BatchNorm in a net's head statistics of its own at each depth, without measuring.

    They begin as copies, so that the net's function stays. Trained from then on, each depth updates
    its own. A net whose head has no BatchNorm stays as it is.

    Args:
        net: An `ElasticWrapper`, which may be compiled or wrapped for parallel training.
        depths: The taps that get statistics; those that have some keep them. None: every tap.

    Raises:
        TypeError: `net` is not an ElasticWrapper.
        ValueError: A depth carries no tap; or the head has BatchNorm and takes all taps in one
            call, or its BatchNorm is lazy and has no shape yet, or peft trains a copy of it.
    """
    elastic = _elastic_net(net)
    chosen = resolve_depths(depths, elastic.taps)
    norms = batch_norms(elastic.head)
    if not norms:
        return
    if getattr(unwrapped(elastic.head), "takes_all_taps", False) is True:  # as a pass asks it
        raise ValueError(
            f"the head's BatchNorm {next(iter(norms))!r} cannot have statistics for each depth, "
            "because the head takes all taps in one call: use a norm without running statistics"
        )
    for path, norm in norms.items():
        if "modules_to_save" in path.split("."):
            raise ValueError(
                f"the head's BatchNorm {path!r} is in a copy of the head that peft trains: merge "
                "first, net = net.merge_and_unload(), and then measure"
            )
        if norm.running_mean is not None and is_lazy(norm.running_mean):
            raise ValueError(
                f"the head's BatchNorm {path!r} is lazy and has no shape yet: run the net once, "
                "and then measure"
            )
    for depth in chosen:
        if str(depth) not in elastic.head_statistics:
            statistics = HeadStatistics(elastic.head)
            elastic.head_statistics[str(depth)] = statistics.train(elastic.training)


def _elastic_net(net: nn.Module) -> ElasticWrapper:
    """Return the elastic net inside of what other libraries may have wrapped around it."""
    inner = network_inside(net)
    if not isinstance(inner, ElasticWrapper):
        raise TypeError(say_not_elastic(inner))
    return inner


def _norms_of(net: ElasticWrapper, parts: Sequence[str]) -> dict[str, BatchNorm]:
    """Return every BatchNorm in some parts of a net, by its path."""
    found: dict[str, BatchNorm] = {}
    for part in parts:
        module: nn.Module | None = getattr(net, part)
        for path, norm in batch_norms(module).items():
            found[f"{part}.{path}".removesuffix(".")] = norm
    return found


@torch.no_grad()
def _measure(net: ElasticWrapper, norms: dict[str, BatchNorm], batches: Iterable[Any]) -> list[str]:
    """Measure the statistics of these modules by passes over all taps; return their paths."""
    if not norms:
        return []
    statistics = _statistics_of(net, norms)
    before = [buffer.clone() for _, buffer in statistics]
    momenta = [norm.momentum for norm in norms.values()]
    try:
        for name, buffer in statistics:
            buffer.fill_(1 if name.endswith("running_var") else 0)
        _run_all(net, norms, batches)
    except BaseException:
        for (_, buffer), value in zip(statistics, before, strict=True):
            buffer.copy_(value)
        raise
    finally:
        for norm, momentum in zip(norms.values(), momenta, strict=True):
            norm.momentum = momentum
    return list(norms)


def _run_all(net: ElasticWrapper, norms: dict[str, BatchNorm], batches: Iterable[Any]) -> None:
    """Run every batch through all taps; only these modules are in training mode."""
    is_empty = True
    with evaluating(net):
        for norm in norms.values():
            norm.train()
            norm.momentum = None  # the plain mean over all batches
        for batch in batches:
            is_empty = False
            _run(net, batch)
    if is_empty:
        raise ValueError("batches is empty: there is nothing to measure")


def _statistics_of(net: ElasticWrapper, norms: dict[str, BatchNorm]) -> list[tuple[str, Tensor]]:
    """Return the names and buffers that passes over all taps update: the head's at each depth."""
    found: list[tuple[str, Tensor]] = []
    has_head = False
    for path, norm in norms.items():
        if path.partition(".")[0] == "head":
            has_head = True
        else:
            found += norm.named_buffers(recurse=False)
    if has_head:
        found += net.head_statistics.named_buffers()
    return found


def _run(net: ElasticWrapper, batch: Any) -> None:
    """Run a batch through all taps; a sequence may hold targets behind the input."""
    if _is_mapping(batch):
        if "x" not in batch:
            raise ValueError(
                f"a batch is a mapping with the keys {list(batch)}: expected the net's arguments "
                "by name, the input as 'x'"
            )
        net(**batch, taps=net.taps)
    elif _is_sequence(batch):
        net(batch[0], taps=net.taps)
    else:
        net(batch, taps=net.taps)


def _is_mapping(batch: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(batch, Mapping)


def _is_sequence(batch: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(batch, (list, tuple))
