"""GraphStep: a training step that the device does alone, which CUDA records once and replays.

An ordinary step launches a thousand small kernels one by one, and a fast GPU waits for most of
them. A CUDA graph launches all of them at once. It repeats the very same kernels on the very same
memory, without Python: whatever differs from step to step must be computed on the device, from
tensors that the graph itself changes. So the number of the step is a tensor here, and the batch,
the learning rate and the decay of the moving average are computed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elasticnet._modules.unwrapping import unwrapped
from elasticnet.losses import ElasticObjective, LossTerms
from elasticnet.training.step import TrainingStep

BatchOnDevice = Callable[[Tensor, int, int], tuple[Any, Any]]
"""`batch_at(step, part, num_parts)` returns a part of a step's batch as (input, target).

`step` is int64 of shape (), on the device; everything is computed there.
"""

LearningRateOnDevice = Callable[[Tensor], Tensor]
"""`learning_rate_at(step)` returns a scalar, computed on the device."""

# The first steps run one by one: they let cuDNN choose its kernels, compile, and make the
# optimiser's state. None of that can be recorded. PyTorch's own example takes three.
WARM_UP_STEPS = 3

# What the objective is given as its step. `reasons_against` makes sure that nothing depends on it.
ANY_STEP = 0

# timm's ModelEmaV3 with its warm-up: at step s the decay is 1 - (1 + s)^-WARM_UP_POWER, at most the
# one that is set.
WARM_UP_POWER = 2 / 3

AVERAGED_DTYPES = (torch.float32, torch.float64)


class StepLosses(NamedTuple):
    """The losses of several steps, for `TrainingLog.add_rows`.

    Attributes:
        depths: The depths whose losses the steps computed.
        rows: The four terms of `LossTerms` and the loss of each depth: (steps, 4 + depths).
    """

    depths: tuple[int, ...]
    rows: Tensor


class GraphStep:
    """A `TrainingStep` without the host: on CUDA it is one graph, elsewhere a plain function.

    It trains the same network with the same optimiser, moving average and settings, so that both
    kinds of step may follow each other, and save and load the same state. The numbers are the same
    up to rounding: the learning rate and the decay of the moving average are rounded to float32.

    A graph holds the addresses of all tensors. So the state is loaded before the first step, and
    nothing replaces the network's parameters or the optimiser's state later. It holds the sizes
    too: another patch or batch size needs another `GraphStep`.

    Args:
        training_step: What to do in each step. `reasons_against` says what it must not have.
        batch_at: Returns the batch of a step.
        learning_rate_at: Returns the learning rate of a step.
        steps_done: The number of the first step, which is how many are done.
        max_unread: After how many steps at most the losses are read. The device holds a row for
            each.

    Attributes:
        steps_done: How many steps were asked for. The device may still be busy with the last ones.

    Raises:
        ValueError: The step has something that the host does; the message names all of it.

    Example:
        >>> step = GraphStep(training_step, sampler.batch_on_device, rate_at, max_unread=100)
        >>> for _ in range(100):
        ...     step()
        >>> log.add_rows(*step.take_losses())
    """

    def __init__(
        self,
        training_step: TrainingStep,
        batch_at: BatchOnDevice,
        learning_rate_at: LearningRateOnDevice,
        *,
        steps_done: int = 0,
        max_unread: int = 100,
    ) -> None:
        reasons = reasons_against(training_step)
        if reasons:
            raise ValueError(f"the step cannot be a graph: {'; '.join(reasons)}")
        if max_unread < 1:
            raise ValueError(f"max_unread {max_unread}: expected at least 1")
        device = training_step.processes.device
        self.training_step = training_step
        self.steps_done = steps_done
        self.max_unread = max_unread
        self._batch_at = batch_at
        self._learning_rate_at = learning_rate_at
        self._average = _AverageOnDevice(training_step) if training_step.ema > 0 else None

        # What the device knows: the number of the step, and what is computed from it.
        self._step = torch.full((), steps_done, dtype=torch.int64, device=device)
        self._learning_rate = torch.zeros((), dtype=torch.float32, device=device)
        # A row of losses for each step since they were last read; the first step makes it.
        self._losses: Tensor | None = None  # (max_unread, 4 + depths)
        self._depths: tuple[int, ...] = ()
        self._first_unread = steps_done

        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm_up_left = WARM_UP_STEPS
        # One stream for the warm-up and the recording: libraries keep workspaces by stream.
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # a graph that this one replaces must not be running
            self._stream = torch.cuda.Stream(device)

    @property
    def num_unread(self) -> int:
        """How many steps were done since their losses were read."""
        return self.steps_done - self._first_unread

    def __call__(self) -> None:
        """Do the next step, without waiting for the device.

        Raises:
            RuntimeError: The losses of `max_unread` steps were not read, or the step could not be
                recorded.
        """
        if self.num_unread == self.max_unread:
            raise RuntimeError(
                f"the losses of {self.max_unread} steps were not read: call take_losses, or give a "
                "larger max_unread"
            )
        if self._stream is None:
            self.one_step()
        elif self._warm_up_left > 0:
            self._warm_up(self._stream)
        else:
            if self._graph is None:
                self._graph = self._recorded(self._stream)
            self._graph.replay()
        self.steps_done += 1

    def one_step(self) -> None:
        """Do a step by tensor operations on the device alone: what a graph records.

        Nothing here asks for a value, so that no branch, number or shape depends on one.
        """
        # Gradients of the batch, limited in size.
        batch = partial(self._batch_at, self._step)
        terms = self.training_step.compute_gradients(batch, ANY_STEP)
        self.training_step.clip_gradients()
        # The update, and the average of the weights.
        self._learning_rate.copy_(self._learning_rate_at(self._step))
        with _on_device(self.training_step.optimizer, self._learning_rate):
            self.training_step.optimizer.step()
        if self._average is not None:
            self._average.update(self._step)
        # What the host reads later, and the number of the next step.
        self._write_losses(terms)
        self._step.add_(1)

    def take_losses(self) -> StepLosses:
        """Return the losses of all steps since the last call, still on the device.

        Raises:
            ValueError: No step was done since.
        """
        if self._losses is None or self.num_unread == 0:
            raise ValueError("take_losses: no step was done since the last call")
        steps = torch.arange(self._first_unread, self.steps_done, device=self._losses.device)
        rows = self._losses.index_select(0, steps % self.max_unread)  # a copy
        self._first_unread = self.steps_done
        return StepLosses(self._depths, rows)

    def _write_losses(self, terms: LossTerms) -> None:
        """Write the losses of a step into its row."""
        values = (terms.total, terms.routine, terms.deep_supervision, terms.distillation)
        row = torch.stack([*values, *terms.per_depth.values()])  # (4 + depths,)
        if self._losses is None:  # in the first step of the warm-up
            self._losses = row.new_zeros(self.max_unread, len(row))
            self._depths = tuple(terms.per_depth)
        slot = (self._step % self.max_unread).reshape(1)
        self._losses.index_copy_(0, slot, row[None])

    def _warm_up(self, stream: torch.cuda.Stream) -> None:
        """Do a step kernel by kernel, on the stream that the graph will be recorded on."""
        before = torch.cuda.current_stream(stream.device)
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            self.one_step()
        before.wait_stream(stream)
        self._warm_up_left -= 1

    def _recorded(self, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        """Return the step as a graph. Recording runs nothing: the weights stay as they are."""
        # The graph's gradients lie in its own memory: backward makes new ones where there are none.
        self.training_step.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                self.one_step()
        except RuntimeError as error:
            raise RuntimeError(
                f"step {self.steps_done} could not be recorded as a CUDA graph ({error}); train "
                "without one (the recipe: --cuda-graph off)"
            ) from error
        return graph


def reasons_against(training_step: TrainingStep) -> list[str]:
    """Return what in a step the host does, so that a graph cannot hold it.

    Args:
        training_step: The step.

    Returns:
        A reason a line; none where a graph can hold it. An objective that is no `ElasticObjective`
        is not looked into: it must not depend on its step.
    """
    reasons: list[str] = []
    if training_step.processes.count > 1:
        reasons.append("several processes share the batch")
    if training_step.scaler.is_enabled():
        reasons.append("float16 has a gradient scaler, which skips steps")
    if training_step.auto_batch:
        reasons.append("auto_batch splits the batch when the memory runs out")
    if training_step.tap_gradients is not None:
        reasons.append("tap_gradients joins the gradients of the taps")
    for group in training_step.optimizer.param_groups:
        # Of PyTorch's own, these are Adam and AdamW: what is fused reads its rate from a tensor.
        if not group.get("fused") or "capturable" not in group:
            name = type(training_step.optimizer).__name__
            reasons.append(f"the optimizer {name} cannot be recorded: take Adam(..., fused=True)")
            break
    if training_step.ema > 0:
        reasons += _not_averaged(training_step.net)
    objective: Any = unwrapped(training_step.objective)
    if isinstance(objective, ElasticObjective):
        reasons += _decided_by_the_step(objective)
    return reasons


def _not_averaged(net: nn.Module) -> list[str]:
    """Return a reason for each dtype that timm averages in a way of its own."""
    dtypes = {tensor.dtype for tensor in net.state_dict().values() if tensor.is_floating_point()}
    others = sorted(str(dtype) for dtype in dtypes if dtype not in AVERAGED_DTYPES)
    return [f"weights in {dtype} are averaged with random rounding" for dtype in others]


def _decided_by_the_step(objective: ElasticObjective) -> list[str]:
    """Return a reason for each weight that is a function of the step, and for sampled taps."""
    weights: dict[str, Any] = {
        "tap_weights": objective.tap_weights,
        "psd_weight": objective.psd_weight,
    }
    for index, term in enumerate(objective.distillations):
        weights[f"distillations[{index}].weight"] = term.weight
    reasons: list[str] = []
    for name, weight in weights.items():
        if callable(weight):
            reasons.append(f"{name} is a function of the step")
    if objective.sampled_taps is not None:
        reasons.append("sampled_taps draws other taps in each step")
    return reasons


@contextmanager
def _on_device(
    optimizer: torch.optim.Optimizer, learning_rate: Tensor
) -> Generator[None, None, None]:
    """Let an optimiser read its learning rate from a tensor; its settings return afterwards."""
    is_recorded = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    settings: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        settings.append({"lr": group["lr"], "capturable": group["capturable"]})
        group["lr"] = learning_rate
        # A fused optimiser works in the same way with and without. But one that is not capturable
        # refuses to be recorded, and one that is warns if it is not.
        group["capturable"] = is_recorded
    try:
        yield
    finally:
        for group, before in zip(optimizer.param_groups, settings, strict=True):
            group.update(before)


class _AverageOnDevice:
    """The moving average of a `TrainingStep`, with a decay that is computed from a tensor."""

    def __init__(self, training_step: TrainingStep) -> None:
        self._max_decay = training_step.ema
        self._averaged: list[tuple[Tensor, Tensor]] = []  # (weight, average)
        self._copied: list[tuple[Tensor, Tensor]] = []
        averages: dict[str, Tensor] = training_step.averaged_net.state_dict()
        for name, weight in training_step.net.state_dict().items():
            pair = (weight, averages[name])
            if weight.is_floating_point() and name not in training_step.copied_buffers:
                self._averaged.append(pair)
            else:
                self._copied.append(pair)

    @torch.no_grad()
    def update(self, step: Tensor) -> None:
        """Move the average towards the weights that a step has left."""
        share = decay_complement(step, self._max_decay)
        for weight, average in self._averaged:
            average.lerp_(weight, share.to(weight.dtype))
        for weight, average in self._copied:
            average.copy_(weight)


def decay_complement(step: Tensor, max_decay: float) -> Tensor:
    """Return 1 - the decay of timm's ModelEmaV3 with its warm-up, of a step that is on a device.

    Args:
        step: The number of the step, from 0: int64 of shape ().
        max_decay: The decay behind the warm-up.

    Returns:
        How far the average goes towards the weights, float64 of shape ().
    """
    in_warm_up = (1 + step).double() ** -WARM_UP_POWER
    return in_warm_up.clamp(min=1 - max_decay)
