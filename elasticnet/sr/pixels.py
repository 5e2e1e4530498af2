"""Float images become integers by one rule everywhere: clip, and round half away from zero.

NumPy's `rint` and torch's `round` take a tie to the even neighbour, so 0.5 and 2.5 would become 0
and 2; MATLAB, and with it this field, makes 1 and 3 of them. Nothing here imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def to_uint8(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image as 8-bit integers, clipped to 0..255 and rounded half away from zero.

    Args:
        values: Floats of any shape on the scale 0..255, without NaN. They are not changed.

    Example:
        >>> to_uint8(np.array([-3.0, 0.5, 1.5, 2.4999, 300.0])).tolist()
        [0, 1, 2, 2, 255]
    """
    return to_integers(values, np.uint8)


def to_integers(values: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Return an image as unsigned integers, clipped to their range and rounded half away from zero.

    Args:
        values: Floats of any shape on the scale of the result, 0..255 or 0..65535, without NaN.
            They are not changed.
        dtype: uint8 or uint16, in any byte order.
    """
    computed = np.promote_types(values.dtype, np.float32)  # float16 ends below 65535
    white = np.iinfo(dtype).max
    rounded = np.clip(values, 0, white, dtype=computed)
    rounded += _largest_below_half(computed)
    return rounded.astype(dtype)  # what is left behind the point is cut off


def refuse_not_finite(prediction: Tensor, depth: int | str) -> None:
    """Raise if a network has made NaN or infinity, which would become black or white pixels.

    Args:
        prediction: Of any shape.
        depth: The depth of the network, for the message.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    if not prediction.isfinite().all():
        raise ValueError(
            f"depth {depth} of this net gives NaN or infinity: run it in float32, or "
            "check its weights"
        )


def tensor_to_uint8(values: Tensor) -> Tensor:
    """Return an image as 8-bit integers, clipped to 0..255 and rounded half away from zero.

    Args:
        values: Floats of any shape on the scale 0..255, without NaN, on any device. They are not
            changed.
    """
    return tensor_to_integers(values, 255)


def tensor_to_integers(values: Tensor, white: int) -> Tensor:
    """Return an image as integers, clipped to 0..white and rounded half away from zero.

    Args:
        values: Floats of any shape on the scale 0..white, without NaN, on any device. They are
            not changed.
        white: The largest value: 255 for 8 bits, 65535 for 16.

    Returns:
        uint8 for 8 bits; for 16 bits uint16, or int32 on a device that has no uint16.
    """
    if values.element_size() < 4:
        values = values.float()
    half = _largest_below_half(np.dtype(np.float32 if values.element_size() == 4 else np.float64))
    lifted = values.clamp(0, white).add_(float(half))  # in place on the clamped copy
    return lifted.to(_integer_type(values.device.type, white))  # the fraction is cut off


def _integer_type(device_type: str, white: int) -> torch.dtype:
    """The narrowest type of integers in 0..white that PyTorch has on a kind of device."""
    import torch  # whoever has a tensor has imported it

    if white <= 255:
        return torch.uint8
    # Apple's mps has no uint16 in many versions of PyTorch.
    has_uint16 = device_type in ("cpu", "cuda")
    return torch.uint16 if has_uint16 else torch.int32


def _largest_below_half(dtype: np.dtype[Any]) -> np.floating[Any]:
    """The number to add before the fraction is cut off, in the precision of the values.

    One half itself would round 0.49999997, the largest float32 below one half, up to 1, because
    their sum is not a float32 and rounds to 1. This number keeps it below 1, and still lifts every
    tie: the exact sum of a tie is so close to the next integer that it rounds to that.
    """
    return np.nextafter(dtype.type(0.5), dtype.type(0))
