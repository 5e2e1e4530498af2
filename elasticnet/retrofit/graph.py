"""Cuts a model's forward at its blocks, into a stem, the blocks and a head.

The forward is a graph of the few steps around the blocks (see `tracing`): every module is one node
in it, so the parts hold the model's own modules, and nothing of the model is changed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import pairwise
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from elasticnet.recompute import recomputed
from elasticnet.retrofit.tracing import MODEL_PREFIX, TracedForward, trace


class Cut(NamedTuple):
    """The parts of a forward, as `ElasticWrapper` takes them.

    Attributes:
        stem: input -> x, or (x, context) where the blocks take more than x.
        blocks: The model's own blocks; where steps lie between two of them, new modules that hold
            the block and these steps.
        head: The last block's output -> the model's output; takes a second value with `head_skip`.
        call_block: How the blocks get the context; None where x is all they take.
        head_skip: "input" or "stem" where the head takes the model's input or the stem's output
            besides, otherwise None.
        recomputes_blocks: Whether the forward calls blocks by `torch.utils.checkpoint`. Modules in
            stem and head that it calls so are called so in the parts.
        assigned: The paths of the attributes that the forward assigns to the model, and the parts
            do not.
    """

    stem: nn.Module
    blocks: list[nn.Module]
    head: nn.Module
    call_block: Callable[..., tuple[Any, Any]] | None
    head_skip: str | None
    recomputes_blocks: bool
    assigned: Sequence[str]


def call_with_arguments(
    block: nn.Module, x: Any, context: Sequence[Any], index: int
) -> tuple[Any, Any]:
    """Call a block with the further arguments that the stem prepared for it.

    Args:
        block: The block.
        x: The output of the block before it.
        context: One pair (args, kwargs) for each block.
        index: The block's place, from 0. A block behind the last one known, in a network that has
            grown, gets the last one's arguments.

    Returns:
        The block's output, of a tuple the first entry, and the context as it was.
    """
    args, kwargs = context[min(index, len(context) - 1)]
    output: Any = block(x, *args, **kwargs)
    return first_of(output), context


def call_with_carry(
    block: nn.Module, x: Any, context: Sequence[Any], index: int
) -> tuple[Any, Any]:
    """Call a block that takes and returns (x, more): its `more` goes to the next block.

    Args:
        block: The block.
        x: The output of the block before it.
        context: What the block before it returned besides.
        index: The block's place, from 0; of no importance here.

    Returns:
        The block's output, and what it returned besides as a tuple.
    """
    x, *more = block(x, *context)
    return x, tuple(more)


def call_recomputed(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a module, and in training let the backward pass compute it again.

    Args:
        module: The module.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Returns:
        What the module returns.
    """
    if not module.training or not torch.is_grad_enabled():
        return module(*args, **kwargs)

    def run(*inputs: Any) -> Any:
        return module(*inputs, **kwargs)

    return recomputed(run, module)(*args)


def first_of(output: Any) -> Any:
    """Return the first entry of a tuple or list, and anything else (or an empty one) as it is.

    Args:
        output: What a module returned.
    """
    if _is_sequence(output) and len(output) > 0:
        return output[0]
    return output


def _is_sequence(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (tuple, list))


# --- the cut, step by step


def cut(
    model: nn.Module, blocks: Sequence[str], leaf_functions: Iterable[Callable[..., Any]] = ()
) -> Cut:
    """Cut the forward of a model, which takes one input, at its blocks.

    Where more than a block lies between two of them (a downsampling, say), both together become one
    block. Values that blocks need beside x are the stem's context; those that the head needs beside
    the features are worked out again from the stem's output or from the input.

    Args:
        model: Any model; it stays as it is.
        blocks: The paths of the blocks, in the order in which they run.
        leaf_functions: Functions that are called as they are while tracing, as modules are.

    Returns:
        Stem, blocks and head, which give the model's own output at full depth.

    Raises:
        ValueError: The forward is not stem -> blocks -> head; the message says why.
    """
    # where the blocks are called, and where the stem ends
    forward = trace(model, blocks, leaf_functions)
    flow = _Flow(model, forward, blocks)
    first_input = _first_input(flow)
    start = _choose_start(flow, first_input)

    # The blocks, and what they take beside x. Those that hand more than x from one to the next need
    # no context for each, but only if the first one takes x from the stem as it is.
    if start.stem_output is first_input and _hand_on_more(flow.calls):
        pieces = [_Piece(module=flow.block(call)) for call in flow.calls]
        context: Any = flow.calls[0].node.args[1:]
        call_block = call_with_carry
    else:
        pieces = _pieces(flow, start.stem_output)
        context = [(piece.args, piece.kwargs) for piece in pieces]
        takes_more = any(piece.args or piece.kwargs for piece in pieces)
        call_block = call_with_arguments if takes_more else None

    # the parts around them
    stem_result = start.stem_output if call_block is None else (start.stem_output, context)
    stem = flow.module([flow.input], stem_result, recomputed_calls=forward.recomputed)
    head_inputs = [flow.calls[-1].output, *_skip_nodes(flow, start)]
    head = flow.module(head_inputs, flow.result, recomputed_calls=forward.recomputed)
    modules = [piece.module for piece in pieces]
    _check_called_once([stem, *modules, head])
    return Cut(
        stem=stem,
        blocks=modules,
        head=head,
        call_block=call_block,
        head_skip=start.head_skip,
        recomputes_blocks=any(call.node.name in forward.recomputed for call in flow.calls),
        assigned=forward.assigned,
    )


class _Call(NamedTuple):
    """A block's call in the graph, and the node of the tensor that it returns."""

    name: str
    node: fx.Node
    output: fx.Node


class _Start(NamedTuple):
    """The node that the stem ends with, and what the head takes beside the features."""

    stem_output: fx.Node
    head_skip: str | None


class _Piece(NamedTuple):
    """A block as the wrapper gets it, and the nodes that it takes beside x."""

    module: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}


def _first_input(flow: _Flow) -> fx.Node:
    """The node that the first block takes; it must be made from the input, or there is no stem."""
    first_call = flow.calls[0]
    first_input = _first_argument(first_call.node)
    if first_input is None or first_input not in flow.from_input:
        raise ValueError(f"{first_call.name}: its first argument is not made from the input")
    return first_input


def _choose_start(flow: _Flow, first_input: fx.Node) -> _Start:
    """Where the stem ends, so that the head can work out all it needs.

    The first choice is what the first block takes, and a head that takes the features alone. The
    stem may also end a few steps earlier, where the head can work out from its output what it needs
    (sizes to reshape to, most often); these steps then belong to the first block.
    """
    choices = [_Start(first_input, None), _Start(first_input, "input")]
    choices += [_Start(node, "stem") for node in _steps_back(flow, first_input)]
    for start in choices:
        if _head_has_all(flow, start):
            return start
    # A head that gives a constant the input's type can do without the input.
    flow.drop_conversions()
    for start in choices:
        if _head_has_all(flow, start):
            return start
    raise ValueError("what comes behind the blocks takes more than one value from before them")


def _head_has_all(flow: _Flow, start: _Start) -> bool:
    """Whether the head can work out the result from what it takes with this start."""
    given = {flow.calls[-1].output, *_skip_nodes(flow, start)}
    needed = flow.needed(flow.result, stops=given)
    if flow.call_nodes & set(needed.nodes):
        raise ValueError("what comes behind the blocks takes more than the output of the last one")
    # The head may repeat cheap steps from before the blocks, but no module of the stem, and it does
    # not have the input unless it is given.
    missing = [node for node in needed.nodes if node in flow.before_blocks]
    return not any(node.op in ("call_module", "placeholder") for node in missing)


def _skip_nodes(flow: _Flow, start: _Start) -> list[fx.Node]:
    """The nodes that the head takes beside the features: none or one."""
    if start.head_skip == "input":
        return [flow.input]
    if start.head_skip == "stem":
        return [start.stem_output]
    return []


def _steps_back(flow: _Flow, first_input: fx.Node) -> Iterator[fx.Node]:
    """Yield where the stem may end: at the first block's input, or at functions' inputs before."""
    node: fx.Node | None = first_input
    while node is not None and node in flow.from_input and node is not flow.input:
        # a node that is only taken apart is a tuple, and the stem's output is one tensor
        if not all(user.target is operator.getitem for user in node.users):
            yield node
        if node.op not in ("call_function", "call_method"):
            return
        node = _first_argument(node)


def _hand_on_more(calls: Sequence[_Call]) -> bool:
    """Whether each block takes exactly (x, more) from the one before it, as many values each."""
    if len(calls) < 2:
        return False
    num_arguments = len(calls[0].node.args)
    for before, call in pairwise(calls):
        arguments = call.node.args
        if len(arguments) < 2 or len(arguments) != num_arguments or call.node.kwargs:
            return False
        for place, value in enumerate(arguments):
            if not _is_item(value, of=before.node, place=place):
                return False
    return True


def _pieces(flow: _Flow, stem_output: fx.Node) -> list[_Piece]:
    """The blocks, each with what it takes beside the output of the one before it."""
    pieces: list[_Piece] = []
    before = stem_output
    for call in flow.calls:
        pieces.append(_piece(flow, call, before))
        before = call.output
    return pieces


def _piece(flow: _Flow, call: _Call, before: fx.Node) -> _Piece:
    """A block as it stands, or joined with the steps between the block before it and itself."""
    is_first = call is flow.calls[0]
    first_argument = _first_argument(call.node)
    # A block that starts again from before the blocks is no link of a chain.
    if not is_first and first_argument in flow.before_blocks:
        raise ValueError(f"{call.name}: its first argument is not made from the block before it")
    needed = flow.between(before, call.output)
    for other in flow.calls:
        # What an earlier block returned goes past the blocks between: a skip, which depth cuts.
        if other is not call and other.node in needed.nodes:
            raise ValueError(
                f"{call.name} takes more than the output of the block before it: "
                f"{other.node.target}"
            )
    steps = set(needed.nodes) - flow.constant
    further_arguments = _nodes_in((call.node.args[1:], call.node.kwargs))
    stands_alone = (
        steps == {call.node, call.output}  # nothing happens between the two blocks
        and first_argument is before
        and before not in further_arguments  # x, twice: the context is made before x is known
    )
    if stands_alone:
        return _Piece(flow.block(call), args=call.node.args[1:], kwargs=call.node.kwargs)
    others = [node for node in needed.stops if node is not before]
    return _Piece(flow.module([before, *others], call.output), args=tuple(others))


def _check_called_once(parts: Sequence[nn.Module]) -> None:
    """Refuse parts that call one of the model's modules each: it would run more than once."""
    called: set[str] = set()
    for part in parts:
        if not isinstance(part, fx.GraphModule):
            continue
        names = {str(node.target) for node in part.graph.find_nodes(op="call_module")}
        for node in part.graph.find_nodes(op="call_function", target=call_recomputed):
            names.update(str(argument.target) for argument in _nodes_in(node.args[0]))
        if names & called:
            twice = sorted(names & called)[0]
            raise ValueError(f"more than one part needs what {twice} returns")
        called |= names


# --- the graph


class _Needed(NamedTuple):
    """What a value is made of, in the order of the graph.

    Attributes:
        nodes: The steps, back to the stops.
        stops: Those of the stops that the steps take.
    """

    nodes: list[fx.Node]
    stops: list[fx.Node]


class _Flow:
    """A traced forward, and which of its nodes depend on the input and on the blocks."""

    def __init__(self, model: nn.Module, forward: TracedForward, blocks: Sequence[str]) -> None:
        self.model = model
        self.additions = forward.additions
        self.nodes: list[fx.Node] = list(forward.graph.nodes)
        self.input = next(node for node in self.nodes if node.op == "placeholder")
        self.result = forward.graph.output_node().args[0]
        self.calls = [_find_call(forward.graph, name) for name in blocks]
        self.call_nodes = {call.node for call in self.calls}
        self.from_input = self.made_from({self.input})
        # parameters, and what is made of them alone: any part may have it
        self.constant = set(self.nodes) - self.from_input
        # made from the input, with no block in between
        self.before_blocks = self.from_input - self.made_from(self.call_nodes)
        # constants by the nodes that convert them; see drop_conversions
        self.unconverted: dict[fx.Node, fx.Node] = {}

    def drop_conversions(self) -> None:
        """Let parts that do not take the input have constants as they are, not in its type.

        `self.mean.type_as(x)` follows the input to another type or device. In a part, the constant
        is a buffer, which follows the network there, and the network's input has its type.
        """
        for node in self.nodes:
            constant = _first_argument(node)
            if constant is None or not _follows(node, self.input):
                continue
            if constant in self.unconverted or self._is_float_constant(constant):
                self.unconverted[node] = constant

    def _is_float_constant(self, node: fx.Node) -> bool:
        """Whether a node is a tensor of floats that the model holds, or is made of such alone."""
        if node not in self.constant:
            return False
        sources = self.needed(node, stops=set()).nodes
        tensors = [self.attribute(str(node.target)) for node in sources if node.op == "get_attr"]
        return all(tensor.is_floating_point() for tensor in tensors)

    def block(self, call: _Call) -> nn.Module:
        """The model's own block."""
        return self.model.get_submodule(call.name)

    def made_from(self, sources: set[fx.Node]) -> set[fx.Node]:
        """The sources and every node that depends on one of them."""
        made = set(sources)
        for node in self.nodes:  # in the order in which they run, so that one pass is enough
            if not made.isdisjoint(node.all_input_nodes):
                made.add(node)
        return made

    def needed(self, wanted: Any, stops: set[fx.Node]) -> _Needed:
        """What `wanted`, any nest of nodes, is made of, back to the stops."""
        inside: set[fx.Node] = set()
        reached: set[fx.Node] = set()
        waiting = _nodes_in(wanted)
        while waiting:
            node = waiting.pop()
            if node in stops:
                reached.add(node)
            elif node not in inside:
                inside.add(node)
                waiting += self._inputs_of(node, stops)
        return _Needed(
            nodes=[node for node in self.nodes if node in inside],
            stops=[node for node in self.nodes if node in reached],
        )

    def _inputs_of(self, node: fx.Node, stops: set[fx.Node]) -> list[fx.Node]:
        """The nodes that a node takes; of a conversion that is dropped, the constant alone."""
        if self._is_dropped(node, stops):
            return [self.unconverted[node]]
        return node.all_input_nodes

    def _is_dropped(self, node: fx.Node, stops: set[fx.Node]) -> bool:
        """Whether a conversion to the input's type is left out: where the input is not at hand."""
        return node in self.unconverted and self.input not in stops

    def between(self, start: fx.Node, end: fx.Node) -> _Needed:
        """What makes `end` from `start` and from values that are there before the blocks."""
        # What is made from `start` belongs to the steps, even if it stands before the first block.
        known = self.before_blocks - self.made_from({start})
        return self.needed(end, stops={start} | known)

    def module(
        self, inputs: Sequence[fx.Node], wanted: Any, recomputed_calls: Set[str] = frozenset()
    ) -> fx.GraphModule:
        """A module that computes `wanted`, any nest of nodes, from `inputs`.

        It holds the model's own modules and parameters under their own names. The backward pass
        computes the calls of modules again that `recomputed_calls` names.
        """
        needed = self.needed(wanted, stops=set(inputs))
        if self.input in needed.nodes:
            raise ValueError(
                "the forward takes more from before the blocks than the blocks can hand on"
            )
        graph = fx.Graph()
        attributes: dict[str, Any] = {}
        copies: dict[fx.Node, fx.Node] = {}
        for node in inputs:
            copies[node] = graph.placeholder(node.name)
        for node in needed.nodes:
            if self._is_dropped(node, stops=set(inputs)):
                copies[node] = copies[self.unconverted[node]]
                continue
            copied = graph.node_copy(node, copies.__getitem__)
            copies[node] = copied
            if node.op in ("call_module", "get_attr"):
                name = str(node.target).removeprefix(MODEL_PREFIX)
                copied.target = name
                attributes[name] = self.attribute(str(node.target))
            if node.name in recomputed_calls:
                _let_recompute(copied)
        graph.output(map_arg(wanted, copies.__getitem__))
        module = fx.GraphModule(attributes, graph, "Part")
        # the containers that torch.fx makes for dotted names, not the model's own modules
        for part in set(module.modules()) - set(self.model.modules()):
            part.training = self.model.training
        return module

    def attribute(self, target: str) -> Any:
        """The module, parameter or constant that a node names."""
        if target in self.additions:
            return self.additions[target]
        found: Any = self.model
        for name in target.removeprefix(MODEL_PREFIX).split("."):
            found = getattr(found, name)
        return found


def _find_call(graph: fx.Graph, name: str) -> _Call:
    """The one call of a block."""
    nodes = graph.find_nodes(op="call_module", target=MODEL_PREFIX + name)
    if len(nodes) != 1:
        raise ValueError(f"{name}: the forward calls this block {len(nodes)} times, expected once")
    (node,) = nodes
    return _Call(name=name, node=node, output=_tensor_of(node))


def _tensor_of(node: fx.Node) -> fx.Node:
    """The node itself, or its first item where the forward does nothing but take it apart."""
    for user in node.users:
        if not (user.target is operator.getitem and user.args[0] is node):
            return node
    for user in node.users:
        if _is_item(user, of=node, place=0):
            return user
    return node


def _follows(node: fx.Node, like: fx.Node) -> bool:
    """Whether a node gives its first argument the type or the device of `like`."""
    if node.op != "call_method" or node.target not in ("to", "type", "type_as"):
        return False
    rest = _nodes_in((node.args[1:], node.kwargs))
    return len(rest) > 0 and all(_is_like(other, like) for other in rest)


def _is_like(node: fx.Node, like: fx.Node) -> bool:
    """Whether a node is `like` itself, its type or its device."""
    if node is like:
        return True
    return node.target is getattr and node.args in ((like, "dtype"), (like, "device"))


def _is_item(value: Any, of: fx.Node, place: int) -> bool:
    """Whether a value is item `place` of what a node returns."""
    if not isinstance(value, fx.Node) or value.target is not operator.getitem:
        return False
    return value.args == (of, place)


def _let_recompute(node: fx.Node) -> None:
    """Turn the call of a module into a call of `call_recomputed` with that module."""
    with node.graph.inserting_before(node):
        module = node.graph.get_attr(str(node.target))
    node.op = "call_function"
    node.target = call_recomputed
    node.args = (module, *node.args)


def _first_argument(node: fx.Node) -> fx.Node | None:
    """The first positional argument, where it is the value of another node."""
    if node.args and isinstance(node.args[0], fx.Node):
        return node.args[0]
    return None


def _nodes_in(value: Any) -> list[fx.Node]:
    """The nodes in any nest of tuples, lists and dicts."""
    found: list[fx.Node] = []
    map_arg(value, found.append)
    return found
