"""The losses of an elastic network: deep supervision, and ElasticObjective, net and loss in one.

The ASRN paper's equation, with a weight for every tap:

    L = w_N L_N + sum_{n<N} w_n L_n + lambda L_PSD

L_n is the task loss of the prediction at tap n, N the deepest tap, and L_PSD the progressive
self-distillation (`elasticnet.distillation`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet.distillation import DISTANCES, position_axes, progressive_distillation
from elasticnet.loss_weights import check_tap_weights, equal
from elasticnet.taps import inclusion_probability, sample_depths

TaskLoss = Callable[[Any, Any], Tensor]
Weight = float | Callable[[int], float]
TapWeights = Mapping[int, float] | Callable[[int], Mapping[int, float]]


class LossTerms(NamedTuple):
    """One step's loss and what it is the sum of; every term is weighted already.

    Attributes:
        total: `routine + deep_supervision + distillation`, a scalar: call its `backward`.
        routine: The deepest tap's task loss, w_N L_N.
        deep_supervision: Those of the computed shallower taps, the sum of w_n L_n.
        distillation: lambda L_PSD, and the output distillation where it is on.
        per_depth: The plain task loss of every computed tap, unweighted and detached.
    """

    total: Tensor
    routine: Tensor
    deep_supervision: Tensor
    distillation: Tensor
    per_depth: dict[int, Tensor]


class StepWeights(NamedTuple):
    """The factors of one step's loss terms: numbers, or scalar tensors in a compiled step.

    Attributes:
        tap: The factor of each computed depth's task loss.
        distillation: lambda, the factor of L_PSD.
    """

    tap: dict[int, float | Tensor]
    distillation: float | Tensor


class TapNet(Protocol):
    """What the objective needs of a network; ElasticWrapper has it.

    Attributes:
        taps: The depths that carry a prediction, sorted, the deepest last.
        layout: What the axes of the features mean, see `elasticnet.distillation`.
        prefix_tokens: How many leading positions attention maps leave out.
        adapters: The modules that run only where their tap's prediction is computed.
    """

    taps: tuple[int, ...]
    layout: str
    prefix_tokens: int
    adapters: nn.ModuleDict

    def forward_taps(self, x: Any, depths: Sequence[int] | None = None, **keywords: Any) -> Any:
        """Return the predictions at some depths and the features of all taps.

        Args:
            x: The input.
            depths: Taps of the net. None: all of them.
            **keywords: What else the net takes.
        """
        ...


def deep_supervision(
    predictions: Sequence[Any], target: Any, task_loss: TaskLoss = F.l1_loss
) -> list[Tensor]:
    """Return the task loss of every prediction against the one target, unweighted.

    Args:
        predictions: The predictions of several taps, shallowest first.
        target: What all of them should be.
        task_loss: `task_loss(prediction, target)` returns a scalar.

    Returns:
        One scalar for each prediction.

    Raises:
        ValueError: The task loss returned something else than a scalar.
    """
    losses = [task_loss(prediction, target) for prediction in predictions]
    for loss in losses:
        if loss.ndim:
            raise ValueError(
                f"the task loss returned a tensor of shape {tuple(loss.shape)}: "
                "expected a scalar (reduce it)"
            )
    return losses


def charbonnier(prediction: Tensor, target: Tensor, eps: float = 1e-3) -> Tensor:
    """Return the mean of sqrt((prediction - target)^2 + eps^2): L1 with a round bottom.

    Source: Charbonnier et al. 1994; with eps = 1e-3 on values in 0..1, LapSRN (Lai et al. 2017).

    Args:
        prediction: Any shape.
        target: The same shape.
        eps: The radius of the bottom, in the unit of the target.

    Returns:
        A scalar.
    """
    return ((prediction - target).square() + eps**2).sqrt().mean()


class ElasticObjective(nn.Module):
    """A network and its loss in one forward: this is what trains and what DDP wraps.

    Under DistributedDataParallel pass `find_unused_parameters=objective.needs_unused_search`. Clear
    gradients with `zero_grad(set_to_none=True)`, or an optimiser's momentum moves an adapter that a
    sampled step did not use.

    Args:
        net: The elastic network.
        task_loss: `task_loss(prediction, target)` returns a scalar.
        psd_weight: lambda, the weight of L_PSD, at least 0, or a function of the step. It has no
            default, because what it means depends on the scale of the target and on the task loss:
            a weight published for targets in 0..255 weighs 255 times more against an L1 loss on
            0..1. 0 leaves the term out.
        tap_weights: The weight of each depth's loss, or a function of the step that returns such a
            mapping; `elasticnet.loss_weights` has both. None weighs every tap by 1, as the paper
            does.
        sampled_taps: Compute the deepest tap and this many others a step, chosen by seed and step
            alone. A sampled tap's loss is divided by the probability that it is sampled, so that
            the expected loss stays the same. L_PSD sees all taps in any case. None: all taps.
        seed: The seed of the sampling.
        distance: "norm" or "squared", see `attention_distance`.
        power: The power of |features| in an attention map.
        detach_teacher: Whether the gradient of L_PSD stays out of the deeper map of a pair.
        eps: The smallest norm that a map is divided by.
        output_weight: Weight of the output distillation: the sum over the computed shallower taps
            of w_n output_loss(prediction_n, prediction_N), with prediction_N detached. 0 leaves it
            out.
        output_loss: `output_loss(prediction, deepest_prediction)` returns a scalar.

    Raises:
        ValueError: An argument is out of range, or the net's layout is none.
        TypeError: The tap weights are neither a mapping nor a function that returns one.

    Example:
        `objective = ElasticObjective(net, nn.L1Loss(), psd_weight=4e-4)` and, in the loop,
        `objective(x, target).total.backward()`
    """

    def __init__(
        self,
        net: TapNet,
        task_loss: TaskLoss,
        psd_weight: Weight,
        *,
        tap_weights: TapWeights | None = None,
        sampled_taps: int | None = None,
        seed: int = 0,
        distance: str = "norm",
        power: float = 1,
        detach_teacher: bool = True,
        eps: float = 1e-4,
        output_weight: float = 0.0,
        output_loss: TaskLoss = F.l1_loss,
    ) -> None:
        super().__init__()
        # Whatever the first step would refuse is refused here.
        if distance not in DISTANCES:
            raise ValueError(f"distance {distance!r}: expected one of {', '.join(DISTANCES)}")
        if not callable(psd_weight) and psd_weight < 0:
            raise ValueError(
                f"psd_weight {psd_weight}: expected a number, at least 0, or a function of the step"
            )
        if sampled_taps is not None:
            sample_depths(net.taps, sampled_taps, seed, step=0)
        position_axes(net.layout)
        if tap_weights is None:
            tap_weights = equal(net.taps)
        if callable(tap_weights):
            check_tap_weights(tap_weights(0), net.taps)
        else:
            tap_weights = check_tap_weights(tap_weights, net.taps)

        self.net = net
        self.task_loss = task_loss
        self.psd_weight = psd_weight
        self.tap_weights: TapWeights = tap_weights
        self.sampled_taps = sampled_taps
        self.seed = seed
        self.distance = distance
        self.power = power
        self.detach_teacher = detach_teacher
        self.eps = eps
        self.output_weight = output_weight
        self.output_loss = output_loss

    @property
    def needs_unused_search(self) -> bool:
        """Whether a step can leave parameters without gradient.

        A tap that is not sampled leaves its adapter unused.
        """
        return self.sampled_taps is not None and len(self.net.adapters) > 0

    def depths_at(self, step: int | None) -> tuple[int, ...]:
        """Return the depths whose predictions a step computes, the deepest last.

        Args:
            step: The training step; needed with `sampled_taps`.

        Raises:
            ValueError: The step is needed and is None.
        """
        if self.sampled_taps is None:
            return self.net.taps
        step = _required(step, "sampled taps")
        sample = sample_depths
        if torch.compiler.is_compiling():
            # Traced, the draw would tie every compiled graph to a single step.
            sample = _outside_the_graph(sample)
        return sample(self.net.taps, self.sampled_taps, self.seed, step)

    def weights_at(self, step: int | None) -> dict[int, float]:
        """Return the weight w_n of every tap in a step, without what sampling divides it by.

        Args:
            step: The training step; needed if `tap_weights` is a function.

        Raises:
            ValueError: The step is needed and is None, or the function returned wrong weights.
            TypeError: The function returned something else than a mapping.
        """
        if callable(self.tap_weights):
            weights = self.tap_weights(_required(step, "a tap_weights schedule"))
            return check_tap_weights(weights, self.net.taps)
        return dict(self.tap_weights)

    def forward(self, x: Any, target: Any, step: int | None = None, **keywords: Any) -> LossTerms:
        """Return the loss of one batch.

        Args:
            x: The input of the network.
            target: What every prediction should be, as `task_loss` takes it.
            step: The training step; needed with `sampled_taps` and with weights that are functions.
            **keywords: For the network.

        Returns:
            The terms; `total` is what to minimise.

        Raises:
            ValueError: The step is needed and is None, or the task loss is not a scalar.
        """
        depths = self.depths_at(step)  # the deepest last
        *shallower, deepest = depths
        if self._weights_are_scheduled() and torch.compiler.is_compiling():
            # This call stands here and not in a function: where it stands, the graph begins anew.
            packed = _outside_the_graph(self._packed_weights)(depths, step)
            weights = self._unpacked_weights(packed, depths)
        else:
            weights = self._step_weights(depths, step)
        taps = self.net.forward_taps(x, depths=depths, **keywords)
        predictions = dict(zip(depths, taps.predictions, strict=True))
        task_losses = deep_supervision(taps.predictions, target, self.task_loss)
        losses = dict(zip(depths, task_losses, strict=True))

        # w_N L_N
        routine = _weighted(weights.tap[deepest], losses[deepest])

        # sum over n < N of w_n L_n
        supervision = torch.zeros_like(routine)
        for depth in shallower:
            supervision = supervision + _weighted(weights.tap[depth], losses[depth])

        # lambda L_PSD
        distillation = torch.zeros_like(routine)
        if isinstance(weights.distillation, Tensor) or weights.distillation != 0:
            psd = progressive_distillation(
                taps.features,
                layout=self.net.layout,
                prefix_tokens=self.net.prefix_tokens,
                power=self.power,
                distance=self.distance,
                detach_teacher=self.detach_teacher,
                eps=self.eps,
            )
            distillation = _weighted(weights.distillation, psd)

        # the deepest prediction teaches the others
        if self.output_weight:
            teacher = predictions[deepest].detach()
            for depth in shallower:
                output_loss = self.output_loss(predictions[depth], teacher)
                weight = self.output_weight * weights.tap[depth]
                distillation = distillation + _weighted(weight, output_loss)

        total = routine + supervision + distillation
        return LossTerms(
            total=total,
            routine=routine,
            deep_supervision=supervision,
            distillation=distillation,
            per_depth=_detached(losses, total),
        )

    def _step_weights(self, depths: Sequence[int], step: int | None) -> StepWeights:
        """Return the factors of the loss terms of a step that computes these depths."""
        tap_weights = self.weights_at(step)
        factors: dict[int, float | Tensor] = {depth: tap_weights[depth] for depth in depths}
        if self.sampled_taps is not None:
            probability = inclusion_probability(self.net.taps, self.sampled_taps)
            for depth in depths[:-1]:  # the deepest is always computed
                factors[depth] = tap_weights[depth] / probability
        psd_weight = self.psd_weight
        if callable(psd_weight):
            psd_weight = psd_weight(_required(step, "a psd_weight schedule"))
        return StepWeights(tap=factors, distillation=psd_weight)

    # --- for torch.compile: weights that change, as a tensor that is computed outside the graph.
    # A number that changes with the step would be a part of the graph, or an input of it that is no
    # tensor: the step would be compiled, or its CUDA graph recorded, anew for every value.

    def _weights_are_scheduled(self) -> bool:
        return callable(self.tap_weights) or callable(self.psd_weight)

    def _packed_weights(self, depths: Sequence[int], step: int | None) -> Tensor:
        """Return the factor of each depth, and behind them lambda, on the parameters' device."""
        weights = self._step_weights(depths, step)
        like = next(self.parameters(), torch.zeros(()))
        return torch.tensor(
            [*weights.tap.values(), weights.distillation],
            dtype=torch.promote_types(like.dtype, torch.float32),
            device=like.device,
        )  # (number of depths + 1,)

    def _unpacked_weights(self, packed: Tensor, depths: Sequence[int]) -> StepWeights:
        """Return what `_packed_weights` packed, as scalar tensors of the graph."""
        *tap, distillation = packed.unbind()
        factors: dict[int, float | Tensor] = dict(zip(depths, tap, strict=True))
        if not callable(self.psd_weight):
            # It stays the number that it is, so that 0 leaves the term out.
            return StepWeights(tap=factors, distillation=self.psd_weight)
        return StepWeights(tap=factors, distillation=distillation)


def _outside_the_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a compiled step call a function as it is, without tracing it."""
    return torch.compiler.disable(function)  # pyright: ignore[reportUnknownMemberType]


def _weighted(weight: float | Tensor, loss: Tensor) -> Tensor:
    """Return weight * loss in the loss's own type, which a tensor as the weight could change."""
    if isinstance(weight, Tensor):
        weight = weight.to(loss.dtype)
    return weight * loss


def _detached(losses: Mapping[int, Tensor], total: Tensor) -> dict[int, Tensor]:
    """Return copies of the losses without their history.

    They are copied as one stacked tensor, `total` with them: a compiler folds 1.0 * loss and
    loss.detach() into one tensor, whose gradient is then lost.
    """
    copies = torch.stack([total, *losses.values()]).detach().unbind()[1:]
    return dict(zip(losses, copies, strict=True))


def _required(step: int | None, what: str) -> int:
    """Return the step, or say what needs it."""
    if step is None:
        raise ValueError(f"step=None: {what} needs the step; call objective(x, target, step=step)")
    return step
