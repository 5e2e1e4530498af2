"""The elastic network as the objective sees it, and which networks it refuses."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from elasticnet._modules.not_elastic import say_not_elastic
from elasticnet._modules.unwrapping import network_inside
from elasticnet.distillation import check_prefix_tokens, position_axes
from elasticnet.parameter_groups import LayerMatcher

RESERVED_WORDS = ("target", "step")
"""The arguments of `objective(x, target, step)` that are never handed to the network."""


class TapNet(Protocol):
    """What the objective reads from a network; every ElasticWrapper has it.

    Attributes:
        taps: The depths that carry a prediction, sorted, the deepest last.
        layout: What the axes of the features mean, see `elasticnet.distillation`.
        prefix_tokens: How many leading positions attention maps leave out.
        adapters: The modules that run only in steps that compute their tap's prediction.
        stem_keywords: The keyword arguments of the stem's forward.
        mask_keyword: The keyword argument that says which positions count; or None.
        training: Whether the network is in training mode.
        head: The shared head.
        head_statistics: By depth, statistics that the head's BatchNorm has there.
    """

    taps: tuple[int, ...]
    layout: str
    prefix_tokens: int
    adapters: nn.ModuleDict
    stem_keywords: frozenset[str]
    mask_keyword: str | None
    training: bool
    head: nn.Module
    head_statistics: nn.ModuleDict

    def takes_keyword(self, name: str) -> bool:
        """Return whether `net(x, ...)` may have a keyword argument of this name.

        Args:
            name: Such as "mask".
        """
        ...

    def run_to(self, x: Any, depth: int, **keywords: Any) -> Any:
        """Return the state of a pass at a depth.

        Args:
            x: The input.
            depth: A tap of the net.
            **keywords: For the stem and `call_block`.
        """
        ...

    def continue_from(self, state: Any, depth: int) -> Any:
        """Return the state at a deeper tap.

        Args:
            state: The state at a shallower one.
            depth: A tap of the net.
        """
        ...

    def predict(self, state: Any) -> Any:
        """Return the prediction at the depth of a state.

        Args:
            state: From `run_to` or `continue_from`.
        """
        ...

    def group_matcher(self, coarse: bool = False) -> LayerMatcher:
        """Return the function from a parameter's name to its layer.

        Args:
            coarse: As in timm.
        """
        ...

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that weight decay leaves out."""
        ...


def elastic_net(net: nn.Module) -> TapNet:
    """Return the elastic net inside the modules that other libraries wrapped around it.

    Args:
        net: The net that the objective was given.

    Raises:
        TypeError: There is none inside.
    """
    elastic = network_inside(net)
    if not hasattr(elastic, "taps"):
        raise TypeError(say_not_elastic(elastic))
    return elastic


def check_stem(net: TapNet) -> None:
    """Raise if the stem has an argument that the objective keeps for itself.

    Args:
        net: The net.

    Raises:
        ValueError: It has one.
    """
    for name in RESERVED_WORDS:
        if name in net.stem_keywords:
            raise ValueError(
                f"the stem's forward has an argument {name!r}, which it can never get: "
                f"objective(x, target, step=...) keeps it. Give the stem's argument another name"
            )


def check_has_maps(net: TapNet) -> None:
    """Raise unless the features of a net have attention maps, which L_PSD compares.

    Args:
        net: The net.

    Raises:
        ValueError: Its layout is invalid or has no positions, or its prefix tokens do not fit it.
    """
    position_axes(net.layout)
    check_prefix_tokens(net.prefix_tokens, net.layout)
