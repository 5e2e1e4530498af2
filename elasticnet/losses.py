"""Deep supervision and progressive self-distillation: the functional losses and ElasticObjective,
net and loss in one.

L = w_N L_N + sum_{n<N} w_n L_n + lambda L_PSD (ASRN). Every term of LossTerms is weighted already,
so that they add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet.distillation import DISTANCES, attention_distance, attention_map, position_axes
from elasticnet.loss_weights import check_tap_weights, equal
from elasticnet.taps import inclusion_probability, sample_depths

TaskLoss = Callable[[Any, Any], Tensor]
Weight = float | Callable[[int], float]
TapWeights = Mapping[int, float] | Callable[[int], Mapping[int, float]]


class LossTerms(NamedTuple):
    """One step's loss: `total` is `routine + deep_supervision + distillation`, each a weighted
    scalar tensor.

    routine: the deepest tap's task loss. deep_supervision: the shallower taps'. distillation: the
    PSD term, and the output distillation where it is on. per_depth: every computed tap's plain task
    loss, unweighted and detached.
    """

    total: Tensor
    routine: Tensor
    deep_supervision: Tensor
    distillation: Tensor
    per_depth: dict[int, Tensor]


class TapNet(Protocol):
    """What the objective needs of a network; ElasticWrapper has it."""

    taps: tuple[int, ...]
    layout: str
    prefix_tokens: int
    adapters: nn.ModuleDict

    def forward_taps(self, x: Any, depths: Sequence[int] | None = None, **context: Any) -> Any: ...


def progressive_distillation(
    features: Sequence[Tensor],
    layout: str = "b c h w",
    prefix_tokens: int = 0,
    power: float = 1,
    distance: str = "norm",
    detach_teacher: bool = True,
    eps: float = 1e-4,
) -> Tensor:
    """Return L_PSD: the sum over neighbouring taps of the distance between their attention maps;
    the deeper teaches.

    features: the taps' features, shallowest first, each a float tensor of `layout`; resolutions may
    differ. `detach_teacher` keeps the gradient out of the deeper map (our choice; the paper does
    not say). A single tap gives
    0.
    """
    if not features:
        raise ValueError("progressive_distillation: no features given, expected at least one tap's")
    maps = [attention_map(feature, layout, power, prefix_tokens) for feature in features]
    loss = maps[0].new_zeros(())
    for student, teacher in pairwise(maps):
        loss = loss + attention_distance(
            student, teacher.detach() if detach_teacher else teacher, distance, eps
        )
    return loss


def deep_supervision(
    predictions: Sequence[Any], target: Any, task_loss: TaskLoss = F.l1_loss
) -> list[Tensor]:
    """Return the task loss of every prediction against the one target, shallowest first; scalars,
    unweighted.
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
    """Return the mean of sqrt((prediction - target)^2 + eps^2): L1 with a round bottom; `eps` in
    units of the image.

    Source: Charbonnier et al. 1994; with eps = 1e-3 on images in 0..1, LapSRN (Lai et al. 2017).
    """
    return ((prediction - target).square() + eps**2).sqrt().mean()


class ElasticObjective(nn.Module):
    """A network with deep-supervision taps and its loss in one forward: this is what DDP wraps and
    what trains.

    psd_weight: lambda, a number or a function of the step; no default, since its meaning hangs on
        the image scale and the task loss (a weight published for 0..255 images weighs 255 times
        more against an L1 loss on 0..1). 0 skips the term.
    tap_weights: the weight of each depth's loss, or a function of the step that returns such a
        mapping; `elasticnet.loss_weights` has both. None weighs every tap by 1, as the paper does.
    sampled_taps: compute the deepest tap and this many others a step, a pure function of (seed,
        step). A sampled tap's loss is divided by its probability, so that the expected loss stays
        the same. PSD sees all taps in any case.
    distance, power, detach_teacher, eps: see `progressive_distillation`. output_weight,
    output_loss: distil the deepest prediction, detached, into the computed shallower ones:
        output_weight * sum_n w_n output_loss(prediction_n, prediction_N). Off at 0.

    Under DistributedDataParallel pass `find_unused_parameters=objective.needs_unused_search`. Clear
    gradients with `zero_grad(set_to_none=True)`, or an optimiser's momentum moves an adapter that a
    sampled step did not use.
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
        if distance not in DISTANCES:
            raise ValueError(f"distance {distance!r}: expected one of {', '.join(DISTANCES)}")
        if not callable(psd_weight) and psd_weight < 0:
            raise ValueError(
                f"psd_weight {psd_weight}: expected a number, at least 0, or a function of the step"
            )
        if sampled_taps is not None:
            # refuses a bad number here rather than at the first step
            sample_depths(net.taps, sampled_taps, seed, 0)
        position_axes(net.layout)
        self.net = net
        self.task_loss = task_loss
        self.psd_weight = psd_weight
        self.tap_weights: TapWeights
        if tap_weights is None:
            self.tap_weights = equal(net.taps)
        elif callable(tap_weights):
            self.tap_weights = tap_weights
            self.weights_at(0)  # refuses wrong weights here rather than at the first step
        else:
            self.tap_weights = check_tap_weights(tap_weights, net.taps)
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
        """Whether a step can leave parameters without gradient: a sampled-out tap leaves its
        adapter unused.
        """
        return self.sampled_taps is not None and len(self.net.adapters) > 0

    def depths_at(self, step: int | None) -> tuple[int, ...]:
        """Return the depths whose predictions the given step computes."""
        if self.sampled_taps is None:
            return self.net.taps
        sample: Any = sample_depths
        # traced, the draw would tie every compiled graph to a single step
        if torch.compiler.is_compiling():
            sample = torch.compiler.disable(sample)
        return sample(
            self.net.taps, self.sampled_taps, self.seed, self._checked(step, "sampled taps")
        )

    def weights_at(self, step: int | None) -> dict[int, float]:
        """Return the weight of every tap's loss in the given step, by depth, without what sampling
        divides it by.
        """
        if not callable(self.tap_weights):
            return dict(self.tap_weights)
        weights = self.tap_weights(self._checked(step, "a tap_weights schedule"))
        return check_tap_weights(weights, self.net.taps)

    def forward(self, x: Any, target: Any, step: int | None = None, **context: Any) -> LossTerms:
        """Return the LossTerms of one batch; `context` goes to the network, `step` drives sampling
        and schedules.
        """
        depths = self.depths_at(step)
        distils = callable(self.psd_weight) or self.psd_weight > 0
        if torch.compiler.is_compiling() and (
            callable(self.tap_weights) or callable(self.psd_weight)
        ):
            outside: Any = torch.compiler.disable(self._factors_outside)
            factors = outside(depths, step)
        else:
            factors = self._factors(depths, step)
            distils = factors[-1] != 0
        taps = self.net.forward_taps(x, depths=depths, **context)
        losses = deep_supervision(taps.predictions, target, self.task_loss)
        if isinstance(factors, Tensor):
            factors = factors.to(losses[-1].dtype).unbind()
        *weights, psd_weight = factors

        routine = weights[-1] * losses[-1]
        supervision = torch.zeros_like(routine)
        distillation = torch.zeros_like(routine)
        for weight, loss in zip(weights[:-1], losses[:-1], strict=True):
            supervision = supervision + weight * loss
        if distils:
            distillation = psd_weight * progressive_distillation(
                taps.features,
                self.net.layout,
                self.net.prefix_tokens,
                self.power,
                self.distance,
                self.detach_teacher,
                self.eps,
            )
        if self.output_weight:
            teacher = taps.predictions[-1].detach()
            for weight, prediction in zip(weights[:-1], taps.predictions[:-1], strict=True):
                distillation = distillation + self.output_weight * weight * self.output_loss(
                    prediction, teacher
                )

        total = routine + supervision + distillation
        # One stacked copy: a compiler folds 1.0 * loss and loss.detach() into one tensor, whose
        # gradient is then lost.
        values = torch.stack([total, *losses]).detach().unbind()[1:]
        per_depth = dict(zip(depths, values, strict=True))
        return LossTerms(total, routine, supervision, distillation, per_depth)

    def _factors(self, depths: Sequence[int], step: int | None) -> list[float]:
        """Return the weight of each of these depths' losses in the sum, then the PSD weight."""
        psd_weight = self.psd_weight
        if callable(psd_weight):
            psd_weight = psd_weight(self._checked(step, "a psd_weight schedule"))
        by_depth = self.weights_at(step)
        *others, deepest = (by_depth[depth] for depth in depths)
        if self.sampled_taps is not None:
            probability = inclusion_probability(self.net.taps, self.sampled_taps)
            others = [weight / probability for weight in others]
        return [*others, deepest, psd_weight]

    def _factors_outside(self, depths: Sequence[int], step: int | None) -> Tensor:
        """Return `_factors` for a compiled step: as a number in its graph, each step's would need a
        CUDA graph anew.
        """
        like = next(self.parameters(), torch.zeros(()))
        dtype = torch.promote_types(like.dtype, torch.float32)
        return torch.tensor(self._factors(depths, step), dtype=dtype, device=like.device)

    def _checked(self, step: int | None, what: str) -> int:
        if step is None:
            raise ValueError(
                f"step=None: {what} needs the step; call objective(x, target, step=step)"
            )
        return step


class LossMeter:
    """Gathers LossTerms on their device between two lines of a log, so that training waits for it
    only there.

    average: of several processes, the mean over them of a one-dimensional tensor
    (`Processes.average`).
    """

    def __init__(self, average: Callable[[Tensor], Tensor] | None = None) -> None:
        self._average = average
        # depths; the four terms and each depth's loss
        self._steps: list[tuple[tuple[int, ...], Tensor]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, terms: LossTerms) -> None:
        """Take one step's terms; they are copied, as a CUDA graph writes the next step's into the
        same memory.
        """
        values = torch.stack([*terms[:4], *terms.per_depth.values()]).detach()
        self._steps.append((tuple(terms.per_depth), values))

    def first_not_finite(self) -> int | None:
        """Return the index (from 0, since the last `means`) of the first step whose total is NaN or
        infinite.
        """
        bad = [index for index, row in enumerate(self._rows()) if not row[0].isfinite()]
        return bad[0] if bad else None

    def means(self) -> dict[str, Any]:
        """Return each term's mean since the last call, `per_depth` over the steps that computed the
        depth.
        """
        if not self._steps:
            raise ValueError("LossMeter.means: no step was added since the last call")
        rows = self._rows()
        losses: dict[int, list[Tensor]] = {}
        for (depths, _), row in zip(self._steps, rows, strict=True):
            for depth, loss in zip(depths, row[4:], strict=True):
                losses.setdefault(depth, []).append(loss)
        self._steps.clear()
        means: dict[str, Any] = dict(
            zip(
                LossTerms._fields[:4],
                torch.stack([row[:4] for row in rows]).mean(0).tolist(),
                strict=True,
            )
        )
        means["per_depth"] = {
            depth: torch.stack(losses[depth]).mean().item() for depth in sorted(losses)
        }
        return means

    def _rows(self) -> Sequence[Tensor]:
        if not self._steps:
            return []
        values = torch.cat([values for _, values in self._steps])
        if self._average is not None:
            values = self._average(values)
        return values.cpu().split([len(values) for _, values in self._steps])
