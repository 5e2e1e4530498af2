"""Forward hooks on the net itself, which PyTorch calls with whatever the net returns.

A user's hook is written for a prediction, as `net(x, depth=d)` returns it. In `net(x, taps=...)` it
is called once for each prediction, shallowest first, as if the net had been called once for each
depth; what it returns replaces that prediction. So one hook is one function in all forms of a net.

A hook of a library that has to run once a pass, such as the one by which FSDP2 ends a forward, is
called once, with the whole `Taps`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from elasticnet._net.nests import copied, tensors_in
from elasticnet.taps import Taps

ONCE_A_PASS = ("torch", "lightning", "pytorch_lightning", "transformers", "deepspeed")
"""Packages whose hooks run once a pass: they shard, profile, count, and take any output."""


class NetHook:
    """A forward hook on an elastic net, called for each prediction of a `Taps`.

    Args:
        hook: The hook that was registered. With the attribute `takes_all_taps = True`, or if it
            comes from one of the packages `ONCE_A_PASS`, it is called once, with the whole `Taps`.
    """

    def __init__(self, hook: Callable[..., Any]) -> None:
        functools.update_wrapper(self, hook)  # keeps its name and module
        self.hook = hook
        takes_all_taps = getattr(hook, "takes_all_taps", False) is True
        self.runs_once_a_pass = takes_all_taps or _package_of(hook) in ONCE_A_PASS

    def __call__(self, net: nn.Module, inputs: tuple[Any, ...], *rest: Any) -> Any:
        """Return what replaces the output of the net; None: nothing does.

        Args:
            net: The net.
            inputs: The positional arguments that it was called with.
            *rest: The keyword arguments, if the hook takes them; then the output.

        Raises:
            TypeError: A hook that is called once makes something else of the `Taps`.
        """
        output = rest[-1]
        keywords: dict[str, Any] | None = rest[0] if len(rest) == 2 else None
        if not isinstance(output, Taps):
            return self._run(net, inputs, keywords, output)
        if self.runs_once_a_pass:
            result = self._run(net, inputs, keywords, output)
            self._check_is_taps(result)
            return result
        return self._run_for_each_prediction(net, inputs, keywords, output)

    def _run_for_each_prediction(
        self,
        net: nn.Module,
        inputs: tuple[Any, ...],
        keywords: dict[str, Any] | None,
        taps: Taps,
    ) -> Taps:
        """Return the `Taps` with the predictions that the hook makes of its predictions."""
        num_uses = Counter(_addresses([inputs, taps.features, taps.predictions]))
        predictions: list[Any] = []
        for depth, prediction in zip(taps.depths, taps.predictions, strict=True):
            # The hook may write in place into what it is given, as in the other forms.
            given = prediction
            if _shares_memory(prediction, num_uses):
                given = copied(prediction)
            keywords_at_depth = None if keywords is None else _at_depth(keywords, depth)
            # Of net(x, None, taps=...) it sees x alone.
            result = self._run(net, inputs[:1], keywords_at_depth, given)
            predictions.append(given if result is None else result)
        return Taps(taps.depths, tuple(predictions), taps.features)

    def _run(
        self, net: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any] | None, output: Any
    ) -> Any:
        """Call the hook, with keyword arguments if it takes them."""
        if keywords is None:
            return self.hook(net, inputs, output)
        return self.hook(net, inputs, keywords, output)

    def _check_is_taps(self, result: Any) -> None:
        """Raise if a hook that was called once for a `Taps` returned something else."""
        if result is not None and not isinstance(result, Taps):
            raise TypeError(
                f"the forward hook {name_of(self.hook)} got a Taps, from net(x, taps=...), and "
                f"returned a {type(result).__name__}. It must return a Taps, or None to change "
                "nothing"
            )


def _at_depth(keywords: dict[str, Any], depth: int) -> dict[str, Any]:
    """Return the keyword arguments of `net(x, depth=depth)`, from those with `taps=`."""
    others = {name: value for name, value in keywords.items() if name != "taps"}
    return {**others, "depth": depth}


def check_backward_hooks(net: nn.Module) -> None:
    """Raise if the backward pass of a `Taps` would leave out a hook on a net.

    PyTorch runs backward hooks only of modules that return a tensor or a tuple of tensors.

    Args:
        net: The net that is about to return a `Taps`.

    Raises:
        TypeError: It has a backward hook, and gradients are on.
    """
    if not torch.is_grad_enabled():
        return
    hooks = backward_hooks(net)
    if hooks:
        raise TypeError(
            f"the backward hook {name_of(hooks[0])} of this net would not run for a Taps, "
            "from net(x, taps=...): register it on the head, or on the stem or a block"
        )


def forward_hooks(net: nn.Module) -> list[Any]:
    """Return the hooks on a net that run before and after its forward.

    Args:
        net: Any module.
    """
    return _hooks_in(net, "_forward_pre_hooks") + _hooks_in(net, "_forward_hooks")


def backward_hooks(net: nn.Module) -> list[Any]:
    """Return the hooks on a net that run before and after its backward pass.

    Args:
        net: Any module.
    """
    return _hooks_in(net, "_backward_pre_hooks") + _hooks_in(net, "_backward_hooks")


def name_of(hook: Any) -> str:
    """Return what messages call a hook.

    Args:
        hook: A function, or an object that can be called.
    """
    function = _function_of(hook)
    return getattr(function, "__qualname__", type(function).__qualname__)


def _package_of(hook: Any) -> str:
    """Return the name of the package that a hook was written in."""
    function = _function_of(hook)
    module = getattr(function, "__module__", None) or type(function).__module__
    return module.partition(".")[0]


def _function_of(hook: Any) -> Any:
    """Return what a hook calls in the end, without what was put around it."""
    if isinstance(hook, NetHook):
        return _function_of(hook.hook)
    if isinstance(hook, functools.partial):
        return _function_of(hook.func)
    return hook


def _shares_memory(value: Any, num_uses: Mapping[int | None, int]) -> bool:
    """Return whether a value shares memory with something else.

    `num_uses` says how often each address occurs in all values, this one among them.
    """
    own_uses = Counter(_addresses(value))
    return None in own_uses or any(num_uses[each] > count for each, count in own_uses.items())


def _addresses(value: Any) -> list[int | None]:
    """Return where the memory of each tensor in a value begins; None if it cannot be known."""
    return [_address(tensor) for tensor in tensors_in(value)]


def _address(tensor: Tensor) -> int | None:
    if torch.compiler.is_compiling():
        return None  # a graph knows no addresses; it leaves out copies that nobody needs
    try:
        return tensor.untyped_storage().data_ptr()
    except Exception:  # a sparse tensor, or another kind without a storage of its own
        return None


def _hooks_in(net: nn.Module, table: str) -> list[Any]:
    """Return the hooks in one of the tables in which PyTorch keeps them, in order."""
    hooks: dict[int, Any] = getattr(net, table)  # torch 2.6 cannot compile vars(net)
    return list(hooks.values())
