"""The training steps that an objective counts for itself, where its user does not pass a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from elasticnet.taps import is_whole_number


class StepCounter(nn.Module):
    """Counts training steps: one for every `accumulation` forwards.

    State dict key: `steps`, a scalar tensor of int64. Where a state has no such key, the count
    begins at 0, with `strict=True` too.

    The count is not a buffer. A buffer would go to the GPU with the network, and each step would
    wait for the GPU to read it. If it stayed on the CPU, DistributedDataParallel could not
    broadcast it there together with the others. Averages of weights (EMA) would average it.
    Only those that ask this very module for its buffers are told of it, see `named_buffers`.

    Args:
        accumulation: The number of forwards of one step: over how many the gradients are summed.

    Attributes:
        steps: How many steps were completed: a scalar tensor of int64, always on the CPU.

    Raises:
        ValueError: `accumulation` is not a whole number, or below 1.
    """

    def __init__(self, accumulation: int = 1) -> None:
        super().__init__()
        if not is_whole_number(accumulation) or accumulation < 1:
            raise ValueError(f"accumulation {accumulation!r}: expected a whole number, at least 1")
        self.accumulation = accumulation
        self.steps = torch.zeros((), dtype=torch.int64, device="cpu")
        self._forwards = 0  # of the step that is under way

    def step(self) -> int:
        """Return the step of the next forward, from 0."""
        return int(self.steps)

    def count_forward(self) -> int:
        """Count one forward.

        Returns:
            The step that it belongs to, from 0.
        """
        step = self.step()
        self._forwards += 1
        if self._forwards == self.accumulation:
            self._forwards = 0
            self.steps.add_(1)
        return step

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the count, to those that ask this very module for its buffers.

        Loaders of sharded networks ask module by module, and load what they find so: without it,
        `torch.distributed.checkpoint.state_dict` would load the count in process 0 alone, and
        Lightning in no process. A module around this one does not ask it. It reads tables of
        buffers, in which the count does not stand.

        Args:
            prefix: What comes before the name.
            recurse: As in PyTorch; of no effect here.
            remove_duplicate: As in PyTorch; of no effect here.
        """
        # A tensor of its own with the same memory: FSDP sends what it finds to the GPU by
        # `tensor.data = ...`, and the count stays where it is.
        name = f"{prefix}.steps" if prefix else "steps"
        yield name, self.steps.detach()

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}steps"] = self.steps

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = f"{prefix}steps"
        # nn.Module knows parameters and buffers alone, and would call the key unexpected.
        others = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        steps = torch.as_tensor(state_dict.get(key, 0))
        self.steps.copy_(steps.reshape(()))
        self._forwards = 0
