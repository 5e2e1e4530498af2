"""The losses of an elastic network, and ElasticObjective: a network and its loss in one module.

    L = w_N L_N + sum_{n<N} w_n L_n + lambda L_PSD + mu sum_{n<N} w_n D_n

N is the deepest tap. L_n is the task loss of the prediction at tap n, and w_n its weight. L_PSD is
the progressive self-distillation (`elasticnet.distillation`). D_n is the output distillation: the
distance between the prediction at tap n and the one at tap N.

The ASRN paper has the first three terms, with w_n = 1. The last one is ours, and off by default.

Two words are kept apart. A weight is what the user gives: w_n, lambda, mu. A factor is what a step
multiplies a loss by: the weight at that step, divided by the probability that the tap is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from elasticnet._modules.unwrapping import check_gathers_taps, unwrapped
from elasticnet._net.in_place_writes import KeptTensors
from elasticnet._objective.step_counter import StepCounter
from elasticnet._objective.step_factors import (
    Factor,
    StepFactors,
    TapWeights,
    Weight,
    as_tensors,
    checked_output_weight,
    checked_psd_weight,
    checked_tap_weights,
    computed_depths,
    is_learned,
    is_left_out,
    is_scheduled,
    step_factors,
    tap_weights_at,
)
from elasticnet._objective.unused_parameters import unused_parameters
from elasticnet.distillation import (
    DISTANCES,
    check_eps,
    check_power,
    check_prefix_tokens,
    position_axes,
    progressive_distillation,
)
from elasticnet.loss_weights import equal, learned
from elasticnet.parameter_groups import Layer, LayerMatcher, names_inside
from elasticnet.taps import check_num_sampled

RESERVED_WORDS = ("target", "step")
"""The arguments of `objective(x, target, step)` that are never handed to the network."""

LOSS_REMEDY = "compute it without in-place operations"

TaskLoss = Callable[[Any, Any], Tensor]

# A decorator: torch.compile leaves the calls of the function out of its graphs.
_outside_graphs: Any = torch.compiler.disable  # pyright: ignore[reportUnknownVariableType]


class LossTerms(NamedTuple):
    """One step's loss and its terms, which are weighted already.

    Attributes:
        total: `routine + deep_supervision + distillation`, a scalar: call its `backward`.
        routine: The weighted task loss of the deepest tap, w_N L_N.
        deep_supervision: The sum of factor_n L_n over the shallower taps computed this step. Its
            expectation is the sum of w_n L_n over all shallower taps.
        distillation: lambda L_PSD, plus the output distillation if `output_weight` is not 0.
        per_depth: The task loss L_n of each tap computed this step, not weighted, and detached.
    """

    total: Tensor
    routine: Tensor
    deep_supervision: Tensor
    distillation: Tensor
    per_depth: dict[int, Tensor]


class TapNet(Protocol):
    """What the objective reads from a network; every ElasticWrapper has it.

    Attributes:
        taps: The depths that carry a prediction, sorted, the deepest last.
        layout: What the axes of the features mean, see `elasticnet.distillation`.
        prefix_tokens: How many leading positions attention maps leave out.
        adapters: The modules that run only in steps that compute their tap's prediction.
        stem_keywords: The keyword arguments of the stem's forward.
        call_block: A function that gets the keyword arguments which the stem does not; or None.
        head_skip: What the head takes beside the features, such as "context"; or None.
        mask_keyword: The keyword argument that says which positions count; or None.
        training: Whether the network is in training mode.
    """

    taps: tuple[int, ...]
    layout: str
    prefix_tokens: int
    adapters: nn.ModuleDict
    stem_keywords: frozenset[str]
    call_block: Callable[..., Any] | None
    head_skip: str | None
    mask_keyword: str | None
    training: bool

    def group_matcher(self, coarse: bool = False) -> LayerMatcher:
        """Return the function from a parameter's name to its layer.

        Args:
            coarse: As in timm.
        """
        ...

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that weight decay leaves out."""
        ...


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
    kept = KeptTensors(remedy=LOSS_REMEDY)
    kept.keep_for_all_parts(target, "the target")  # an input of every task loss
    kept.keep_for_caller(predictions, "the prediction")
    losses = [
        _checked_loss(task_loss(prediction, target), name="task loss") for prediction in predictions
    ]
    if len(losses) > 1:  # After a single loss no other one reads the prediction and the target.
        kept.check_all("the task loss")
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


def _checked_loss(loss: Any, name: str) -> Tensor:
    """Return what a loss function returned; raise unless it is a scalar tensor of real numbers."""
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"the {name} returned a {type(loss).__name__}: "
            "expected a scalar tensor (add up its parts, and do not call item())"
        )
    if not loss.is_floating_point():
        raise TypeError(f"the {name} returned a tensor of {loss.dtype}: expected a real number")
    if loss.ndim:
        raise ValueError(
            f"the {name} returned a tensor of shape {tuple(loss.shape)}: "
            "expected a scalar (reduce it)"
        )
    return loss


class ElasticObjective(nn.Module):
    """A network and its loss in one forward: the module to train, and to wrap in DDP.

    Step. What depends on the step (sampled taps, weights that are functions) gets it by
    `objective(x, target, step=step)`. Without it the objective counts its own steps: the forwards
    in training mode, divided by `accumulation`. Forwards after `objective.eval()` do not count, nor
    those after `net.eval()` without gradients. The count stands in the state dict; a state without
    it begins at step 0. A forward with an explicit step leaves the count as it is.

    Learned weights. A weight that is an `nn.Parameter` stands among the objective's parameters, and
    its gradient is its loss, that of a sampled tap divided by the sampling probability. A value
    below 0 counts as 0, with a gradient of 0. A tap is computed whatever its learned weight is.
    Minimising the total lowers every learned weight, unless a term of your own holds it up.

    Unused parameters. With DistributedDataParallel pass
    `find_unused_parameters=objective.needs_unused_search`; for models of other libraries call
    `find_unused` first. With sampled taps clear gradients by `zero_grad(set_to_none=True)`: a step
    leaves some adapters unused, and with a gradient of zeros the optimiser's momentum would still
    move them.

    Args:
        net: The elastic network. It may be compiled, or wrapped by DistributedDataParallel and the
            like: a step calls `net(x, taps=...)`.
        task_loss: `task_loss(prediction, target)` returns a scalar.
        psd_weight: lambda, the weight of L_PSD: a number, at least 0, a function of the step, or a
            parameter. The number 0 leaves the term out. There is no default, because a good value
            depends on the task loss and on the scale of the target. For example, a value chosen
            for targets in 0..255 has 255 times the effect beside an L1 loss on targets in 0..1.
        tap_weights: w_n, the weight of each tap's task loss: a mapping by depth, a list with a
            number for each tap, shallowest first, a function of the step that returns one of these,
            or a parameter like the list. `elasticnet.loss_weights` makes mappings. None: 1 for
            every tap, as in the paper.
        sampled_taps: How many taps a step computes besides the deepest; seed and step alone decide
            which. The loss of a sampled tap is divided by the probability that it is sampled, so
            that the expected loss stays the same. L_PSD uses all taps in any case. None: every
            step computes all taps.
        seed: The seed of the sampling.
        distance: "norm" or "squared", see `attention_distance`.
        power: The power of |features| in an attention map.
        detach_teacher: Whether the gradient of L_PSD stays out of the deeper map of a pair.
        eps: The smallest norm that a map is divided by.
        output_weight: mu, the weight of the output distillation: a number or a parameter. The
            number 0 leaves the term out.
        output_loss: `output_loss(prediction, deepest_prediction)` returns the scalar D_n. The
            deepest prediction is detached.
        accumulation: How many forwards belong to one step of the objective's own count: over how
            many the gradients are summed.

    Attributes:
        step_counter: The objective's own count, `step_counter.steps`. It stays 0 if nothing depends
            on the step.

    Raises:
        ValueError: An argument is out of range, or the net's layout is invalid.
        TypeError: The tap weights are not one of the kinds named above, or the net is not elastic.

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
        tap_weights: TapWeights | None = None,
        sampled_taps: int | None = None,
        seed: int = 0,
        distance: str = "norm",
        power: float = 1,
        detach_teacher: bool = True,
        eps: float = 1e-4,
        output_weight: float | nn.Parameter = 0.0,
        output_loss: TaskLoss = F.l1_loss,
        accumulation: int = 1,
    ) -> None:
        super().__init__()
        check_gathers_taps(net)
        tap_net = _elastic_net(net)
        _check_net(tap_net, psd_weight, sampled_taps)
        if distance not in DISTANCES:
            raise ValueError(f"distance {distance!r}: expected one of {', '.join(DISTANCES)}")
        check_power(power)
        check_eps(eps)
        self.net = net
        self.task_loss = task_loss
        self.psd_weight = checked_psd_weight(psd_weight)
        self.tap_weights = checked_tap_weights(tap_weights, tap_net.taps)
        self.sampled_taps = sampled_taps
        self.seed = seed
        self.distance = distance
        self.power = power
        self.detach_teacher = detach_teacher
        self.eps = eps
        self.output_weight = checked_output_weight(output_weight)
        self.output_loss = output_loss
        self.step_counter = StepCounter(accumulation)
        self._unused_parameters: list[str] = []  # what `find_unused` found

    @property
    def _tap_net(self) -> TapNet:
        return _elastic_net(self.net)

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
                objective counts its own.
            mask: Which positions L_PSD takes: a bool tensor (b, *positions) of the features at the
                shallowest tap, prefix tokens included. None: those of the keyword argument that
                `net.mask_keyword` names, or all. If the net has an argument `mask` itself, because
                its stem names it or because call_block or the head reads it, the mask is the net's;
                L_PSD takes it too if `net.mask_keyword` is "mask".
            **keywords: For the network.

        Returns:
            The terms of the loss; minimise `total`.

        Raises:
            ValueError: A weight of the step is invalid, or a loss is not a scalar.
            TypeError: A loss function did not return a tensor.
        """
        # Numbers, or tensors in a compiled step: see `_factors_of_forward`.
        factors = self._factors_of_forward(step, is_compiled=torch.compiler.is_compiling())
        depths = tuple(factors.by_depth)  # the deepest last
        *shallower, deepest = depths

        # the predictions and their task losses, by depth
        keywords, positions = self._route_mask(mask, keywords)
        outputs = self.net(x, taps=depths, **keywords)
        predictions = dict(zip(depths, outputs.predictions, strict=True))
        losses_in_order = tap_losses(outputs.predictions, target, self.task_loss)
        losses = dict(zip(depths, losses_in_order, strict=True))

        # w_N L_N: every step computes the deepest tap, so that its factor is its weight
        routine = _scaled(losses[deepest], factors.by_depth[deepest])

        # sum over the computed n < N of factor_n L_n, whose expectation is w_n L_n
        deep_supervision = torch.zeros_like(routine)
        for depth in shallower:
            term = _scaled(losses[depth], factors.by_depth[depth])
            deep_supervision = deep_supervision + term

        # lambda L_PSD + mu sum over the computed n < N of factor_n D_n
        distillation = torch.zeros_like(routine)
        if not is_left_out(factors.psd):
            psd_loss = self._psd_loss(outputs.features, positions)
            distillation = _scaled(psd_loss, factors.psd)
        for term in self._output_distillation(predictions, factors.by_depth):
            distillation = distillation + term

        total = routine + deep_supervision + distillation
        return LossTerms(
            total=total,
            routine=routine,
            deep_supervision=deep_supervision,
            distillation=distillation,
            per_depth=_detached(losses, total),
        )

    def _psd_loss(self, features: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        """Return L_PSD of the features at all taps, with this objective's options."""
        return progressive_distillation(
            features,
            layout=self._tap_net.layout,
            prefix_tokens=self._tap_net.prefix_tokens,
            power=self.power,
            distance=self.distance,
            detach_teacher=self.detach_teacher,
            eps=self.eps,
            mask=mask,
        )

    def _route_mask(self, mask: Any, keywords: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """Return the keyword arguments of the net, and which positions L_PSD takes.

        | the user passes | the net gets it as | L_PSD takes |
        | --- | --- | --- |
        | `mask`, which the net has no use for | - | it |
        | `mask`, which is an argument of the net | `mask` | it, if `net.mask_keyword` is "mask" |
        | no `mask` | - | the argument that `net.mask_keyword` names, if there is one |
        """
        if mask is not None and not self._net_takes_mask():
            return keywords, mask
        if mask is not None:
            keywords = {**keywords, "mask": mask}
        mask_keyword = self._tap_net.mask_keyword
        positions = None if mask_keyword is None else keywords.get(mask_keyword)
        return keywords, positions

    def _net_takes_mask(self) -> bool:
        """Whether `mask` is an argument of the net: of its stem, or of what reads the context."""
        net = self._tap_net
        if "mask" in net.stem_keywords or net.mask_keyword == "mask":
            return True
        if net.mask_keyword is not None:
            return False  # the net has a mask, and it has another name
        # These read the context, in which a `mask` may be.
        return net.call_block is not None or net.head_skip == "context"

    def _output_distillation(
        self, predictions: Mapping[int, Any], tap_factors: Mapping[int, Factor]
    ) -> list[Tensor]:
        """Return mu factor_n D_n for each computed tap n < N; nothing if mu is 0."""
        *shallower, deepest = predictions  # its keys: depths, the deepest last
        mu = self._output_factor()
        if is_left_out(mu):
            return []
        terms: list[Tensor] = []
        if isinstance(mu, Tensor):
            # DistributedDataParallel waits for its gradient, also if there is no other term.
            terms.append(0 * mu)
        if _is_empty(predictions[deepest]):
            return terms
        teacher = tree_map_only(Tensor, torch.detach, predictions[deepest])
        # The task losses have read the predictions, and need them again in the backward pass.
        kept = KeptTensors(remedy=LOSS_REMEDY)
        kept.keep_for_caller(list(predictions.values()), "the prediction")
        for depth in shallower:
            returned = self.output_loss(predictions[depth], teacher)
            distance = _checked_loss(returned, name="output loss")  # D_n
            terms.append(_scaled(distance, mu * tap_factors[depth]))
        kept.check_all("the output loss")
        return terms

    def _output_factor(self) -> Factor:
        """Return mu: a number, or a scalar tensor if it is learned."""
        if is_learned(self.output_weight):
            return learned(self.output_weight).reshape(())
        return self.output_weight

    # --- the factors of the losses

    def _factors_of_forward(self, step: int | None, is_compiled: bool) -> StepFactors:
        """Return the factors of a step: numbers, or in a compiled step tensors, if they change.

        A number in a graph is a constant: if it changed, torch.compile would compile the step
        again, or record its CUDA graph again. Therefore what depends on the step is computed
        outside the graph, and the factors enter it as tensors.

        `is_compiled` is asked in `forward`. Here `is_compiling()` may be False in a compiled step:
        torch.compile leaves a function out of the graph if it calls what stays outside.
        """
        if not self._depends_on_step():
            return self._factors_at(step=0)  # or at any other step
        if is_compiled:
            return self._factors_as_tensors(step)
        return self._factors_at(self._given_or_counted(step))

    @_outside_graphs
    def _factors_as_tensors(self, step: int | None) -> StepFactors:
        """Return the factors of a step as scalar tensors; a constant lambda stays a number."""
        factors = self._factors_at(self._given_or_counted(step))
        parameter = next(self.net.parameters(), torch.zeros(()))  # a net may have no parameters
        if not is_learned(self.tap_weights):  # Learned ones are tensors, with a gradient.
            tap_factors = as_tensors(factors.by_depth, like=parameter)
            factors = factors._replace(by_depth=tap_factors)
        if is_scheduled(self.psd_weight):  # As a number, a lambda of 0 leaves out L_PSD.
            psd_factor = as_tensors({"psd": factors.psd}, like=parameter)["psd"]
            factors = factors._replace(psd=psd_factor)
        return factors

    def _factors_at(self, step: int) -> StepFactors:
        return step_factors(
            step,
            taps=self._tap_net.taps,
            tap_weights=self.tap_weights,
            psd_weight=self.psd_weight,
            sampled_taps=self.sampled_taps,
            seed=self.seed,
        )

    def _depends_on_step(self) -> bool:
        """Whether the computed taps, or their factors, differ from step to step."""
        has_schedule = is_scheduled(self.tap_weights) or is_scheduled(self.psd_weight)
        return has_schedule or self.sampled_taps is not None

    def _given_or_counted(self, step: int | None) -> int:
        """Return the step of this forward; count it if its user does not."""
        if step is not None:
            return step
        if self._is_in_training():
            return self.step_counter.count_forward()
        return self.step_counter.step()

    def _is_in_training(self) -> bool:
        """Whether a forward is part of a training step.

        A net in eval mode says nothing alone: a validation may have put it there, or a training
        that keeps its statistics. The first needs no gradients.
        """
        if not self.training:
            return False
        return self._tap_net.training or torch.is_grad_enabled()

    # --- what users ask

    @property
    def needs_unused_search(self) -> bool:
        """Whether a step can leave trainable parameters unused, so far as the objective knows.

        It knows of the adapters of taps that are not computed, because they are not sampled or
        have the weight 0, and of what `find_unused` found.
        """
        trainable = {name for name, each in self.named_parameters() if each.requires_grad}
        if any(name in trainable for name in self._unused_parameters):
            return True
        adapters = self._tap_net.adapters
        if self.sampled_taps is not None or is_scheduled(self.tap_weights):
            return len(adapters) > 0
        computed = self.depths_at()
        return any(int(depth) not in computed for depth in adapters)

    def find_unused(self, x: Any, target: Any, **keywords: Any) -> list[str]:
        """Return the names of the trainable parameters that no step uses.

        Many models of other libraries have some: the mask token of DINOv2, a pooler behind an
        output that nothing reads. DistributedDataParallel stops at its second step because of
        them. Freeze them by `requires_grad_(False)`, or let it search:
        `needs_unused_search` is True from now on, as long as one of them is trainable.

        A copy of the network, in training mode, computes one backward pass at all taps. Nothing of
        the network itself changes. Call this before the network is sharded.

        Args:
            x: An example input, as small as the network takes.
            target: Its target.
            **keywords: As in a step: for the network, and `mask`.

        Returns:
            Names as in `objective.named_parameters()`. What a layer uses by chance, as with
            layerdrop, can be among them.

        Example:
            ```python
            for name in objective.find_unused(x[:1], target[:1]):
                objective.get_parameter(name).requires_grad_(False)
            ```
        """

        def loss_at_all_taps(probe: ElasticObjective) -> Tensor:
            probe.sampled_taps = None
            if not is_learned(probe.tap_weights):
                probe.tap_weights = equal(probe._tap_net.taps)
            return probe(x, target, step=0, **keywords).total

        self._unused_parameters = unused_parameters(
            self, loss_at_all_taps, unwrapped={self.net: unwrapped(self.net)}
        )
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
        head_layer = max(layers.values())
        return lambda name: layers.get(name, head_layer)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that weight decay leaves out, which optimisers ask for.

        They are the net's, and the weights of the losses that are parameters.
        """
        in_net = self._tap_net.no_weight_decay()
        names = names_inside(self, self._tap_net)
        return {name for name, inner in names.items() if inner is None or inner in in_net}

    def depths_at(self, step: int | None = None) -> tuple[int, ...]:
        """Return the depths whose predictions a step computes, the deepest last.

        A tap whose weight is 0 is left out: its loss may be infinite, and 0 times infinity is NaN.

        Args:
            step: The training step. None: the next one of the objective's own count.
        """
        if step is None:
            step = self.step_counter.step()
        return computed_depths(
            step,
            tap_weights=self.tap_weights_at(step),
            sampled_taps=self.sampled_taps,
            seed=self.seed,
        )

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
        return tap_weights_at(step, taps=self._tap_net.taps, tap_weights=self.tap_weights)


def _elastic_net(net: nn.Module) -> TapNet:
    """Return the elastic net inside the modules that other libraries wrapped around it."""
    elastic = unwrapped(net)
    if hasattr(elastic, "get_base_model"):  # a PeftModel, which the network stands inside of
        elastic = unwrapped(elastic.get_base_model())
    if not hasattr(elastic, "taps"):
        raise TypeError(f"net is a {type(net).__name__}: expected an ElasticWrapper")
    return elastic


def _check_net(net: TapNet, psd_weight: Weight, sampled_taps: int | None) -> None:
    """Raise what the first step would raise for this network, before any training."""
    if sampled_taps is not None:
        check_num_sampled(sampled_taps, net.taps)
    if is_learned(psd_weight) or callable(psd_weight) or psd_weight != 0:
        position_axes(net.layout)  # raises if the layout has no use in L_PSD
        check_prefix_tokens(net.prefix_tokens, net.layout)
    for name in RESERVED_WORDS:
        if name in net.stem_keywords:
            raise ValueError(
                f"the stem's forward has an argument {name!r}, which it can never get: "
                f"objective(x, target, step=...) keeps it. Give the stem's argument another name"
            )


def _is_empty(prediction: Any) -> bool:
    """Return whether a prediction, or a nest of them, is of an empty batch: it has no distance."""
    tensors = [leaf for leaf in tree_leaves(prediction) if isinstance(leaf, Tensor)]
    return len(tensors) > 0 and all(tensor.numel() == 0 for tensor in tensors)


def _scaled(loss: Tensor, factor: float | Tensor) -> Tensor:
    """Return factor * loss in the loss's dtype; a factor of 0 gives 0, even for infinity or NaN."""
    if isinstance(factor, Tensor):
        factor = factor.to(loss.dtype)  # A wider dtype would change the loss's.
    # A factor of 0 comes from the deepest tap, from a learned weight, or in a graph from lambda.
    is_void = ~loss.isfinite() & (factor == 0)
    # The value of a void term is 0. Its gradient is 0 too, except where the loss has an infinite
    # derivative: there it is 0 times infinity, NaN.
    loss = torch.where(is_void, 0, loss)
    # A void term stays in the sum, because DistributedDataParallel waits for all gradients.
    return factor * loss


def _detached(losses: Mapping[int, Tensor], total: Tensor) -> dict[int, Tensor]:
    """Return copies of the losses without their history."""
    # Plain loss.detach() loses the gradient under torch.compile when the weight is 1.0, because the
    # compiler makes one tensor of 1.0 * loss and loss.detach(). Stacked with `total` they stay two.
    stacked = torch.stack([total, *losses.values()])  # (1 + number of losses,)
    _, *copies = stacked.detach().unbind()
    return dict(zip(losses, copies, strict=True))
