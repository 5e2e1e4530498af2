"""What both `save` and `load` refuse: things that are no elastic net, and numbers that are none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elasticnet.wrapper import ElasticWrapper


def check_is_wrapper(net: Any) -> None:
    """Refuse what is no `ElasticWrapper`.

    Args:
        net: What a user passed as a net.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(net, ElasticWrapper):
        raise TypeError(
            f"net is a {type(net).__name__}: expected an ElasticWrapper, "
            "such as ElasticWrapper(blocks, head)"
        )


def count_wrong_values(tensor: Tensor, *, is_parameter: bool) -> tuple[int, str]:
    """Return how many values of a tensor a checkpoint must not hold, and what they are.

    NaN is wrong everywhere, infinity in parameters alone: a buffer may hold it, as masks do.

    Args:
        tensor: Of any dtype.
        is_parameter: Whether it is learned.

    Returns:
        The count, and "NaN" or "NaN or infinity".
    """
    kind = "NaN or infinity" if is_parameter else "NaN"
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0, kind
    values = tensor.detach()
    if values.element_size() == 1:  # float8 has no isnan
        values = values.float()
    wrong = ~torch.isfinite(values) if is_parameter else torch.isnan(values)
    return int(wrong.sum()), kind
