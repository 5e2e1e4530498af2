"""The keys of BasicSR's EDSR and RCAN, and the authors' for the same tensors.

BasicSR (github.com/XPixelGroup/BasicSR) has the same two networks with other names, and with the
mean colour as a constant of the code in place of the authors' two 1x1 convolutions, which its
files therefore do not hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from elasticnet.sr.models.edsr import MeanShift

# How the names begin in BasicSR, and how the authors' do; the first rule that fits counts.
# {num_blocks} is the place of the conv behind the blocks, {group_size} that of the conv behind the
# blocks of a group of RCAN.
IN_GROUP = r"body\.(?P<group>\d+)\.residual_group\.(?P<block>\d+)\.rcab\."
RULES = (
    # both networks
    (r"conv_first\.", "head.0."),
    (r"conv_after_body\.", "body.{num_blocks}."),
    (r"upsample\.", "tail.0."),
    (r"conv_last\.", "tail.1."),
    # EDSR
    (r"body\.(?P<block>\d+)\.conv1\.", "body.{block}.body.0."),
    (r"body\.(?P<block>\d+)\.conv2\.", "body.{block}.body.2."),
    # RCAN
    (IN_GROUP + r"3\.attention\.1\.", "body.{group}.body.{block}.body.3.conv_du.0."),
    (IN_GROUP + r"3\.attention\.3\.", "body.{group}.body.{block}.body.3.conv_du.2."),
    (IN_GROUP, "body.{group}.body.{block}.body."),
    (r"body\.(?P<group>\d+)\.conv\.", "body.{group}.body.{group_size}."),
)
MEAN_SHIFTS = {"sub_mean.": -1, "add_mean.": 1}  # the sign of each


def has_basicsr_keys(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict is one of BasicSR's EDSR or RCAN, by its names.

    Args:
        state: Any state dict.
    """
    has_edsr_block = "body.0.conv1.weight" in state
    has_rcan_block = "body.0.residual_group.0.rcab.0.weight" in state
    return "conv_after_body.weight" in state and (has_edsr_block or has_rcan_block)


def from_basicsr(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return BasicSR's state dict under the authors' keys, with the mean shifts that it lacks.

    Args:
        state: A state dict that `has_basicsr_keys`; a tensor that neither network has keeps its
            name.
    """
    num_blocks = _count(state, r"body\.(\d+)\.")
    group_size = _count(state, r"body\.0\.residual_group\.(\d+)\.")
    authors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        authors[_renamed(name, num_blocks, group_size)] = tensor
    like = state["conv_after_body.weight"]
    for prefix, sign in MEAN_SHIFTS.items():
        for name, tensor in MeanShift(sign).state_dict().items():
            authors[prefix + name] = tensor.to(dtype=like.dtype, device=like.device)
    return authors


def _renamed(name: str, num_blocks: int, group_size: int) -> str:
    """The authors' name of one of BasicSR's tensors; the name itself if there is none."""
    for pattern, beginning in RULES:
        match = re.match(pattern, name)
        if match is not None:
            numbers = match.groupdict()
            found = beginning.format(num_blocks=num_blocks, group_size=group_size, **numbers)
            return found + name[match.end() :]
    return name


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers stand in names at the place of the pattern's group."""
    matches = [re.match(pattern, name) for name in state]
    return len({match[1] for match in matches if match is not None})
