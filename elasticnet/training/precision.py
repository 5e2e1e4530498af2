"""Which precision a training computes in: where bfloat16 is fast, and where it is only emulated."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elasticnet.training.processes import Processes
from elasticnet.training.step import AUTOCAST_DTYPES

logger = logging.getLogger(__name__)

AUTO = "auto"
"""The precision that `resolve_precision` replaces by bfloat16 or float32."""

# Functions of torch.cpu that read the processor's flags. On x86, either of these units multiplies
# bfloat16. `torch.ops.mkldnn._is_mkldnn_bf16_supported` is no help: it also answers True for
# AVX512 without them, where bfloat16 is emulated.
_BFLOAT16_UNITS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
_ROUNDS = 3  # of the probe


def has_bfloat16_units(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 itself, rather than by way of float32.

    Args:
        device: A CPU with AVX512-BF16 or AMX does, and a GPU that says so. Of other devices, and
            of other processors than x86, it is not known, and the answer is no.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    for name in _BFLOAT16_UNITS:
        has_unit: Any = getattr(torch.cpu, name, None)  # not public: a later torch may lack it
        if has_unit is not None and has_unit():
            return True
    return False


def slowdown(dtype: torch.dtype, device: torch.device) -> float:
    """Return how many times as long a convolution takes in a data type as in float32.

    This is a probe of less than a second: the shortest of three rounds, in which the types take
    turns.

    Args:
        dtype: A floating-point type.
        device: Where it is computed.
    """
    seconds = {torch.float32: float("inf"), dtype: float("inf")}
    for round_number in range(_ROUNDS + 1):
        for each in seconds:
            took = _seconds_of_a_convolution(each, device)
            if round_number > 0:  # the first round warms up
                seconds[each] = min(seconds[each], took)
    return seconds[dtype] / seconds[torch.float32]


def resolve_precision(precision: str, processes: Processes) -> str:
    """Return the precision of a training's steps, and warn of one that is slower than float32.

    Args:
        precision: A key of `AUTOCAST_DTYPES`, or `"auto"`: bfloat16 if the devices of all
            processes compute in it, and otherwise float32.
        processes: The processes of the training.

    Returns:
        A key of `AUTOCAST_DTYPES`, the same in all processes.
    """
    device = processes.device
    if precision == AUTO:
        is_missing = processes.any(not has_bfloat16_units(device))
        return "float32" if is_missing else "bfloat16"
    if processes.first:
        _warn_if_slow(precision, device)
    return precision


def _warn_if_slow(precision: str, device: torch.device) -> None:
    """Warn of a precision that the device has no units for and that the probe finds slow."""
    dtype = AUTOCAST_DTYPES[precision]
    if dtype is None:
        return
    if dtype == torch.bfloat16 and has_bfloat16_units(device):
        return
    if dtype == torch.float16 and device.type == "cuda":
        return
    ratio = slowdown(dtype, device)
    if ratio > 1:
        logger.warning(
            "--precision %s: this device has no units for it, and a convolution takes %.1f times "
            "as long as in float32; --precision auto takes what is fast",
            precision,
            ratio,
        )


def _seconds_of_a_convolution(dtype: torch.dtype, device: torch.device) -> float:
    """Return how long one convolution takes that is large enough to be measured."""
    x = torch.zeros(4, 64, 48, 48, dtype=dtype, device=device)  # (b, c, h, w)
    weight = torch.zeros(64, 64, 3, 3, dtype=dtype, device=device)
    _wait_for(x)
    start = time.perf_counter()
    y = F.conv2d(x, weight, padding=1)
    _wait_for(y)
    return time.perf_counter() - start


def _wait_for(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
