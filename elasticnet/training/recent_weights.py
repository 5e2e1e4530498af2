"""The mean of the weights that a training had at its last validations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from elasticnet._modules.copies import detached_copy

Module = TypeVar("Module", bound=nn.Module)


class RecentWeights:
    """Keeps the weights of the last few times that it was given a network, and returns their mean.

    Near the end of a training the weights go round a good place, and their mean is often nearer to
    it than any of them. Source: the averaged checkpoints of Vaswani et al., "Attention Is All You
    Need" (2017). A moving average (`ema` of `TrainingStep`) is over steps instead, and forgets
    slowly.

    Args:
        max_count: How many times are kept at most, from 0 (none).

    Attributes:
        states: The state dicts that are kept, the newest last; on the CPU.

    Raises:
        ValueError: `max_count` is negative.

    Example:
        >>> recent = RecentWeights(max_count=3)
        >>> recent.add(net)
        >>> finished = recent.mean_net(net)
    """

    def __init__(self, max_count: int) -> None:
        if max_count < 0:
            raise ValueError(f"max_count {max_count}: expected a whole number, at least 0")
        self.max_count = max_count
        self.states: list[dict[str, Tensor]] = []

    def add(self, net: nn.Module) -> None:
        """Keep the weights that a network has now; forget the oldest if there are too many.

        Args:
            net: The network.
        """
        copied: dict[str, Tensor] = {}
        for name, tensor in net.state_dict().items():
            copied[name] = tensor.detach().to("cpu", copy=True)
        self.states.append(copied)
        self._forget_oldest()

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Go on from what `states` was.

        Args:
            states: The state dicts, the newest last; perhaps more than are kept now.
        """
        self.states = list(states)
        self._forget_oldest()

    def mean_net(self, net: Module) -> Module:
        """Return a copy of a network with the mean of the kept weights.

        Buffers of real numbers, such as running statistics, are averaged too; of others the newest
        is taken.

        Args:
            net: The network whose weights were kept.

        Returns:
            The copy; the network itself if nothing is kept.
        """
        if not self.states:
            return net
        mean: dict[str, Tensor] = {}
        for name, newest in self.states[-1].items():
            mean[name] = newest
            if newest.is_floating_point():
                stacked = torch.stack([state[name].double() for state in self.states])
                mean[name] = stacked.mean(dim=0).to(newest.dtype)
        copied = detached_copy(net)
        copied.load_state_dict(mean)
        return copied

    def _forget_oldest(self) -> None:
        num_forgotten = max(0, len(self.states) - self.max_count)
        self.states = self.states[num_forgotten:]
