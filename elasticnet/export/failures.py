"""What the errors of exporters and runtimes say to a user: what failed, where, and what to try.

They are raised deep inside of other libraries, and speak of graphs, symbols and guards. The error's
traceback tells which part of the network was at work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from elasticnet.export.lengths import first_line

MAX_REASON = 300  # characters of another library's message
# what speaks of PyTorch's own workings in these messages
NOTES_LEFT_OUT = (r"\s*\(unhinted: .*", r"\s*Failure message: .*")

# what the messages say, and what to try then; the first that fits
TRACE_REMEDIES = {
    r"[Dd]ata-dependent": (
        "Its code makes a Python number or a decision of a tensor's values, as `float(x.sum())` "
        "and `if x.max() > 1` do: compute with tensors there, such as torch.where"
    ),
}
ONNX_REMEDIES = {
    r"only 4D query, key, and value": (
        "Give queries, keys and values an axis of heads, (b, heads, n, c), or write a program, "
        "format='torch'"
    ),
    r"grouped_mm": (
        "Load the transformers model with experts_implementation='batched_mm', or write a program, "
        "format='torch'"
    ),
}
OTHERWISE_FOR_TRACES = (
    "torch.export follows operators of PyTorch alone: let that forward do without NumPy, .item() "
    "and other libraries"
)
OTHERWISE_FOR_OPEN_AXES = ", or let no length vary, axes={}, if open lengths are the cause"
OTHERWISE_FOR_ONNX = "Use other operators there, or write a program, format='torch'"


class ExportError(ValueError):
    """A network cannot be exported, or a file does not compute what the network does.

    Nothing was written.
    """


def failure_of_trace(net: nn.Module, error: BaseException, has_open_axes: bool) -> str:
    """Return the message for a network that torch.export does not trace.

    Args:
        net: The network.
        error: What was raised.
        has_open_axes: Whether some axes of the inputs are open.
    """
    otherwise = OTHERWISE_FOR_TRACES
    if has_open_axes:
        otherwise += OTHERWISE_FOR_OPEN_AXES
    reason = reason_of(error)
    remedy = _remedy(TRACE_REMEDIES, reason, otherwise)
    return f"torch.export cannot trace this net{_place(net, error)}: {reason}. {remedy}"


def failure_of_onnx(net: nn.Module, error: BaseException) -> str:
    """Return the message for a network whose program cannot be turned into an ONNX file.

    Args:
        net: The network.
        error: What was raised.
    """
    reason = reason_of(error)
    remedy = _remedy(ONNX_REMEDIES, reason, OTHERWISE_FOR_ONNX)
    return f"torch.onnx cannot export this net{_place(net, error)}: {reason}. {remedy}"


def reason_of(error: BaseException) -> str:
    """Return the first line of what caused an error, shortened.

    Args:
        error: Any exception; the first one of its chain of causes counts.
    """
    *_, cause = _chain(error)
    reason = first_line(cause)
    reason = re.sub(r"<OpOverload\(op='([\w.]+)'.*?\)>", r"\1", reason)
    for pattern in NOTES_LEFT_OUT:
        reason = re.sub(pattern, "", reason)
    reason = reason.rstrip(". ")
    return reason if len(reason) <= MAX_REASON else reason[:MAX_REASON] + " ..."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it, the first cause last."""
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__


def _remedy(remedies: Mapping[str, str], reason: str, otherwise: str) -> str:
    """What to try, by what the error's reason says."""
    for pattern, remedy in remedies.items():
        if re.search(pattern, reason):
            return remedy
    return otherwise


# --- which part of the network was at work


def _place(net: nn.Module, error: BaseException) -> str:
    """The part of a network in which an error was raised, as in " at block 2"; "" if unknown."""
    untyped: Any = net  # PyTorch does not annotate named_modules
    paths: dict[int, str] = {id(module): path for path, module in untyped.named_modules()}
    found = ""
    for each in _chain(error):
        for variables in _variables(each):
            found = _path_at_work(variables, paths) or found  # the innermost is the last
    return f" at {_described(net, found)}" if found else ""


def _variables(error: BaseException) -> Iterator[Mapping[str, Any]]:
    """The local variables of each function that an error passed, the innermost last."""
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame.f_locals
        traceback = traceback.tb_next


def _path_at_work(variables: Mapping[str, Any], paths: Mapping[int, str]) -> str:
    """The path of the module whose forward has these local variables, or works on a node of it."""
    node = variables.get("node")
    if isinstance(node, torch.fx.Node):
        # {key: (path of the module, its class)}, the innermost module last
        notes: dict[str, Any] = node.meta
        modules: dict[str, tuple[str, Any]] = notes.get("nn_module_stack") or {}
        for path, _ in reversed(list(modules.values())):
            if path in paths.values():
                return path
    return paths.get(id(variables.get("self")), "")


def _described(net: nn.Module, path: str) -> str:
    """A part of a network, as a message calls it."""
    kind = type(net.get_submodule(path)).__name__
    room, _, rest = path.partition(".")
    number = rest.partition(".")[0]  # of a block or an adapter
    if room == "blocks" and number.isdecimal():
        part = f"block {int(number) + 1}"
    elif room == "adapters" and number.isdecimal():
        part = f"the adapter of depth {number}"
    else:
        part = f"the {room}"
    return f"{part} ({path}, {kind})"
