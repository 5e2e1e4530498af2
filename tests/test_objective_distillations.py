"""`Distillation`: the terms that an objective makes of such descriptions, by hand."""

from __future__ import annotations

import copy
import math
import re
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from elasticnet import Distillation, ElasticObjective, ElasticWrapper
from elasticnet._objective.distillation_terms import DistillationTerm
from elasticnet.distillation import PROGRESSIVE, progressive_distillation
from elasticnet.distillation_losses import (
    Projected,
    cosine_distance,
    mean_squared,
    soft_targets,
    squared_unit_distance,
    unit_distance,
)
from tiny_nets import conv_net, of_outputs

X = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(2))
WEIGHTS = {1: 0.5, 2: 2.0, 3: 1.0}


def distilled(net: nn.Module, *distillations: Distillation, **options: Any) -> Tensor:
    """Return the distillation term of one step."""
    objective = ElasticObjective(
        net, nn.L1Loss(), psd_weight=0, distillations=distillations, **options
    )
    return objective(X, Y, step=0).distillation


# --- several terms


def test_the_paper_s_term_is_one_of_the_distillations() -> None:
    net = conv_net(3)
    by_weight = ElasticObjective(net, nn.L1Loss(), psd_weight=0.3)(X, Y).distillation
    described = Distillation(of="maps", compare=unit_distance, weight=0.3)
    assert torch.equal(distilled(net, described), by_weight)
    assert torch.equal(0.3 * distilled(net, PROGRESSIVE), by_weight)


def test_several_distillations_add_up() -> None:
    net = conv_net(3)
    first = Distillation(of="features", compare=cosine_distance, teacher="deepest", weight=0.2)
    second = Distillation(of="maps", compare=squared_unit_distance, power=2, weight=0.7)
    third = of_outputs(0.4, compare=nn.MSELoss())
    apart = [distilled(net, each) for each in (PROGRESSIVE, first, second, third)]

    objective = ElasticObjective(
        net, nn.L1Loss(), psd_weight=1.0, distillations=[first, second, third]
    )
    terms = objective(X, Y)

    torch.testing.assert_close(terms.distillation, sum(apart))
    features = net.forward_taps(X).features
    expected = progressive_distillation(features, compare=squared_unit_distance, power=2)
    torch.testing.assert_close(apart[2], 0.7 * expected)


def test_a_weight_of_a_distillation_can_follow_the_step() -> None:
    net = conv_net(3)
    unit = distilled(net, of_outputs(1.0))
    objective = ElasticObjective(
        net, nn.L1Loss(), psd_weight=0, distillations=[of_outputs(lambda step: step / 10)]
    )
    for step in (0, 4):
        terms = objective(X, Y, step=step)
        torch.testing.assert_close(terms.distillation, unit * step / 10)
    objective.distillations[0].weight = lambda step: -1.0  # pyright: ignore[reportArgumentType]
    message = re.escape("at step 3 distillations[0].weight is -1.0: expected a finite number")
    with pytest.raises(ValueError, match=message):
        objective(X, Y, step=3)


# --- who teaches, and who learns


def test_predictions_can_learn_from_the_next_deeper_one() -> None:
    net = conv_net(3)
    first, second, deepest = net.forward_taps(X).predictions
    expected = 0.5 * F.l1_loss(first, second) + 2 * F.l1_loss(second, deepest)
    actual = distilled(net, of_outputs(1.0, teacher="next"), tap_weights=WEIGHTS)
    torch.testing.assert_close(actual, expected)


def test_a_sampled_step_compares_what_it_computes() -> None:
    net = conv_net(3)
    distillation = of_outputs(1.0, teacher="next")
    objective = ElasticObjective(
        net, nn.L1Loss(), psd_weight=0, distillations=[distillation], sampled_taps=1
    )
    shallower, deepest = objective.depths_at(0)
    student, teacher = net(X, taps=(shallower, deepest)).predictions
    expected = 2 * F.l1_loss(student, teacher)  # sampled with the probability 1/2
    torch.testing.assert_close(objective(X, Y, step=0).distillation, expected)


@pytest.mark.parametrize("detach", [True, False])
def test_the_gradient_stays_out_of_the_teacher_s_prediction(detach: bool) -> None:
    net = conv_net(2)
    distillation = Distillation(of="predictions", compare=F.l1_loss, detach=detach, weight=1.0)
    distilled(net, distillation).backward()
    gradient = net.get_parameter("blocks.1.last.weight").grad
    assert (gradient is None) is detach


def test_only_the_students_learn() -> None:
    net = conv_net(3)
    maps = Distillation(of="maps", compare=unit_distance, students=(2,), weight=1.0)
    features = net.forward_taps(X).features
    torch.testing.assert_close(distilled(net, maps), progressive_distillation(features[1:]))
    outputs = Distillation(
        of="predictions", compare=F.l1_loss, teacher="deepest", students=[2], weight=1.0
    )
    _, second, deepest = net.forward_taps(X).predictions
    torch.testing.assert_close(distilled(net, outputs), F.l1_loss(second, deepest))


def test_an_external_teacher_of_predictions_can_teach_every_tap() -> None:
    net = conv_net(3)
    teacher = conv_net(5)
    description = Distillation(
        of="predictions", compare=F.mse_loss, teacher=teacher, students=net.taps, weight=0.1
    )
    taught = teacher(X).detach()
    expected = torch.zeros(())
    for depth, prediction in zip(net.taps, net.forward_taps(X).predictions, strict=True):
        expected = expected + 0.1 * WEIGHTS[depth] * F.mse_loss(prediction, taught)
    objective = ElasticObjective(
        net, nn.L1Loss(), psd_weight=0, distillations=[description], tap_weights=WEIGHTS
    )
    terms = objective(X, Y)
    torch.testing.assert_close(terms.distillation, expected)
    terms.total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_an_external_teacher_of_features_teaches_each_tap_its_own_or_all_the_same() -> None:
    net = conv_net(3)
    big = conv_net(6)
    taught = [each.detach() for each in big.forward_taps(X).features[1::2]]
    each_its_own = Distillation(
        of="features",
        compare=mean_squared,
        teacher=lambda x: big.forward_taps(x).features[1::2],
        students=net.taps,
        weight=1.0,
    )
    features = net.forward_taps(X).features
    expected = sum(mean_squared(a, b) for a, b in zip(features, taught, strict=True))
    torch.testing.assert_close(distilled(net, each_its_own), expected)

    all_the_same = Distillation(
        of="features", compare=mean_squared, teacher=lambda x: taught[2], weight=1.0
    )
    expected = mean_squared(features[0], taught[2]) + mean_squared(features[1], taught[2])
    torch.testing.assert_close(distilled(net, all_the_same), expected)


def test_a_teacher_of_its_own_is_no_part_of_the_objective() -> None:
    teacher = conv_net(4)
    objective = ElasticObjective(
        conv_net(2), nn.L1Loss(), psd_weight=0, distillations=[of_outputs(0.1, teacher=teacher)]
    )
    own = {id(parameter) for parameter in objective.parameters()}
    assert own.isdisjoint(id(parameter) for parameter in teacher.parameters())
    assert all(name.startswith(("net.", "step_counter.")) for name in objective.state_dict())
    copied = copy.deepcopy(objective)
    (term,) = copied.distillations
    assert isinstance(term, DistillationTerm)
    assert term.distillation.teacher is teacher


# --- what a comparison is given


def test_features_come_channels_first_without_prefix_tokens_and_with_their_mask() -> None:
    shapes: list[tuple[int, ...]] = []

    def compare(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        shapes.append((*student.shape, *teacher.shape, *mask.shape))
        assert not student[:, :, ~mask[0]].isnan().any()
        return mean_squared(student, teacher, mask)

    net = ElasticWrapper(
        [nn.Linear(4, 4) for _ in range(2)], nn.Linear(4, 1), layout="b n c", prefix_tokens=1
    )
    description = Distillation(of="features", compare=compare, weight=1.0)
    objective = ElasticObjective(net, nn.L1Loss(), psd_weight=0, distillations=[description])
    mask = torch.tensor([[True, True, True, True, False]] * 3)
    objective(torch.randn(3, 5, 4), torch.randn(3, 5, 1), mask=mask)
    assert shapes == [(3, 4, 4, 3, 4, 4, 3, 4)]


def test_a_loss_of_pytorch_is_a_comparison_of_features() -> None:
    net = conv_net(2)
    first, second = net.forward_taps(X).features
    description = Distillation(of="features", compare=F.smooth_l1_loss, weight=1.0)
    torch.testing.assert_close(distilled(net, description), F.smooth_l1_loss(first, second))


def test_the_temperature_of_soft_targets_is_bound_by_partial() -> None:
    net = ElasticWrapper([nn.Linear(4, 4) for _ in range(2)], nn.Linear(4, 3), layout="b n c")
    x = torch.randn(5, 4)
    description = of_outputs(1.0, compare=partial(soft_targets, temperature=2.0))
    objective = ElasticObjective(
        net, nn.CrossEntropyLoss(), psd_weight=0, distillations=[description]
    )
    first, second = net.forward_taps(x).predictions
    actual = objective(x, torch.zeros(5, dtype=torch.int64)).distillation
    torch.testing.assert_close(actual, soft_targets(first, second, temperature=2.0))


# --- comparisons that learn


def widening_net() -> ElasticWrapper:
    """A net whose features have 4, 4 and 8 channels."""
    blocks = [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 8, 1)]
    adapters = {1: nn.Conv2d(4, 8, 1), 2: nn.Conv2d(4, 8, 1)}
    return ElasticWrapper(blocks, nn.Conv2d(8, 2, 1), adapters=adapters)


def test_a_projection_is_a_part_of_the_objective_and_learns() -> None:
    net = widening_net()
    description = Distillation(
        of="features",
        compare=Projected(nn.Conv2d(4, 8, 1), mean_squared),
        teacher="deepest",
        weight=0.1,
    )
    objective = ElasticObjective(net, nn.L1Loss(), psd_weight=0, distillations=[description])
    projection = "distillations.0.compare.projection.weight"
    before = objective.get_parameter(projection).clone()
    optimiser = torch.optim.SGD(objective.parameters(), lr=0.1)
    objective(X, Y).total.backward()
    optimiser.step()
    assert not torch.equal(objective.get_parameter(projection), before)
    assert projection in objective.state_dict()
    assert not any("projection" in name for name in net.state_dict())


def test_a_projection_of_a_term_that_steps_leave_out_needs_the_unused_search() -> None:
    def needs_search(weight: Any, of: str = "features", **options: Any) -> bool:
        compare = Projected(nn.Conv2d(4, 4, 1), mean_squared)
        description = Distillation(of=of, compare=compare, weight=weight)
        return ElasticObjective(
            conv_net(3), nn.L1Loss(), psd_weight=0, distillations=[description], **options
        ).needs_unused_search

    assert not needs_search(0.1)
    assert needs_search(lambda step: 0.0)
    assert not needs_search(0.1, sampled_taps=1)  # features come at all taps
    assert needs_search(0.1, of="predictions", sampled_taps=1)


def test_a_schedule_that_begins_at_0_leaves_no_parameter_unused() -> None:
    description = Distillation(
        of="features",
        compare=Projected(nn.Conv2d(4, 4, 1), mean_squared),
        weight=lambda step: step / 10,
    )
    objective = ElasticObjective(
        conv_net(3), nn.L1Loss(), psd_weight=0, distillations=[description]
    )
    assert objective.find_unused(X, Y) == []


def test_projections_and_teachers_compile_into_one_graph() -> None:
    torch._dynamo.reset()
    teacher = nn.Conv2d(4, 2, 1)
    hint = Distillation(
        of="features", compare=Projected(nn.Conv2d(4, 4, 1), mean_squared), weight=0.1
    )
    objective = ElasticObjective(
        conv_net(3),
        nn.L1Loss(),
        psd_weight=0.1,
        distillations=[hint, of_outputs(0.3, teacher=teacher)],
    )
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X, Y).total, objective(X, Y).total)


def test_single_terms_compile_into_one_graph() -> None:
    torch._dynamo.reset()
    objective = ElasticObjective(
        conv_net(3), nn.L1Loss(), psd_weight=0.1, distillations=[of_outputs(0.3)], by_term=True
    )
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
    found, expected = compiled(X, Y), objective(X, Y)
    torch.testing.assert_close(found.by_tap, expected.by_tap)
    torch.testing.assert_close(found.by_distillation, expected.by_distillation)


# --- misuse


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight": -1.0}, ValueError, "weight -1.0: expected a finite number, at least 0"),
        ({"weight": math.nan}, ValueError, "weight nan: expected a finite number, at least 0"),
        ({"of": "map"}, ValueError, "of 'map': expected one of maps, features, predictions"),
        ({"power": math.nan}, ValueError, "power=nan: expected a finite number above 0"),
        ({"of": "features", "power": 2}, ValueError, "power=2 of features: a power belongs to"),
        ({"teacher": "last"}, ValueError, "teacher 'last': expected one of next, deepest"),
        ({"teacher": 3}, TypeError, "teacher 3: expected one of next, deepest, or a function"),
        ({"teacher": nn.ReLU}, TypeError, "teacher <class .*ReLU'>: expected one of next, deepest"),
        ({"compare": "l1"}, TypeError, "compare is a str: expected a function of a student"),
        ({"compare": nn.L1Loss}, TypeError, r"compare is the class L1Loss: .* L1Loss\(\)"),
    ],
)
def test_a_wrong_description_is_refused_where_it_is_written(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    described: dict[str, Any] = {"of": "maps", "compare": unit_distance, "weight": 0.1}
    with pytest.raises(error, match=message):
        Distillation(**{**described, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"students": (1, 4)}, r"student 4: this net has taps at \[1, 2, 3\]"),
        (
            {"students": (3,)},
            "student 3 with the teacher 'next': the deepest tap has no deeper one to learn from",
        ),
    ],
)
def test_a_description_that_does_not_fit_the_net_is_refused(
    options: dict[str, Any], message: str
) -> None:
    description = Distillation(of="maps", compare=unit_distance, weight=0.1, **options)
    with pytest.raises(ValueError, match=message):
        ElasticObjective(conv_net(3), nn.L1Loss(), psd_weight=0, distillations=[description])


@pytest.mark.parametrize(
    ("distillations", "message"),
    [
        (PROGRESSIVE, r"distillations is a Distillation: expected a list of them, \[...\]"),
        ([unit_distance], r"distillations hold a function: expected Distillation\(...\)"),
    ],
)
def test_distillations_are_a_list_of_descriptions(distillations: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ElasticObjective(conv_net(2), nn.L1Loss(), psd_weight=0, distillations=distillations)


def test_a_teacher_with_another_number_of_features_is_named() -> None:
    description = Distillation(
        of="features", compare=mean_squared, teacher=lambda x: [x, x], weight=1.0
    )
    message = "the teacher gives 2 features: expected one tensor, or one for each of the 3 taps"
    with pytest.raises(ValueError, match=message):
        distilled(conv_net(3), description)


def test_a_projection_outside_of_what_averages_gradients_is_refused(
    one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process would learn a projection of its own."""
    compare = Projected(nn.Conv2d(4, 4, 1), mean_squared)
    description = Distillation(of="features", compare=compare, weight=0.1)
    net = conv_net(2)
    parallel = DistributedDataParallel(net)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    message = r"distillations\[0\]\.compare is learned, and the net alone is in Distributed"
    with pytest.raises(ValueError, match=message):
        ElasticObjective(parallel, nn.L1Loss(), psd_weight=0, distillations=[description])
    ElasticObjective(net, nn.L1Loss(), psd_weight=0, distillations=[description])


def test_distillations_may_come_one_after_the_other() -> None:
    net = conv_net(2)
    from_generator = (each for each in [PROGRESSIVE])
    objective = ElasticObjective(net, nn.L1Loss(), psd_weight=0, distillations=from_generator)  # pyright: ignore[reportArgumentType]
    assert len(objective.distillations) == 1
