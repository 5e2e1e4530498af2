"""Cuts a model's forward at its blocks: torch.fx writes down the few lines around them, every
module stays whole.

Only the forwards of the modules that contain the blocks (the model itself, a stage) are traced; all
others are called as they are. So the parts hold the model's own modules, and nothing of the model
is changed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import TraceError

TRACE_ERRORS = (
    TraceError,
    TypeError,
    RuntimeError,
    NotImplementedError,
    AttributeError,
    AssertionError,
)
MODEL = "model."  # where the model stands in the graph


class Cut(NamedTuple):
    """The parts of a forward, as `ElasticWrapper` takes them."""

    stem: nn.Module
    blocks: list[nn.Module]
    head: nn.Module
    call_block: Callable[..., tuple[Any, Any]] | None
    head_skip: str | None


def call_with_arguments(
    block: nn.Module, x: Any, context: Sequence[Any], index: int
) -> tuple[Any, Any]:
    """Call a block with the further arguments that the stem prepared for it: `context[index]` is
    (args, kwargs).

    A block behind the last one known (in a net that has grown) gets the last one's.
    """
    args, kwargs = context[min(index, len(context) - 1)]
    x = block(x, *args, **kwargs)
    return (x[0] if isinstance(x, (tuple, list)) else x), context


def call_with_carry(
    block: nn.Module, x: Any, context: Sequence[Any], index: int
) -> tuple[Any, Any]:
    """Call a block that takes and returns (x, more): what it returns beside x goes to the next
    block.
    """
    x, *more = block(x, *context)
    return x, tuple(more)


def cut(
    model: nn.Module, blocks: Sequence[str], leaf_functions: Iterable[Callable[..., Any]] = ()
) -> Cut:
    """Cut the forward of `model`, which takes one input, at the modules named `blocks`, in the
    order in which they run.

    Where more than a block lies between two of them (a downsampling, say), both together become one
    block. Values that blocks need beside x are the stem's context; those that the head needs beside
    the features are worked out again from the stem's output or from the input. leaf_functions:
    functions that are called as they are, as modules are. Raises ValueError, which says why, when
    the forward is not stem -> blocks -> head.
    """
    flow = _Flow(model, *_trace(model, blocks, leaf_functions))
    nodes = [flow.block(name) for name in blocks]
    flow.order(nodes)
    taps = [_tensor_of(node) for node in nodes]
    entry = nodes[0].args[0] if nodes[0].args else None
    if not isinstance(entry, fx.Node) or entry not in flow.fed:
        raise ValueError(f"{blocks[0]}: its first argument is not made from the input")
    skip, entry = _head_skip(flow, nodes, taps[-1], entry)

    modules, arguments = [], []
    carried = _carries(nodes) and entry is nodes[0].args[0]
    for name, node, tap, start in zip(blocks, nodes, taps, [entry, *taps[:-1]], strict=True):
        module, more = model.get_submodule(name), (node.args[1:], node.kwargs)
        if not carried:
            inside, needs = flow.between(start, tap)
            if tap is not taps[0] and node.args[0] in flow.before:
                raise ValueError(f"{name}: its first argument is not made from the block before it")
            for other in nodes:
                if other is not node and other in inside:
                    raise ValueError(
                        f"{name} takes more than the output of the block before it: {other.target}"
                    )
            taken: list[fx.Node] = []
            map_arg(more, taken.append)
            if {*inside} - flow.free != {node, tap} or node.args[0] is not start or start in taken:
                module, more = flow.module([start, *needs], tap), (tuple(needs), {})
        modules.append(module)
        arguments.append(more)

    plain = not any(args or kwargs for args, kwargs in arguments)
    context = arguments[0][0] if carried else arguments
    stem = flow.module([flow.input], entry if plain else (entry, context))
    head = flow.module(
        [taps[-1], *({"input": [flow.input], "stem": [entry]}[skip] if skip else [])], flow.output
    )
    call = None if plain else call_with_carry if carried else call_with_arguments
    holders = [name for part in (stem, *modules, head) for name in _called(part)]
    twice = [name for name in holders if holders.count(name) > 1]
    if twice:
        raise ValueError(f"more than one part needs what {twice[0]} returns")
    return Cut(stem, modules, head, call, skip)


class _Flow:
    """A traced forward: which nodes hang on the input, which on which block, and modules made of
    pieces of it.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, constants: dict[str, Any]) -> None:
        self.model = model
        self.graph = graph
        self.constants = constants
        self.input = next(iter(graph.find_nodes(op="placeholder")))
        self.output = graph.output_node().args[0]
        self.fed: set[fx.Node] = set()  # made from the input
        for node in graph.nodes:
            if node is self.input or self.fed & {*node.all_input_nodes}:
                self.fed.add(node)
        # parameters, and what is made of them alone: any part may have it
        self.free = {*graph.nodes} - self.fed
        self.before: set[fx.Node] = set()  # made from the input, with no block in between

    def block(self, name: str) -> fx.Node:
        found = self.graph.find_nodes(op="call_module", target=MODEL + name)
        if len(found) != 1:
            raise ValueError(
                f"{name}: the forward calls this block {len(found)} times, expected once"
            )
        return found[0]

    def order(self, blocks: Sequence[fx.Node]) -> None:
        behind = {*blocks}
        for node in self.graph.nodes:
            if behind & {*node.all_input_nodes}:
                behind.add(node)
        self.before = self.fed - behind

    def reach(self, wanted: Any, stops: set[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
        """The nodes that `wanted` is made of, back to `stops`; and which of the stops it takes;
        both in order.
        """
        waiting: list[fx.Node] = []
        map_arg(wanted, waiting.append)
        inside, taken = set(), set()
        while waiting:
            node = waiting.pop()
            if node in stops:
                taken.add(node)
            elif node not in inside:
                inside.add(node)
                waiting += node.all_input_nodes
        return [n for n in self.graph.nodes if n in inside], [
            n for n in self.graph.nodes if n in taken
        ]

    def between(self, start: fx.Node, tap: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
        """The nodes that make `tap` from `start`, and what they take from before the blocks."""
        made = {start}  # from the start on, also what stands before the first block
        for node in self.graph.nodes:
            if made & {*node.all_input_nodes}:
                made.add(node)
        inside, taken = self.reach(tap, {start} | (self.before - made))
        return inside, [node for node in taken if node is not start]

    def module(self, inputs: Sequence[fx.Node], wanted: Any) -> fx.GraphModule:
        """A module that computes `wanted`, any nest of nodes, from `inputs`; it holds the model's
        own modules.
        """
        inside, _ = self.reach(wanted, {*inputs})
        if self.input in inside:
            raise ValueError(
                "the forward takes more from before the blocks than the blocks can hand on"
            )
        graph, attributes, copies = fx.Graph(), {}, {}
        for node in inputs:
            copies[node] = graph.placeholder(node.name)
        for node in inside:
            copies[node] = copied = graph.node_copy(node, copies.__getitem__)
            if node.op in ("call_module", "get_attr"):
                copied.target = str(node.target).removeprefix(MODEL)
                attributes[copied.target] = self.attribute(str(node.target))
        graph.output(map_arg(wanted, copies.__getitem__))
        module = fx.GraphModule(attributes, graph, "Part")
        for part in {*module.modules()} - {*self.model.modules()}:
            part.training = self.model.training
        return module

    def attribute(self, target: str) -> Any:
        if target in self.constants:
            return self.constants[target]
        found: Any = self.model
        for name in target.removeprefix(MODEL).split("."):
            found = getattr(found, name)
        return found


def _head_skip(
    flow: _Flow, blocks: Sequence[fx.Node], tap: fx.Node, entry: fx.Node
) -> tuple[str | None, fx.Node]:
    """What the head needs beside the features (as `head_skip` says it), and the node that the stem
    ends with.

    The stem may end a few steps before the first block, where the head can work out from there what
    it needs (sizes to reshape to, most often); these steps then belong to the first block.
    """
    choices: list[tuple[str | None, fx.Node]] = [(None, entry), ("input", entry)]
    node: Any = entry
    while isinstance(node, fx.Node) and node in flow.fed and node is not flow.input:
        # the stem's output is one tensor
        if not all(user.target is operator.getitem for user in node.users):
            choices.append(("stem", node))
        node = node.args[0] if node.op in ("call_function", "call_method") and node.args else None
    for skip, end in choices:
        given = {None: {tap}, "input": {tap, flow.input}, "stem": {tap, end}}[skip]
        inside, _ = flow.reach(flow.output, given)
        if {*inside} & {*blocks}:
            raise ValueError(
                "what comes behind the blocks takes more than the output of the last one"
            )
        if not any(
            node.op in ("call_module", "placeholder") for node in inside if node in flow.before
        ):
            return skip, end
    raise ValueError("what comes behind the blocks takes more than one value from before them")


def _called(part: nn.Module) -> set[str]:
    nodes = part.graph.find_nodes(op="call_module") if isinstance(part, fx.GraphModule) else ()
    return {str(node.target) for node in nodes}


def _tensor_of(node: fx.Node) -> fx.Node:
    """The node itself, or its first item where the forward takes it apart."""
    items = [
        user for user in node.users if user.target is operator.getitem and user.args[0] is node
    ]
    first = [user for user in items if user.args[1] == 0]
    return first[0] if first and len(items) == len(node.users) else node


def _carries(nodes: Sequence[fx.Node]) -> bool:
    """Whether each block takes exactly (x, more) from the one before it."""
    for before, node in pairwise(nodes):
        if len(node.args) < 2 or node.kwargs or len(node.args) != len(nodes[0].args):
            return False
        for place, value in enumerate(node.args):
            if not (
                isinstance(value, fx.Node)
                and value.target is operator.getitem
                and value.args == (before, place)
            ):
                return False
    return len(nodes) > 1


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

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.opened


def _trace(
    model: nn.Module, blocks: Sequence[str], leaf_functions: Any
) -> tuple[fx.Graph, dict[str, Any]]:
    """The graph around the blocks, and what it holds that is not the model's; the same in both
    modes, or refused.
    """
    opened = {model}
    for name in blocks:
        parts = name.split(".")
        opened |= {model.get_submodule(".".join(parts[:end])) for end in range(1, len(parts))}
    traced = []
    modes = [(module, module.training) for module in model.modules()]
    try:
        for training in (True, False):
            model.train(training)
            entry = _Entry(model)
            graph = _Tracer({entry, *opened}, leaf_functions).trace(entry)
            constants = {
                name: value
                for name, value in vars(entry).items()
                if name.startswith("_tensor_constant")
            }
            traced.append(
                (graph, constants | dict(entry.named_buffers(recurse=False)) | _dropouts(graph))
            )
    except TRACE_ERRORS as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise ValueError(
            f"torch.fx cannot trace the forward around {blocks[-1]}: {reason}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    train, evaluate = ([(node.op, str(node.target)) for node in graph.nodes] for graph, _ in traced)
    if train != evaluate:
        raise ValueError(
            "the forward takes other steps in training mode: switch that off in the model first"
        )
    return traced[1]


def _dropouts(graph: fx.Graph) -> dict[str, nn.Module]:
    """Make modules of functional dropouts, whose `training` a trace would freeze."""
    modules = {}
    for number, node in enumerate(graph.find_nodes(op="call_function", target=F.dropout)):
        name = f"dropout_{number}"
        probability: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        modules[name] = nn.Dropout(probability)
        x = node.args[0] if node.args else node.kwargs["input"]
        node.op, node.target, node.args, node.kwargs = "call_module", name, (x,), {}
    return modules
