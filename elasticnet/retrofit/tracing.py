"""Writes down a model's forward around its blocks, by torch.fx; every other module stays whole.

Only the forwards of the modules that contain the blocks (the model itself, a stage) are traced; all
others are called as they are, and nothing of the model is changed.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import fx, nn
from torch.fx.proxy import TraceError

from elasticnet._modules.kept_attributes import KeptAttributes

CHECKPOINT_FILE = torch.utils.checkpoint.__file__
MODEL_PREFIX = "model."  # the model is a submodule of what is traced
DROPOUTS: dict[Callable[..., Any], Callable[[float], nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
TRACE_ERRORS = (
    TraceError,
    TypeError,
    RuntimeError,
    NotImplementedError,
    AttributeError,
    AssertionError,
)


class TracedForward(NamedTuple):
    """A forward, written down.

    Attributes:
        graph: The calls of modules, functions and methods, in the order in which they run. The
            model's own modules and parameters have `MODEL_PREFIX` before their names.
        additions: What the graph uses and the model does not hold, by name: constant tensors, and
            modules in the place of functional dropouts.
        recomputed: The names of the nodes that call a module inside of `torch.utils.checkpoint`:
            the backward pass computes it again, which the graph does not show.
        assigned: The paths of the attributes that the forward assigns to the model.
    """

    graph: fx.Graph
    additions: dict[str, Any]
    recomputed: Set[str]
    assigned: Sequence[str] = ()


def trace(
    model: nn.Module, blocks: Sequence[str], leaf_functions: Iterable[Callable[..., Any]] = ()
) -> TracedForward:
    """Return the forward of a model around its blocks.

    Args:
        model: Any model; its first input is traced, the others keep their defaults. Its modules
            are switched to training mode and back meanwhile, and what its forward assigns to them
            is put back.
        blocks: The paths of the blocks.
        leaf_functions: Functions that are called as they are, as modules are.

    Raises:
        ValueError: torch.fx cannot trace the forward, or it takes other steps in training mode.
    """
    containers = _containers(model, blocks)
    assigned: set[str] = set()
    traces: list[TracedForward] = []
    with _modes_restored(model):
        for training in (True, False):
            model.train(training)
            try:
                traces.append(_trace_in_mode(model, containers, leaf_functions, assigned))
            except TRACE_ERRORS as error:
                # torch.fx explains at length from the second sentence on
                reason = str(error).split("\n")[0].split(". ")[0]
                raise ValueError(
                    f"torch.fx cannot trace the forward around {blocks[-1]}: {reason}"
                    f"{said_of_assignments(assigned)}"
                ) from error
    in_training, in_eval = traces
    if _steps(in_training.graph) != _steps(in_eval.graph):
        raise ValueError(
            "the forward takes other steps in training mode: switch that off in the model first"
            f"{said_of_assignments(assigned)}"
        )
    # Some models recompute in training mode alone.
    recomputed = _recomputed_in_either(in_training, in_eval)
    return in_eval._replace(assigned=sorted(assigned), recomputed=recomputed)


def _recomputed_in_either(in_training: TracedForward, in_eval: TracedForward) -> set[str]:
    """The nodes of the second trace that were recomputed in one of two traces of the same steps."""
    names: set[str] = set()
    pairs = zip(in_training.graph.nodes, in_eval.graph.nodes, strict=True)
    for node_in_training, node in pairs:
        if node_in_training.name in in_training.recomputed or node.name in in_eval.recomputed:
            names.add(node.name)
    return names


def said_of_assignments(assigned: Iterable[str]) -> str:
    """Return the end of a message about a forward that assigns to its model; "" if it does not.

    Args:
        assigned: The paths of the attributes.
    """
    names = [f"self.{path}" for path in sorted(assigned)]
    if not names:
        return ""
    return f" (the forward assigns {', '.join(names)}, which the parts would not do)"


def _containers(model: nn.Module, blocks: Sequence[str]) -> dict[str, nn.Module]:
    """The model and the modules that lead to the blocks, by path: their forwards are traced."""
    containers = {"": model}
    for path in blocks:
        parts = path.split(".")
        for end in range(1, len(parts)):
            container = ".".join(parts[:end])
            containers[container] = model.get_submodule(container)
    return containers


@contextmanager
def _assignments_undone(
    containers: Mapping[str, nn.Module], assigned: set[str]
) -> Generator[None, None, None]:
    """Put back what a trace assigns to modules inside a `with` block, and note it in `assigned`.

    A trace assigns its own values, which stand for tensors and would spoil the model.
    """
    kept = KeptAttributes(containers)
    try:
        yield
    finally:
        assigned.update(kept.assigned())
        kept.put_back()


@contextmanager
def _buffers_as_attributes(modules: Iterable[nn.Module]) -> Generator[None, None, None]:
    """Make buffers plain attributes inside a `with` block, which hold any values."""
    moved: list[tuple[nn.Module, dict[str, Any]]] = []
    for module in modules:
        buffers = vars(module)["_buffers"]
        moved.append((module, dict(buffers)))
        vars(module).update(buffers)
        buffers.clear()
    try:
        yield
    finally:
        for module, buffers in moved:
            for name, buffer in buffers.items():
                vars(module).pop(name, None)
                vars(module)["_buffers"][name] = buffer


@contextmanager
def _modes_restored(model: nn.Module) -> Generator[None, None, None]:
    """Put each module back into its own mode at the end of a `with` block."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _trace_in_mode(
    model: nn.Module,
    containers: Mapping[str, nn.Module],
    leaf_functions: Iterable[Callable[..., Any]],
    assigned: set[str],
) -> TracedForward:
    """The forward in the mode that the model is in; notes in `assigned` what it assigns."""
    modules = list(containers.values())
    try:
        with _assignments_undone(containers, assigned):
            return _trace_once(model, modules, leaf_functions)
    except TypeError as error:
        # "cannot assign 'torch.fx.proxy.Proxy' object to buffer 'mean'", or "as buffer".
        if "cannot assign" not in str(error) or "buffer" not in str(error):
            raise
    with _buffers_as_attributes(modules), _assignments_undone(containers, assigned):
        return _trace_once(model, modules, leaf_functions)


def _trace_once(
    model: nn.Module, opened: Iterable[nn.Module], leaf_functions: Iterable[Callable[..., Any]]
) -> TracedForward:
    """The forward in the mode that the model is in."""
    entry = _Entry(model)
    tracer = _Tracer({entry, *opened}, leaf_functions)
    state_of_python = random.getstate()
    state_of_torch = torch.default_generator.get_state()
    graph = tracer.trace(entry)
    draws_of_torch = not torch.equal(torch.default_generator.get_state(), state_of_torch)
    if draws_of_torch or random.getstate() != state_of_python:
        # Such as layers that are left out at random: the trace would do so always, or never.
        raise TraceError("it draws random numbers outside of its modules")
    additions: dict[str, Any] = {}
    # torch.fx stores tensors that the forward makes as attributes or as buffers of the traced
    # module, depending on its version
    for name, value in vars(entry).items():
        if name.startswith("_tensor_constant"):
            additions[name] = value
    additions.update(entry.named_buffers(recurse=False))
    additions.update(_replace_functional_dropouts(graph))
    return TracedForward(graph=graph, additions=additions, recomputed=tracer.recomputed)


class _Entry(nn.Module):
    """Gives the model's forward one input; all its other arguments keep their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model(x)


class _Tracer(fx.Tracer):
    """Traces the forwards of `opened` alone; every other module is called as it is."""

    def __init__(
        self, opened: set[nn.Module], leaf_functions: Iterable[Callable[..., Any]]
    ) -> None:
        super().__init__(autowrap_functions=tuple(leaf_functions))
        self.opened = opened
        self.grad_enabled = torch.is_grad_enabled()
        self.recomputed: set[str] = set()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.opened

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        is_recomputed = _is_inside_checkpoint()  # which may switch gradients off itself
        if torch.is_grad_enabled() != self.grad_enabled and not is_recomputed:
            raise TraceError(
                f"it switches gradients off around {node.target}, which the parts would not do"
            )
        if kind == "call_module" and is_recomputed:
            self.recomputed.add(node.name)
        return node


def _is_inside_checkpoint() -> bool:
    """Whether `torch.utils.checkpoint` is among the callers, by whatever name it was called."""
    # Python has no other way to the callers.
    frame = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_code.co_filename == CHECKPOINT_FILE:
            return True
        frame = frame.f_back
    return False


def _replace_functional_dropouts(graph: fx.Graph) -> dict[str, nn.Module]:
    """Make modules of functional dropouts, because a trace freezes their `training`.

    Returns the modules by the names that they have in the graph.
    """
    modules: dict[str, nn.Module] = {}
    nodes = [node for node in graph.nodes if node.target in DROPOUTS]
    for number, node in enumerate(nodes):
        probability: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        x = node.args[0] if node.args else node.kwargs["input"]
        name = f"dropout_{number}"
        modules[name] = DROPOUTS[node.target](probability)
        node.op = "call_module"
        node.target = name
        node.args = (x,)
        node.kwargs = {}
    return modules


def _steps(graph: fx.Graph) -> list[tuple[str, ...]]:
    """What a forward does, for comparison with another trace of it.

    The arguments count, because `training=self.training` is one of them.
    """
    return [(node.op, str(node.target), str(node.args), str(node.kwargs)) for node in graph.nodes]
