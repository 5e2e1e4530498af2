"""How sure a network is of its prediction: the scores by which an input leaves at a tap.

A policy is a function of the logits at all taps that an input has passed, shallowest first. It
returns a score for each prediction: the higher, the surer. An input leaves at the first tap whose
score reaches a threshold, see `elasticnet.exits.ExitRule`. A function of your own is as good as
those here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Policy: TypeAlias = Callable[[Sequence[Tensor]], Tensor]


def confidence(logits_so_far: Sequence[Tensor]) -> Tensor:
    """Return the probability of the likeliest class, from 1/classes to 1.

    Source: the rule of MSDNet, Huang et al. 2018, "Multi-Scale Dense Networks for Resource
    Efficient Image Classification".

    Args:
        logits_so_far: The logits (..., classes) at each tap so far, of which the last count.

    Returns:
        A score (...) for each prediction.
    """
    return logits_so_far[-1].softmax(dim=-1).amax(dim=-1)


def entropy(logits_so_far: Sequence[Tensor]) -> Tensor:
    """Return 1 minus the entropy of the classes as a share of the largest one, from 0 to 1.

    Source: the rule of BranchyNet, Teerapittayanon et al. 2016, "BranchyNet: Fast Inference via
    Early Exiting from Deep Neural Networks", turned round so that the higher is the surer.

    Args:
        logits_so_far: The logits (..., classes) at each tap so far, of which the last count.

    Returns:
        A score (...) for each prediction. It is 1 where there is one class alone.
    """
    logits = logits_so_far[-1]
    num_classes = logits.shape[-1]
    if num_classes == 1:
        return torch.ones_like(logits[..., 0])
    log_probabilities = logits.log_softmax(dim=-1)
    probabilities = log_probabilities.exp()
    # A probability of 0 adds nothing, though its logarithm is -inf.
    terms = torch.where(probabilities > 0, probabilities * log_probabilities, 0.0)
    return 1 + terms.sum(dim=-1) / math.log(num_classes)


def margin(logits_so_far: Sequence[Tensor]) -> Tensor:
    """Return by how much the likeliest class is more probable than the second, from 0 to 1.

    Args:
        logits_so_far: The logits (..., classes) at each tap so far, of which the last count.

    Returns:
        A score (...) for each prediction. It is 1 where there is one class alone.
    """
    probabilities = logits_so_far[-1].softmax(dim=-1)
    if probabilities.shape[-1] == 1:
        return probabilities[..., 0]
    first, second = probabilities.topk(2, dim=-1).values.unbind(dim=-1)
    return first - second


def patience(logits_so_far: Sequence[Tensor]) -> Tensor:
    """Return how many taps in a row, the last one included, predict the same class: 1, 2, ...

    Source: Zhou et al. 2020, "BERT Loses Patience: Fast and Robust Inference with Early Exit",
    which counts one less: its patience of 1 is a threshold of 2 here.

    Args:
        logits_so_far: The logits (..., classes) at each tap so far.

    Returns:
        A score (...) for each prediction, of float32.
    """
    classes = [logits.argmax(dim=-1) for logits in logits_so_far]  # (...) at each tap
    agrees = torch.ones_like(classes[-1], dtype=torch.bool)
    taps_in_a_row = torch.zeros_like(classes[-1], dtype=torch.float32)
    for earlier in reversed(classes):
        agrees = agrees & (earlier == classes[-1])
        taps_in_a_row += agrees
    return taps_in_a_row


POLICIES: dict[str, Policy] = {
    "confidence": confidence,
    "entropy": entropy,
    "margin": margin,
    "patience": patience,
}
