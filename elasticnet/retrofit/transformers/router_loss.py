"""The loss of a mixture of experts that balances its routers, for nets split from transformers."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from elasticnet.wrapper import ElasticWrapper

ROUTER_LOGITS = "router_logits"  # what transformers calls the outputs of routers
LOSS_FUNCTION = "load_balancing_loss_func"  # what its modules call the function of the loss


class RouterLoss:
    """Records what the routers of a net return, and computes the model's own auxiliary loss of it.

    A model such as Mixtral adds this loss to its own one if its config says
    `output_router_logits=True`; an elastic net returns predictions and no loss.

    Args:
        net: A net that `elasticnet.retrofit.transformers.split` made, or one cut from it.

    Raises:
        ValueError: The net has no routers, or the model has no such loss.

    Example:
        ```python
        routers = RouterLoss(net)
        with routers:
            terms = objective(ids, labels)
        (terms.total + routers.loss()).backward()
        ```
    """

    def __init__(self, net: ElasticWrapper) -> None:
        stem: Any = net.stem
        head: Any = net.head
        if not has_router_loss(getattr(head, "model", None), getattr(stem, "base", None)):
            raise ValueError(
                "RouterLoss: expected a net split from a transformers model whose routers have a "
                "loss, such as MixtralForCausalLM"
            )
        self._model: Any = head.model
        self._recorder = _recorder_of(stem.base)
        kind = self._recorder.target_class
        self._routers = [module for module in net.blocks.modules() if isinstance(module, kind)]
        self._logits: list[Tensor] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> RouterLoss:
        """Begin to record, and forget what was recorded before."""
        self._logits = []
        for router in self._routers:
            self._hooks.append(router.register_forward_hook(self._record))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop to record."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _record(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Keep the logits of a router."""
        if isinstance(output, Tensor):
            self._logits.append(output)
        else:
            self._logits.append(output[self._recorder.index])

    def loss(self, attention_mask: Tensor | None = None) -> Tensor:
        """Return the auxiliary loss of the recorded pass, times the model's own coefficient.

        Args:
            attention_mask: The mask of the pass (b, n); padding does not count then.

        Returns:
            The loss, a scalar, over the layers that ran.

        Raises:
            RuntimeError: Nothing was recorded.
        """
        if not self._logits:
            raise RuntimeError("no router ran: run the net inside of `with routers:`")
        compute: Any = _loss_function(self._model)
        value: Tensor = compute(
            tuple(self._logits),
            self._model.num_experts,
            self._model.num_experts_per_tok,
            attention_mask,
        )
        return self._model.router_aux_loss_coef * value


def has_router_loss(model: Any, base: Any) -> bool:
    """Return whether a transformers model has a loss that balances its routers.

    Args:
        model: The model.
        base: Its base model.
    """
    if model is None or _recorder_of(base) is None or _loss_function(model) is None:
        return False
    return hasattr(model, "router_aux_loss_coef") and hasattr(model, "num_experts_per_tok")


def _recorder_of(base: Any) -> Any:
    """How transformers finds the routers of a base model; None if it has none."""
    recorders: Any = getattr(base, "_can_record_outputs", None) or {}
    recorder = recorders.get(ROUTER_LOGITS)
    return recorder if hasattr(recorder, "target_class") else None


def _loss_function(model: Any) -> Any:
    """The function that the model's module computes the loss with; None if it has none."""
    return getattr(sys.modules[type(model).__module__], LOSS_FUNCTION, None)
