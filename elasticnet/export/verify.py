"""The proof that a file is the network: its bytes are run and compared before they are written."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from elasticnet._modules.compare import largest_difference
from elasticnet.export.checkpoint_file import open_checkpoint, read_back
from elasticnet.export.failures import ExportError, reason_of
from elasticnet.export.int8 import quantized_copy
from elasticnet.export.onnx_file import open_onnx
from elasticnet.export.plan import ExportPlan
from elasticnet.export.program_file import open_program
from elasticnet.export.samples import Sample
from elasticnet.wrapper import ElasticWrapper

logger = logging.getLogger(__name__)


class Verification(NamedTuple):
    """What the comparison of a file with its network gave.

    Attributes:
        difference: The largest difference between their outputs; of a checkpoint, between the
            weights.
        int8_snr: What rounded weights cost, in dB: the peak signal-to-noise ratio of the
            file against the network. None without int8.
    """

    difference: float
    int8_snr: float | None


def verify(plan: ExportPlan, data: bytes) -> Verification:
    """Compare a file with the network of its plan.

    Args:
        plan: The export.
        data: The file's bytes.

    Returns:
        What the comparison gave.

    Raises:
        ExportError: The file does not take an input that the network takes, or an output differs
            by more than the plan's tolerance.
    """
    if plan.format == "safetensors":
        return Verification(difference=_difference_of_weights(plan, data), int8_snr=None)
    logger.info("depth %d: comparing the file with the network", plan.depth)
    run = _runner_or_refusal(data, plan)
    if not plan.int8:
        difference = _difference_of_outputs(run, plan.net, plan, plan.title)
        return Verification(difference=difference, int8_snr=None)

    # Rounded weights change the function on purpose, so the file cannot be compared with the
    # network at once. Three steps: the plain copy is the network; the file is the plain copy with
    # rounded weights; and how far that is from the network is measured, not judged.
    before_rounding = f"{plan.title}, before its weights are rounded,"
    _difference_of_outputs(plan.plain, plan.net, plan, before_rounding)
    rounded = quantized_copy(plan.plain, keep_integers=False)
    difference = _difference_of_outputs(run, rounded, plan, plan.title)
    snr = _signal_to_noise(run, plan)
    return Verification(difference=difference, int8_snr=snr)


def runner_of(data: bytes, format: str) -> Callable[..., Tensor]:
    """Return a function that runs a file on the CPU; it is called as the network is.

    Args:
        data: The file's bytes.
        format: "onnx", "torch" or "safetensors".
    """
    if format == "onnx":
        return open_onnx(data)
    if format == "torch":
        return open_program(data)
    return open_checkpoint(data)


def _runner_or_refusal(data: bytes, plan: ExportPlan) -> Callable[..., Tensor]:
    """What runs the file; ExportError where its runtime does not read it."""
    try:
        return runner_of(data, plan.format)
    except Exception as error:  # an operator that ONNX Runtime lacks, say
        other_format = "torch" if plan.format == "onnx" else "onnx"
        raise ExportError(
            f"{plan.title} cannot be run: {reason_of(error)}; another format may do: "
            f"format={other_format!r}. Nothing was written"
        ) from error


def _difference_of_weights(plan: ExportPlan, data: bytes) -> float:
    """The largest difference between the weights in a checkpoint, read back, and the network's."""
    loaded = read_back(data, plan.net)
    return largest_difference(dict(loaded.state_dict()), dict(plan.net.state_dict()))


@torch.no_grad()
def _difference_of_outputs(
    run: Callable[..., Tensor], net: ElasticWrapper, plan: ExportPlan, title: str
) -> float:
    """The largest difference between what `run` and the network make of the plan's inputs.

    It is at most the plan's tolerance: otherwise this raises ExportError.
    """
    differences: list[float] = []
    for sample in plan.inputs.samples:
        expected = net(sample.x, **sample.keywords)
        output = _output(run, sample, title)
        if output.shape != expected.shape:
            raise ExportError(
                f"{title} turns {sample.described()} into {tuple(output.shape)}, and the net "
                f"into {tuple(expected.shape)}; nothing was written"
            )
        differences.append(largest_difference(output, expected))
    difference = torch.tensor(differences).max().item()  # NaN where one is
    if math.isnan(difference) or difference > plan.tolerance:
        raise ExportError(
            f"{title} differs from the net by up to {difference:.3g}, "
            f"and {plan.tolerance:g} is allowed{_hint(plan)}; nothing was written"
        )
    return difference


def _hint(plan: ExportPlan) -> str:
    """The end of a sentence about a difference that ONNX Runtime alone has, where it may be one."""
    if plan.format != "onnx" or len(plan.inputs.example.tensors) == 1:
        return ""
    return (
        ". If a mask of the example lets some position see nothing, as padding on the left does in "
        "a decoder and padding on the right in a sliding window, ONNX gives other values there: "
        "load a transformers model with attn_implementation='eager', or choose another mask"
    )


def _output(run: Callable[..., Tensor], sample: Sample, title: str) -> Tensor:
    """What a file makes of an input that the network takes."""
    try:
        return run(sample.x, **sample.keywords)
    except Exception as error:  # whatever a runtime raises for a size that the graph does not take
        raise ExportError(
            f"{title} does not take {sample.described()}, which the net does "
            f"({reason_of(error)}): its code branches on the size. Name the axes that may vary "
            "by axes=, such as axes={0: 'batch'}, or their bounds. Nothing was written"
        ) from error


@torch.no_grad()
def _signal_to_noise(run: Callable[..., Tensor], plan: ExportPlan) -> float:
    """The peak signal-to-noise ratio of the file against the network, in dB.

    The peak is the width of the plan's `output_range`, or else that of the outputs at hand. The
    noise is the mean squared difference; without any, the ratio is infinite.
    """
    samples = plan.inputs.samples
    outputs = torch.cat([run(each.x, **each.keywords).flatten() for each in samples])
    expected = torch.cat([plan.net(each.x, **each.keywords).flatten() for each in samples])
    noise = (outputs - expected).double().square().mean().item()
    if noise == 0:
        return math.inf
    if plan.output_range is None:
        peak = (expected.max() - expected.min()).item()
    else:
        smallest, largest = plan.output_range
        peak = largest - smallest
    return 10 * math.log10(peak**2 / noise)
