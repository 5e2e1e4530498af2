"""The losses of an elastic network, and ElasticObjective: a network and its loss in one module.

    L = w_N L_N + sum_{n<N} w_n L_n + lambda L_PSD + further distillations

N is the deepest tap. L_n is the task loss of the prediction at tap n, and w_n its weight. L_PSD is
the progressive self-distillation. Any number of others can stand beside it, or in its place: see
`elasticnet.distillation.Distillation`.

The ASRN paper has the first three terms, with w_n = 1. The others are off by default.

Two words are kept apart. A weight is what the user gives: w_n, lambda. A factor is what a step
multiplies a loss by: the weight at that step, divided by the probability that the tap is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet._modules.unwrapping import check_gathers_taps
from elasticnet._net.in_place_writes import GuardedTensors
from elasticnet._objective.compiled_step import factors_outside_graph
from elasticnet._objective.distillation_terms import (
    DistillationTerm,
    StepOutputs,
    check_fits_net,
    checked_distillations,
    has_parameters,
    may_be_left_out,
)
from elasticnet._objective.given_weights import (
    TapWeights,
    check_learned_with_net,
    checked_tap_weights,
    is_scheduled,
    may_be_used,
    trains,
)
from elasticnet._objective.masks import route_mask
from elasticnet._objective.step_counter import StepCounter
from elasticnet._objective.step_factors import Factor, StepFactors, Weighting, is_left_out
from elasticnet._objective.tap_by_tap import check_can_run_tap_by_tap, losses_tap_by_tap
from elasticnet._objective.tap_net import TapNet, check_stem, elastic_net
from elasticnet._objective.terms import LOSS_REMEDY, detached, scaled
from elasticnet._objective.unused_parameters import unused_parameters
from elasticnet.distillation import PROGRESSIVE, Distillation
from elasticnet.distillation_losses import check_is_function, checked_loss
from elasticnet.loss_weights import Weight, checked_weight
from elasticnet.parameter_groups import Layer, LayerMatcher, names_inside
from elasticnet.taps import check_num_sampled

TaskLoss = Callable[[Any, Any], Tensor]
"""`task_loss(prediction, target)` returns a scalar."""


class LossTerms(NamedTuple):
    """One step's loss and its terms, which are weighted already.

    Attributes:
        total: `routine + deep_supervision + distillation`, a scalar: call its `backward`.
        routine: The weighted task loss of the deepest tap, w_N L_N.
        deep_supervision: The sum of factor_n L_n over the shallower taps computed this step. Its
            expectation is the sum of w_n L_n over all shallower taps.
        distillation: The sum of all distillations: lambda L_PSD and those of `distillations`.
        per_depth: Not weighted, and detached: the task loss L_n of each tap computed this step.
        by_tap: Weighted, with its history: factor_n L_n of each tap computed this step, which
            `routine` and `deep_supervision` sum up. None, unless the objective has `by_term=True`.
        by_distillation: Weighted, with its history: each distillation computed this step, which
            `distillation` sums up, by the name of its weight: "psd_weight", and
            "distillations[0].weight" and so on. None, unless the objective has `by_term=True`.
    """

    total: Tensor
    routine: Tensor
    deep_supervision: Tensor
    distillation: Tensor
    per_depth: dict[int, Tensor]
    by_tap: dict[int, Tensor] | None = None
    by_distillation: dict[str, Tensor] | None = None


def tap_losses(
    predictions: Sequence[Any], target: Any, task_loss: TaskLoss = F.l1_loss
) -> list[Tensor]:
    """Return the task loss of every prediction, without weights.

    Args:
        predictions: The predictions of several taps, shallowest first.
        target: The target of every prediction.
        task_loss: `task_loss(prediction, target)` returns a scalar.

    Returns:
        One scalar for each prediction.

    Raises:
        TypeError: The task loss did not return a tensor of real numbers.
        ValueError: The task loss did not return a scalar.
        RuntimeError: The task loss changes in place what other losses read.
    """
    guarded = GuardedTensors(remedy=LOSS_REMEDY)
    guarded.guard(target, name="the target")
    guarded.guard(predictions, name="the prediction")

    losses: list[Tensor] = []
    for prediction in predictions:
        loss = task_loss(prediction, target)
        losses.append(checked_loss(loss, name="task loss"))

    if len(losses) > 1:  # After a single loss no other one reads the prediction and the target.
        guarded.check_everything(writer="the task loss")
    return losses


def charbonnier(prediction: Tensor, target: Tensor, eps: float = 1e-3) -> Tensor:
    """Return the mean of sqrt((prediction - target)^2 + eps^2): L1, but smooth at 0.

    Source: Charbonnier et al. 1994; with eps = 1e-3 on values in 0..1, LapSRN (Lai et al. 2017).

    Args:
        prediction: Any shape.
        target: The same shape.
        eps: The loss at a difference of 0, in the unit of the target. For much larger differences
            the loss is nearly L1.

    Returns:
        A scalar.
    """
    return ((prediction - target).square() + eps**2).sqrt().mean()


class ElasticObjective(nn.Module):
    """A network and its loss in one forward: the module to train, and to wrap in DDP.

    The weights w_n and lambda (see the top of this file), and those of distillations, are numbers,
    functions of the step, or parameters, which are learned: they stand among the parameters of the
    objective, and a value below 0 counts as 0. The page on concepts says more of each kind, of
    sampled taps and of steps.

    Args:
        net: The elastic network. It may be compiled, or wrapped by DistributedDataParallel and the
            like: a step calls `net(x, taps=...)`.
        task_loss: `task_loss(prediction, target)` returns a scalar.
        psd_weight: lambda, the weight of L_PSD: a number, at least 0, a function of the step, or a
            parameter. The number 0 leaves the term out. There is no default, because a good value
            depends on the task loss and on the scale of the target: a value chosen for targets
            in 0..255 has 255 times the effect beside an L1 loss on targets in 0..1.
        distillations: Further distillations beside L_PSD, or with `psd_weight=0` in its place.
        tap_weights: w_n, the weight of each tap's task loss: a mapping by depth, a list with a
            number for each tap, shallowest first, a function of the step that returns one of these,
            or a parameter like the list. `elasticnet.loss_weights` makes mappings. None: 1 for
            every tap, as in the paper.
        sampled_taps: How many taps a step computes besides the deepest; seed and step alone decide
            which. The loss of a sampled tap is divided by the probability that it is sampled, so
            that the expected loss stays the same. L_PSD uses all taps in any case. None: every
            step computes all taps.
        seed: The seed of the sampling.
        by_term: Whether the terms also hold each tap's own loss and each distillation with its
            history, for those that look at the gradients of single ones, as
            `elasticnet.training.tap_gradients` and `elasticnet.training.gradient_shares` do.
        checkpoint_head: Whether the losses are computed tap by tap, and the head again in the
            backward pass, so that a step holds the prediction of one tap at a time: for heads over
            a large vocabulary. The net itself must be given, neither wrapped nor compiled;
            the objective may be.
        accumulation: How many forwards make one step of the objective's own count: as many as the
            gradients are summed over.

    Attributes:
        distillations: A module for each further distillation, in order, with its `weight` and its
            `compare`; state dict keys `distillations.{index}.weight` and
            `distillations.{index}.compare.*` if these have parameters.
        step_counter: The objective's own count, `step_counter.steps`, which is a part of its state
            dict. It stays 0 if nothing depends on the step.

    Raises:
        ValueError: An argument is out of range, the net's layout is invalid, or a weight is learned
            and the net alone is wrapped for several processes.
        TypeError: The tap weights are not one of the kinds named above, the net is not elastic, or
            a loss cannot be called, or `distillations` is no list of `Distillation`.

    Example:
        `objective = ElasticObjective(net, nn.L1Loss(), psd_weight=4e-4)` and, in the loop,
        `objective(x, target).total.backward()`
    """

    accepts_loss_kwargs = False
    """For transformers' Trainer: a step takes no `num_items_in_batch` to divide the loss by."""

    def __init__(
        self,
        net: nn.Module,
        task_loss: TaskLoss,
        psd_weight: Weight,
        *,
        distillations: Sequence[Distillation] = (),
        tap_weights: TapWeights | None = None,
        sampled_taps: int | None = None,
        seed: int = 0,
        by_term: bool = False,
        checkpoint_head: bool = False,
        accumulation: int = 1,
    ) -> None:
        super().__init__()
        # What the first step would refuse is refused here.
        check_gathers_taps(net)
        tap_net = elastic_net(net)
        if sampled_taps is not None:
            check_num_sampled(sampled_taps, tap_net.taps)
        check_stem(tap_net)
        check_is_function(
            task_loss,
            name="task_loss",
            expected="a function of a prediction and a target, such as nn.L1Loss()",
        )
        if may_be_used(psd_weight):
            check_fits_net(PROGRESSIVE, tap_net)
        described = checked_distillations(distillations)
        used = [each for each in described if may_be_used(each.weight)]
        for distillation in used:
            check_fits_net(distillation, tap_net)
        if checkpoint_head:
            check_can_run_tap_by_tap(net, tap_net, used)

        self.net = net
        self.task_loss = task_loss
        self.psd_weight = checked_weight(psd_weight, name="psd_weight")
        self.distillations = nn.ModuleList([DistillationTerm(each) for each in described])
        self.tap_weights = checked_tap_weights(tap_weights, tap_net.taps)
        self.sampled_taps = sampled_taps
        self.seed = seed
        self.by_term = by_term
        self.checkpoint_head = checkpoint_head
        self.step_counter = StepCounter(accumulation)
        # L_PSD is a distillation too. Its weight is `psd_weight`.
        self._progressive = DistillationTerm(PROGRESSIVE)
        check_learned_with_net(net, self._names_of_what_is_learned())
        self._unused_parameters: list[str] = []  # what `find_unused` found

    def forward(
        self,
        x: Any,
        target: Any,
        step: int | None = None,
        *,
        mask: Any = None,
        **keywords: Any,
    ) -> LossTerms:
        """Return the loss of one batch.

        Args:
            x: The input of the network.
            target: The target of every prediction, which `task_loss` takes.
            step: The training step, from 0, if taps are sampled or weights are functions. None: the
                objective counts its own steps, which are the forwards in training mode divided by
                `accumulation`; a net in eval mode counts only where gradients are on. A forward
                with an explicit step leaves the count as it is.
            mask: Which positions L_PSD takes: a bool tensor (b, *positions) of the features at the
                shallowest tap, prefix tokens included. None: those of the keyword argument that
                `net.mask_keyword` names, or all. If the net has an argument `mask` itself, the mask
                is the net's; the table in `elasticnet/_objective/masks.py` shows all cases.
            **keywords: For the network.

        Returns:
            The terms of the loss; minimise `total`.

        Raises:
            ValueError: A weight of the step is invalid, or a loss is not a scalar.
            TypeError: A loss function did not return a tensor.
        """
        # Asked here: torch.compile may run a method that `forward` calls as plain Python, where
        # `is_compiling` is False.
        is_compiled = torch.compiler.is_compiling()
        factors = self._factors(step, is_compiled)
        return self._terms(factors, x, target, mask, keywords)

    def _terms(
        self, factors: StepFactors, x: Any, target: Any, mask: Any, keywords: dict[str, Any]
    ) -> LossTerms:
        """Return the terms of the loss of one batch, multiplied by their factors."""
        outputs = self._step_outputs(factors, x, target, mask, keywords)

        # factor_n L_n of each computed tap
        weighted_losses: dict[int, Tensor] = {}
        for depth, loss in outputs.losses.items():
            weighted_losses[depth] = scaled(loss, factors.by_depth[depth])

        # w_N L_N: every step computes the deepest tap, so that its factor is its weight
        *shallower, deepest = weighted_losses
        routine = weighted_losses[deepest]

        # sum over the computed n < N of factor_n L_n; factor_n makes up for the taps not sampled
        deep_supervision = torch.zeros_like(routine)
        for depth in shallower:
            deep_supervision = deep_supervision + weighted_losses[depth]

        # lambda L_PSD, and the other distillations; all parts are added one after the other,
        # because another order would change the last bits
        distillation = torch.zeros_like(routine)
        weighted_distillations = self._weighted_distillations(outputs, factors.distillations)
        for parts in weighted_distillations.values():
            for part in parts:
                distillation = distillation + part

        total = routine + deep_supervision + distillation
        by_tap: dict[int, Tensor] | None = None
        by_distillation: dict[str, Tensor] | None = None
        if self.by_term:
            by_tap = weighted_losses
            by_distillation = {}
            for name, parts in weighted_distillations.items():
                by_distillation[name] = sum(parts, torch.zeros_like(routine))
        return LossTerms(
            total=total,
            routine=routine,
            deep_supervision=deep_supervision,
            distillation=distillation,
            per_depth=detached(outputs.losses, total),
            by_tap=by_tap,
            by_distillation=by_distillation,
        )

    def _step_outputs(
        self, factors: StepFactors, x: Any, target: Any, mask: Any, keywords: dict[str, Any]
    ) -> StepOutputs:
        """Run the net once; return the features at all taps, and the losses at computed ones."""
        depths = tuple(factors.by_depth)  # the deepest last
        routed = route_mask(self._tap_net, mask, keywords)
        predictions: dict[int, Any] = {}
        if self.checkpoint_head:  # The predictions are gone with their losses.
            features, losses = losses_tap_by_tap(
                self._tap_net, depths, x, target, self.task_loss, routed.keywords
            )
        else:
            taps = self.net(x, taps=depths, **routed.keywords)
            features = taps.features
            predictions = dict(zip(depths, taps.predictions, strict=True))
            losses_in_order = tap_losses(taps.predictions, target, self.task_loss)
            losses = dict(zip(depths, losses_in_order, strict=True))
        return StepOutputs(
            net=self._tap_net,
            x=x,
            keywords=routed.keywords,
            features=features,
            predictions=predictions,
            losses=losses,
            factors=factors.by_depth,
            mask=routed.psd_mask,
        )

    def _weighted_distillations(
        self, outputs: StepOutputs, factors: Mapping[str, Factor]
    ) -> dict[str, list[Tensor]]:
        """Return the parts of each distillation that this step computes, by its weight's name."""
        weighted: dict[str, list[Tensor]] = {}
        for name, term in self._distillation_terms.items():
            if not is_left_out(factors[name]):
                weighted[name] = term.weighted_parts(outputs, factors[name])
        return weighted

    # --- what a step multiplies its losses by

    def _factors(self, step: int | None, is_compiled: bool) -> StepFactors:
        """Return the factors of a forward, which is counted if they depend on the step."""
        weighting = self._weighting
        if not weighting.depends_on_step():
            return weighting.factors_at(step=0)  # the same at any other step
        if is_compiled:
            # It calls count_step once in each run, outside the graph: counting changes state.
            count_step = partial(self._step_and_count_forward, step)
            return factors_outside_graph(weighting, count_step, net=self.net)
        return weighting.factors_at(self._step_and_count_forward(step))

    @property
    def _weighting(self) -> Weighting:
        """The weights as they are now: users may assign to them, or parametrize them."""
        return Weighting(
            taps=self._tap_net.taps,
            tap_weights=self.tap_weights,
            distillation_weights=self._distillation_weights,
            sampled_taps=self.sampled_taps,
            seed=self.seed,
        )

    @property
    def _distillation_terms(self) -> dict[str, DistillationTerm]:
        """L_PSD and the further distillations, each by the name of its weight."""
        terms = {"psd_weight": self._progressive}
        for index, term in enumerate(self.distillations):
            assert isinstance(term, DistillationTerm)
            terms[f"distillations[{index}].weight"] = term
        return terms

    @property
    def _distillation_weights(self) -> dict[str, Weight]:
        """The weight of each distillation by its name; that of L_PSD is the objective's own."""
        weights = {name: term.weight for name, term in self._distillation_terms.items()}
        weights["psd_weight"] = self.psd_weight
        return weights

    def _names_of_what_is_learned(self) -> list[str]:
        """Return the names of the weights and comparisons that have parameters to train."""
        weights = {"tap_weights": self.tap_weights, **self._distillation_weights}
        names = [name for name, weight in weights.items() if trains(weight)]
        for index, term in enumerate(self.distillations):
            assert isinstance(term, DistillationTerm)
            if has_parameters(term):
                names.append(f"distillations[{index}].compare")
        return names

    @property
    def _tap_net(self) -> TapNet:
        """The elastic net inside what other libraries wrapped around it."""
        return elastic_net(self.net)

    def _step_and_count_forward(self, step: int | None) -> int:
        """Return the step that the user gives; without one, count the forward if it trains."""
        if step is not None:
            return step
        if self._is_in_training():
            return self.step_counter.count_forward()
        return self.step_counter.step()

    def _is_in_training(self) -> bool:
        """Return whether a forward is part of a training step.

        A net may be in eval mode for a validation, which needs no gradients, or in a training that
        keeps the statistics of its BatchNorm as they are.
        """
        if not self.training:
            return False
        return self._tap_net.training or torch.is_grad_enabled()

    # --- what users and trainers ask

    def depths_at(self, step: int | None = None) -> tuple[int, ...]:
        """Return the depths whose predictions a step computes, the deepest last.

        A tap whose weight is 0 is left out: its loss may be infinite, and 0 times infinity is NaN.

        Args:
            step: The training step. None: the next one of the objective's own count.
        """
        if step is None:
            step = self.step_counter.step()
        return self._weighting.depths_at(step)

    def tap_weights_at(self, step: int | None = None) -> dict[int, Factor]:
        """Return the weight w_n of every tap in a step, not divided by a sampling probability.

        Args:
            step: The training step. None: the next one of the objective's own count.

        Returns:
            The weights by depth: numbers, or scalar tensors if they are learned.

        Raises:
            ValueError: The function returned invalid weights.
            TypeError: The function returned no mapping by depth.
        """
        if step is None:
            step = self.step_counter.step()
        return self._weighting.tap_weights_at(step)

    @property
    def needs_unused_search(self) -> bool:
        """True if some step leaves out a trainable parameter: what DDP must search for.

        Pass it to DistributedDataParallel as `find_unused_parameters=`. A step leaves out what
        `find_unused` found, the adapters of taps that it does not compute, because they are not
        sampled or have the weight 0, and the comparison of a distillation that it does not compute.
        Clear gradients by `zero_grad(set_to_none=True)`: with a gradient of zeros the optimiser's
        momentum would still move an unused adapter.
        """
        trainable = {name for name, each in self.named_parameters() if each.requires_grad}
        # 1. No step uses what `find_unused` found; what was frozen since does not count.
        if any(name in trainable for name in self._unused_parameters):
            return True
        # 2. An adapter is unused in a step that does not compute its tap: only predictions run
        # through adapters, and L_PSD reads the features before them.
        if self.sampled_taps is not None or is_scheduled(self.tap_weights):
            always_computed = self._tap_net.taps[-1:]  # some step may leave out any shallower tap
        else:
            always_computed = self.depths_at()  # the same in every step
        if any(int(depth) not in always_computed for depth in self._tap_net.adapters):
            return True
        # 3. The parameters of a comparison are unused in a step that leaves out its distillation.
        every_tap_is_computed = always_computed == self._tap_net.taps
        return any(
            may_be_left_out(term, every_tap_is_computed)
            for term in self._distillation_terms.values()
            if has_parameters(term)
        )

    def find_unused(self, x: Any, target: Any, *, mask: Any = None, **keywords: Any) -> list[str]:
        """Return the names of the trainable parameters that no step uses.

        Many models of other libraries have some: the mask token of DINOv2, a pooler behind an
        output that nothing reads. DistributedDataParallel stops at its second step because of
        them. Freeze them by `requires_grad_(False)`, or let it search:
        `needs_unused_search` is True from now on, as long as one of them is trainable.

        A copy of the objective, in training mode, computes one backward pass at all taps. Nothing
        of the objective itself changes. Call this before the network is sharded.

        Args:
            x: An example input, as small as the network takes.
            target: Its target.
            mask: As in a step.
            **keywords: For the network.

        Returns:
            Names as in `objective.named_parameters()`. What a layer uses by chance, as with
            layerdrop, can be among them.

        Raises:
            ValueError: The network is sharded already.

        Example:
            ```python
            for name in objective.find_unused(x[:1], target[:1]):
                objective.get_parameter(name).requires_grad_(False)
            ```
        """

        def loss_at_all_taps(probe: ElasticObjective) -> Tensor:
            factors = probe._weighting.with_all_taps().factors_at(step=0)
            return probe._terms(factors, x, target, mask, keywords).total

        self._unused_parameters = unused_parameters(self, loss_at_all_taps)
        return list(self._unused_parameters)

    def group_matcher(self, coarse: bool = False) -> LayerMatcher:
        """Return the function from a parameter's name to its layer, which timm's optimisers take.

        The layers are the net's. Weights of the losses that are parameters belong to its head.

        Args:
            coarse: As in timm; of no effect here.
        """
        layer_in_net = self._tap_net.group_matcher(coarse)
        layers: dict[str, Layer] = {}
        for name, name_in_net in names_inside(self, self._tap_net).items():
            if name_in_net is not None:
                layers[name] = layer_in_net(name_in_net)
        head_layer = max(layers.values())  # The head comes last.
        return lambda name: layers.get(name, head_layer)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that weight decay leaves out, which optimisers ask for.

        They are the net's, and the weights of the losses that are parameters.
        """
        in_net = self._tap_net.no_weight_decay()
        names = names_inside(self, self._tap_net)
        return {name for name, inner in names.items() if inner is None or inner in in_net}
