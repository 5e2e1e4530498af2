"""How an objective computes a distillation term in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from elasticnet._net.in_place_writes import GuardedTensors
from elasticnet._objective.given_weights import is_scheduled
from elasticnet._objective.step_factors import Factor
from elasticnet._objective.tap_net import TapNet, check_has_maps
from elasticnet._objective.terms import LOSS_REMEDY, is_empty, scaled
from elasticnet.distillation import Distillation, progressive_distillation
from elasticnet.distillation_losses import checked_loss
from elasticnet.loss_weights import Weight


class StepOutputs(NamedTuple):
    """What one pass of a step has computed.

    Attributes:
        net: The elastic network, for its taps and its layout.
        x: The input of the network.
        keywords: The keyword arguments that the network got.
        features: The features at all taps, shallowest first.
        predictions: The prediction at each computed depth, the deepest last. Empty where the losses
            are computed tap by tap.
        losses: The task loss at each computed depth, the deepest last.
        factors: What multiplies the task loss at each computed depth.
        mask: Which positions of the features count. None: all.
    """

    net: TapNet
    x: Any
    keywords: dict[str, Any]
    features: Sequence[Tensor]
    predictions: Mapping[int, Any]
    losses: Mapping[int, Tensor]
    factors: Mapping[int, Factor]
    mask: Tensor | None


class DistillationTerm(nn.Module):
    """A `Distillation` as a part of an objective, which trains its parameters if it has any.

    State dict keys: `weight` if the weight is learned, and `compare.*` if the comparison is a
    module. A teacher of the user's own is no part of it.

    Args:
        distillation: The description.

    Attributes:
        weight: The description's, which users may change or parametrize.
        compare: The description's.
        distillation: The description, for all else.
    """

    weight: Weight

    def __init__(self, distillation: Distillation) -> None:
        super().__init__()
        self.weight = distillation.weight
        self.compare = distillation.compare
        self.distillation = distillation

    def weighted_parts(self, step: StepOutputs, factor: Factor) -> list[Tensor]:
        """Return the parts of the term in the order in which they are added up.

        Args:
            step: What the step has computed.
            factor: The weight at this step, which is not left out.
        """
        if self.distillation.of == "predictions":
            return self._losses_of_predictions(step, factor)
        return [scaled(self._loss_of_features(step), factor)]

    def _loss_of_features(self, step: StepOutputs) -> Tensor:
        """Return the distances of maps or features, summed over the students."""
        distillation = self.distillation
        teacher = distillation.teacher
        if not isinstance(teacher, str):
            taught = self._ask_teacher(step)
            teacher = [taught] if isinstance(taught, Tensor) else list(taught)
        students = None
        if distillation.students is not None:
            students = [step.net.taps.index(depth) for depth in distillation.students]
        return progressive_distillation(
            step.features,
            layout=step.net.layout,
            prefix_tokens=step.net.prefix_tokens,
            of=distillation.of,
            compare=self.compare,
            teacher=teacher,
            students=students,
            detach=distillation.detach,
            power=distillation.power,
            mask=step.mask,
        )

    def _losses_of_predictions(self, step: StepOutputs, factor: Factor) -> list[Tensor]:
        """Return weight * factor_n * D_n of each student n that the step computes."""
        losses: list[Tensor] = []
        if isinstance(factor, Tensor):
            # DistributedDataParallel waits for the gradient of a learned weight in any case.
            losses.append(0 * factor)
        depths = tuple(step.predictions)
        students = self._computed_students(depths)
        # An empty batch has no D_n.
        if not students or is_empty(step.predictions[depths[-1]]):
            return losses

        teachers = self._teaching_predictions(step, students)
        # The task losses have read the predictions, and need them again in the backward pass.
        guarded = GuardedTensors(remedy=LOSS_REMEDY)
        guarded.guard(list(step.predictions.values()), name="the prediction")
        for depth in students:
            returned = self.compare(step.predictions[depth], teachers[depth])
            distance = checked_loss(returned, name="comparison of a distillation")  # D_n
            losses.append(scaled(distance, factor * step.factors[depth]))
        guarded.check_everything(writer="the comparison of a distillation")
        return losses

    def _computed_students(self, depths: tuple[int, ...]) -> list[int]:
        """Return those of the computed depths whose predictions learn."""
        students = self.distillation.students
        if students is None:
            return list(depths[:-1])
        return [depth for depth in depths if depth in students]

    def _teaching_predictions(self, step: StepOutputs, students: Sequence[int]) -> dict[int, Any]:
        """Return what each student's prediction is compared with."""
        teacher = self.distillation.teacher
        if not isinstance(teacher, str):
            taught = self._ask_teacher(step)
            return dict.fromkeys(students, taught)

        depths = tuple(step.predictions)
        teachers: dict[int, Any] = {}
        for depth in students:
            teaching = depths[-1]
            if teacher == "next":  # of those that the step computes
                teaching = depths[depths.index(depth) + 1]
            prediction = step.predictions[teaching]
            if self.distillation.detach:
                prediction = tree_map_only(Tensor, torch.detach, prediction)
            teachers[depth] = prediction
        return teachers

    def _ask_teacher(self, step: StepOutputs) -> Any:
        """Return what the user's own teacher says of the input, without its history."""
        teacher = self.distillation.teacher
        assert not isinstance(teacher, str)
        with torch.no_grad():
            return teacher(step.x, **step.keywords)


def checked_distillations(distillations: Any) -> list[Distillation]:
    """Return distillations as a list; raise unless each of them is one.

    Args:
        distillations: What the user gave.

    Raises:
        TypeError: It is no list of `Distillation`.
    """
    if isinstance(distillations, Distillation):
        raise TypeError("distillations is a Distillation: expected a list of them, [...]")
    checked = list(distillations)
    for each in checked:
        if not isinstance(each, Distillation):
            raise TypeError(
                f"distillations hold a {type(each).__name__}: expected Distillation(...)"
            )
    return checked


def check_fits_net(distillation: Distillation, net: TapNet) -> None:
    """Raise unless a distillation can be computed for this net.

    Args:
        distillation: The description. Its weight is not the number 0.
        net: The net.

    Raises:
        ValueError: A student is no tap of the net, or the deepest would teach itself; or the net's
            layout has no positions, and maps or features are compared.
    """
    if distillation.of != "predictions":
        check_has_maps(net)
    for depth in distillation.students or ():
        if depth not in net.taps:
            raise ValueError(f"student {depth!r}: this net has taps at {list(net.taps)}")
        if depth == net.taps[-1] and isinstance(distillation.teacher, str):
            raise ValueError(
                f"student {depth} with the teacher {distillation.teacher!r}: the deepest tap has "
                "no deeper one to learn from; leave it out, or give a teacher that is a function"
            )


def has_parameters(term: DistillationTerm) -> bool:
    """Return whether the comparison of a term trains parameters of its own.

    Args:
        term: The term.
    """
    if not isinstance(term.compare, nn.Module):
        return False
    return any(parameter.requires_grad for parameter in term.compare.parameters())


def may_be_left_out(term: DistillationTerm, every_tap_is_computed: bool) -> bool:
    """Return whether some step does not run the comparison of a term.

    Args:
        term: The term.
        every_tap_is_computed: Whether each step computes the predictions of all taps.
    """
    if is_scheduled(term.weight):
        return True  # The weight may be 0.
    return term.distillation.of == "predictions" and not every_tap_is_computed
