"""The proof that the description in a file gives the function of the net that is saved.

A file names an architecture and the arguments of its builder. A net may have been changed since it
was built: a block switched, an activation replaced, a hook added. So a twin is built as the file
describes it, from the same tensors, and compared with the net: the names and shapes of the tensors,
the classes and settings of the modules, and the outputs for a small input.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_leaves

from elasticnet._modules.compare import largest_difference, same_bits
from elasticnet._modules.ties import same_bytes
from elasticnet._modules.unwrapping import children, class_name, is_compiled, plain_name, unwrapped
from elasticnet.checkpoint.building import (
    build_without_memory,
    fill_unsaved,
    first_line,
    unsaved_tensors,
)
from elasticnet.checkpoint.left_as_it_was import left_as_it_was
from elasticnet.checkpoint.settings import differing_setting
from elasticnet.checkpoint.state import find_untied, has_shape, replace_state, state_of
from elasticnet.recalibration import separate_statistics
from elasticnet.registry import Architecture, find, recorded
from elasticnet.wrapper import ElasticWrapper, evaluating

TOLERANCE = 1e-5  # how far two equal passes may differ by rounding, as a part of the largest output


class ArchitectureRecord(NamedTuple):
    """What a file records of a net's architecture, after the proof.

    Attributes:
        architecture: The name of the registered architecture; None if none describes the net.
        arguments: The arguments of its builder for this number of blocks.
        why_none: Why the architecture that the net was built by does not describe it; None if it
            does, or if no registered architecture built the net.
    """

    architecture: str | None
    arguments: dict[str, Any]
    why_none: str | None


def architecture_to_record(net: ElasticWrapper) -> ArchitectureRecord:
    """Return which architecture and arguments give the function of a net, after a proof of that.

    Names, shapes, classes and settings are compared in any case. Outputs are compared if the net is
    in eval mode and on the CPU, and its architecture brings an example. If not, hooks, replaced
    forwards and other values in buffers that no file holds are doubts. The proof draws no random
    numbers, and leaves statistics and attributes as they were.

    Args:
        net: Any net; it stays as it is.

    Raises:
        ValueError: The net's origin names an architecture that is not registered.
    """
    name, arguments = recorded(net)
    if name is None:
        return ArchitectureRecord(architecture=None, arguments={}, why_none=None)
    doubt = _find_doubt(net, find(name), arguments)
    if doubt is None:
        return ArchitectureRecord(architecture=name, arguments=arguments, why_none=None)
    why_none = f"{name} builds another net: {doubt}"
    return ArchitectureRecord(architecture=None, arguments={}, why_none=why_none)


def _find_doubt(
    net: ElasticWrapper, architecture: Architecture, arguments: Mapping[str, Any]
) -> str | None:
    """Return why an architecture does not describe a net; None if it does."""
    build = partial(architecture.build, **arguments, taps=list(net.taps))
    state = {name: tensor.detach() for name, tensor in state_of(net).items()}
    try:
        with _same_random_numbers():
            twin = build_without_memory(build)
            # No builder makes the statistics of a net that was recalibrated; a file holds them.
            if len(net.head_statistics) > 0:
                separate_statistics(twin, [int(depth) for depth in net.head_statistics])
            doubt = _compare_tensors(state, twin)
            if doubt is None:
                doubt = _compare_modules(net, twin)
            if doubt is not None:
                return doubt
            fill_unsaved(twin, build)
    except Exception as error:  # somebody else's builder may raise anything
        return f"its builder fails: {first_line(error)}"

    # What is unusual may change the function or not, and only outputs can show that.
    unusual = _find_extra_code(net, twin) or _compare_unsaved(net, twin)
    run = _run_on_example(net, architecture, arguments)
    if run is None:
        return unusual
    replace_state(twin, state)
    difference = _compare_outputs(run, twin)
    if difference is None:
        return None
    if unusual is None:
        return difference
    return f"{difference}; {unusual}"


def _absent_name(kind: str, here: Set[str], there: Set[str]) -> str | None:
    """Return which name stands in one of two nets alone; None if they have the same names."""
    absent = here ^ there
    if not absent:
        return None
    name = min(absent)
    place = "there" if name in here else "here"
    return f"the {kind} {name!r} is missing {place}"


# --- tensors


def _compare_tensors(state: Mapping[str, Tensor], twin: ElasticWrapper) -> str | None:
    """Return how the tensors of a net differ from its twin's in names, shapes or ties."""
    twin_state = state_of(twin)
    absent = _absent_name("tensor", state.keys(), twin_state.keys())
    if absent is not None:
        return absent
    for name in sorted(state):
        if not has_shape(twin_state[name]):
            continue  # it will have the shape of the tensor that fills it
        shape = tuple(state[name].shape)
        twin_shape = tuple(twin_state[name].shape)
        if shape != twin_shape:
            return f"the tensor {name!r} has shape {twin_shape} there, and {shape} here"

    def is_same(first: str, second: str) -> bool:
        return state[first].is_meta or same_bytes(state[first], state[second])

    untied = find_untied(twin_state, is_same)
    if untied is not None:
        first, second = untied
        return f"{first!r} and {second!r} are shared there, and differ here"
    return None


def _compare_unsaved(net: ElasticWrapper, twin: ElasticWrapper) -> str | None:
    """Return which buffer outside the state dict differs."""
    twin_buffers = {plain_name(twin, name): each for name, each in unsaved_tensors(twin).items()}
    buffers = {plain_name(net, name): each for name, each in unsaved_tensors(net).items()}
    for name in sorted(buffers.keys() | twin_buffers.keys()):
        if name not in twin_buffers or name not in buffers:
            place = "there" if name not in twin_buffers else "here"
            return f"the buffer {name!r}, which no file holds, is missing {place}"
        buffer = buffers[name]
        twin_buffer = twin_buffers[name]
        if buffer.is_meta or twin_buffer.is_meta:
            continue
        if not same_bits(buffer.detach().cpu(), twin_buffer.detach().cpu()):
            return f"the buffer {name!r}, which no file holds, has other values there"
    return None


# --- modules


def _modules_by_name(net: nn.Module) -> dict[str, nn.Module]:
    """Return all modules by their plain names, without those that wrap others."""
    found: dict[str, nn.Module] = {}

    def add(module: nn.Module, name: str) -> None:
        module = unwrapped(module)
        found[name] = module
        for child_name, child in children(module).items():
            add(child, f"{name}.{child_name}".removeprefix("."))

    add(net, "")
    return found


def _compare_modules(net: ElasticWrapper, twin: ElasticWrapper) -> str | None:
    """Return which module of a net is of another class than its twin's, or set up differently."""
    modules = _modules_by_name(net)
    twin_modules = _modules_by_name(twin)
    absent = _absent_name("module", modules.keys(), twin_modules.keys())
    if absent is not None:
        return absent
    for name in sorted(modules):
        module = modules[name]
        twin_module = twin_modules[name]
        shown = repr(name) if name else "the net"
        if class_name(module) != class_name(twin_module):
            twin_class = _last_part(class_name(twin_module))
            own_class = _last_part(class_name(module))
            return f"{shown} is of class {twin_class} there, and of class {own_class} here"
        if isinstance(twin_module, LazyModuleMixin):
            continue  # it gets its settings when it first runs
        difference = differing_setting(module, twin_module)
        if difference is not None:
            return (
                f"{shown} has {difference.name} {difference.there!r} there, "
                f"and {difference.here!r} here"
            )
    return None


def _last_part(dotted_name: str) -> str:
    return dotted_name.rpartition(".")[2]


def _find_extra_code(net: ElasticWrapper, twin: ElasticWrapper) -> str | None:
    """Return which hook or replaced forward a net has that its twin has not."""
    twin_modules = _modules_by_name(twin)
    for name, module in _modules_by_name(net).items():
        shown = repr(name) if name else "the net"
        twin_module = twin_modules[name]
        if _count_hooks(module) > _count_hooks(twin_module):
            return f"{shown} has a forward hook here"
        if "forward" in vars(module) and "forward" not in vars(twin_module):
            if "_original_forward" in vars(module):  # the name that accelerate gives it
                return (
                    f"the forward of {shown} is replaced here by accelerate: save "
                    "accelerator.unwrap_model(net, keep_fp32_wrapper=False)"
                )
            return f"the forward of {shown} is replaced here"
    return None


def _count_hooks(module: nn.Module) -> int:
    """Return how many hooks may change what a module takes or returns.

    Hooks of sharded training do not count: they put the parameters together.
    """
    count = 0
    for table in ("_forward_pre_hooks", "_forward_hooks"):
        hooks: list[Any] = list(vars(module)[table].values())
        for hook in hooks:
            # ElasticWrapper puts hooks into objects that have the `__module__` of the hook.
            if not str(getattr(hook, "__module__", "")).startswith("torch.distributed"):
                count += 1
    return count


# --- outputs


class _Pass(NamedTuple):
    """An input of a net, and what the net makes of it."""

    example: Any
    predictions: list[Any]


def _run_on_example(
    net: ElasticWrapper, architecture: Architecture, arguments: Mapping[str, Any]
) -> _Pass | None:
    """Return a pass of a net on a small input; None if it is in training or cannot run here."""
    make_example = architecture.tiny_example or architecture.example
    if net.training or make_example is None or not _has_plain_cpu_tensors(net):
        return None
    try:
        with _same_random_numbers():
            example = _as_net_takes_it(make_example(arguments), net)
        return _Pass(example=example, predictions=_predictions(net, example))
    except Exception:  # the net's own code may raise anything, such as for float16 on the CPU
        return None


def _has_plain_cpu_tensors(net: nn.Module) -> bool:
    """Return whether all tensors of a net are on the CPU, and not sharded."""
    tensors = [*net.parameters(), *net.buffers()]
    return all(type(each.data) is Tensor and each.device.type == "cpu" for each in tensors)


def _as_net_takes_it(example: Any, net: nn.Module) -> Any:
    """Return an example whose floats have the dtype of the net's first parameter of floats."""
    if not isinstance(example, Tensor) or not example.is_floating_point():
        return example
    for parameter in net.parameters():
        if parameter.is_floating_point():
            return example.to(parameter.dtype)
    return example


def _compare_outputs(run: _Pass, twin: ElasticWrapper) -> str | None:
    """Return how the predictions of a twin differ from those of the net; None if they do not."""
    try:
        twin_predictions = _predictions(twin, run.example)
        difference = largest_difference(run.predictions, twin_predictions)
    except Exception as error:  # the twin's code may raise anything
        return f"that one fails on an example: {first_line(error)}"
    if same_bits(run.predictions, twin_predictions):
        return None
    if difference <= TOLERANCE * _largest_value(run.predictions):
        return None
    return f"the outputs for an example differ by up to {difference:.3g}"


@torch.no_grad()
def _predictions(net: ElasticWrapper, example: Any) -> list[Any]:
    """Return what a net predicts at the deepest tap, and at taps with adapters; it stays as it is.

    The deepest prediction has passed all blocks and the head. Shallower ones would show no more.
    """
    depths_with_adapters = sorted(int(depth) for depth in net.adapters)
    with left_as_it_was(net), evaluating(net), _same_random_numbers(), _not_compiled(net):
        predictions = [net(example, depth=-1)]
        for depth in depths_with_adapters:
            predictions.append(net(example, depth=depth))
    return predictions


def _largest_value(predictions: list[Any]) -> float:
    """Return the largest absolute value in predictions, which may be nested."""
    largest = 0.0
    for leaf in tree_leaves(predictions):
        if isinstance(leaf, Tensor) and leaf.numel() > 0:
            largest = max(largest, leaf.abs().max().item())
    return largest


def _not_compiled(net: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which compiled modules run as they were before: nothing is compiled."""
    if is_compiled(net):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


@contextmanager
def _same_random_numbers() -> Generator[None, None, None]:
    """Begin with the same random numbers each time; afterwards the generators go on as before."""
    # NumPy's old functions, because the generator behind them is the one that modules draw from.
    state_of_python = random.getstate()
    state_of_numpy = np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would also seed the generators of all GPUs.
            torch.default_generator.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            yield
    finally:
        random.setstate(state_of_python)
        np.random.set_state(state_of_numpy)  # noqa: NPY002
