"""Gradients averaged over several processes in buckets, while the backward pass still runs.

A bucket holds the gradients of several parameters. As soon as all of them are there, the bucket is
on its way to the other processes, and the backward pass goes on meanwhile.

Why not DistributedDataParallel: it arranges its buckets anew after the first step, so that a
resumed run would add up the gradients of its first step in another order than the run that went on
(with three processes or more, that changes the last bits). Here the content of the buckets is
fixed, and only the order in which they are sent is learned from the first step. It would also send
all weights at the start, which here are the same in all processes already, and search the graph of
each step for parameters that the step does not use.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

BUCKET_MB = 0.25
"""How large a bucket of few processes is, in MB of 10^6 bytes."""
PIECE_MB = 0.03
"""How much of a bucket each process has at least, as a ring of many sends it piece by piece."""


def bucket_mb_for(num_processes: int) -> float:
    """Return how large a bucket is at most, in MB, unless a single gradient is larger.

    Args:
        num_processes: How many processes there are.
    """
    return max(BUCKET_MB, PIECE_MB * num_processes)


class SentBucket(NamedTuple):
    """A bucket on its way to the other processes.

    Attributes:
        parameters: Those whose gradients it holds.
        total: Their gradients, flat, one after the other; when `work` ends, the sum of those of all
            processes.
        work: The sending.
    """

    parameters: list[nn.Parameter]
    total: Tensor
    work: dist.Work


class GradientBuckets:
    """Replaces gradients by their means over the processes, bucket by bucket.

    All processes must compute the gradients of the same parameters in a step. Parameters that a
    step does not use, as those of taps that are not sampled, are left out of their bucket.

    A gradient may grow in several pieces, as with reentrant checkpoints of a module that is called
    twice. The first step finds that out, and then all buckets are sent behind the backward pass.

    Args:
        parameters: The same ones in every process, in the same order.
        num_processes: How many processes there are, in the default group of torch.distributed.
        bucket_mb: How large a bucket is at most, in MB. None: as `bucket_mb_for` says.

    Raises:
        ValueError: `bucket_mb` is not above 0.

    Example:
        `with buckets.averaging(): loss.backward()`
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        num_processes: int,
        bucket_mb: float | None = None,
    ) -> None:
        if bucket_mb is None:
            bucket_mb = bucket_mb_for(num_processes)
        if not bucket_mb > 0:
            raise ValueError(f"bucket_mb {bucket_mb}: expected a number above 0")
        self._parameters = list(parameters)
        self._num_processes = num_processes
        self._max_bytes = bucket_mb * 1e6
        # The arrangement, made at the first step; and again where parameters were frozen since.
        self._arranged: list[int] = []  # the ids of the parameters in the buckets
        self._buckets: list[list[nn.Parameter]] = []
        self._bucket_of: dict[int, int] = {}  # by the id of the parameter
        self._hooks: list[RemovableHandle] = []
        # The order in which all processes send the buckets. None: not learned yet.
        self._order: list[int] | None = None
        # Whether some gradient grows in several pieces: then none is known to be whole before the
        # backward pass ends.
        self._grows_in_pieces = False
        # Where one backward pass stands.
        self._is_averaging = False
        self._arrived: set[int] = set()  # the ids of the parameters whose gradients have come
        self._num_missing: list[int] = []  # how many gradients each bucket still waits for
        self._completed: list[int] = []  # buckets in the order in which they became complete
        self._num_done: int = 0  # how many buckets of the order were sent, or had nothing to send
        self._sent: list[SentBucket] = []

    @contextmanager
    def averaging(self) -> Generator[None, None, None]:
        """Average the gradients of the backward pass inside the `with` block.

        At its end every gradient is the mean over the processes. Gradients that were there before,
        as of other parts of the batch, are a part of what is averaged. After an error inside the
        block the gradients are of no use.

        Yields:
            Nothing.
        """
        self._arrange()
        self._num_missing = [len(bucket) for bucket in self._buckets]
        self._arrived = set()
        self._completed = []
        self._num_done = 0
        self._sent = []
        self._is_averaging = True
        try:
            yield
        finally:
            self._is_averaging = False
        if self._order is None:
            self._order = self._learned_order()
        while self._num_done < len(self._order):
            self._send_next(self._order)  # also those that wait for gradients not computed
        self._write_means()

    def _arrange(self) -> None:
        """Cut the parameters that are trained into buckets, unless they are already."""
        trained = [parameter for parameter in self._parameters if parameter.requires_grad]
        ids = [id(parameter) for parameter in trained]
        if ids == self._arranged:
            return
        for hook in self._hooks:
            hook.remove()
        self._arranged = ids
        self._buckets = _cut_into_buckets(trained, self._max_bytes)
        self._bucket_of = {}
        for index, bucket in enumerate(self._buckets):
            for parameter in bucket:
                self._bucket_of[id(parameter)] = index
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._note_gradient)
            for parameter in trained
        ]
        self._order = None
        self._grows_in_pieces = False

    def _note_gradient(self, parameter: Tensor) -> None:
        """Send what is complete, now that the gradient of a parameter is there."""
        if not self._is_averaging:
            return
        index = self._bucket_of[id(parameter)]
        if id(parameter) in self._arrived:
            self._note_piece(index)
            return
        self._arrived.add(id(parameter))
        self._num_missing[index] -= 1
        if self._num_missing[index] == 0:
            self._completed.append(index)
        if self._order is None or self._grows_in_pieces:
            return
        # All processes send in the same order, whichever bucket becomes complete first.
        while self._num_done < len(self._order):
            if self._num_missing[self._order[self._num_done]] > 0:
                return
            self._send_next(self._order)

    def _note_piece(self, index: int) -> None:
        """Send nothing early any more, as a gradient that had come has grown since.

        torch.utils.checkpoint with `use_reentrant=True` does that to a module that is called twice.
        """
        self._grows_in_pieces = True
        if self._order is not None and index in self._order[: self._num_done]:
            raise RuntimeError(
                "a gradient has grown after it was sent to the other processes: the backward pass "
                "reached its parameter once more, as it did not in the first step; call "
                "torch.utils.checkpoint with use_reentrant=False"
            )

    def _learned_order(self) -> list[int]:
        """Return the order in which the buckets became complete in process 0, for all processes."""
        others = [index for index in range(len(self._buckets)) if index not in self._completed]
        order = [[*self._completed, *others]]
        dist.broadcast_object_list(order, src=0)
        return order[0]

    def _send_next(self, order: Sequence[int]) -> None:
        """Let the sum of the next bucket over the processes begin, if it has any gradients."""
        bucket = self._buckets[order[self._num_done]]
        self._num_done += 1
        parameters = [parameter for parameter in bucket if parameter.grad is not None]
        if not parameters:
            return
        # reshape and not view: the gradients of channels-last weights lie in that order
        total = torch.cat([_gradient_of(parameter).reshape(-1) for parameter in parameters])
        work = dist.all_reduce(total, async_op=True)  # a sum, as gloo knows no mean
        assert work is not None
        self._sent.append(SentBucket(parameters, total, work))

    def _write_means(self) -> None:
        """Wait for all sums, and write the means into the gradients."""
        for parameters, total, work in self._sent:
            work.wait()
            sizes = [parameter.numel() for parameter in parameters]
            means = torch.split(total / self._num_processes, sizes)
            for parameter, mean in zip(parameters, means, strict=True):
                _gradient_of(parameter).copy_(mean.view(parameter.shape))
        self._sent = []


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None
    return gradient


def _cut_into_buckets(
    parameters: Sequence[nn.Parameter], max_bytes: float
) -> list[list[nn.Parameter]]:
    """Return the parameters in buckets, the last ones first, each bucket of a single dtype."""
    buckets: list[list[nn.Parameter]] = []
    num_bytes = 0  # of the last bucket
    for parameter in reversed(parameters):
        own_bytes = parameter.numel() * parameter.element_size()
        has_room = num_bytes + own_bytes <= max_bytes
        if not buckets or not has_room or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            num_bytes = 0
        buckets[-1].append(parameter)
        num_bytes += own_bytes
    return buckets
