"""`checkpoint_head`: the same losses and gradients, without the predictions of all taps."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet import Distillation, ElasticObjective, ElasticWrapper
from elasticnet.distillation_losses import cosine_distance
from tiny_nets import MASK, TOKENS, conv_net, of_outputs, rotary_net

X = torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.randn(2, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class SkipHead(nn.Module):
    """A head with BatchNorm, noise, and the input as its skip."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.output(self.dropout(self.norm(x))) + skip[:, :2]


def skip_net() -> ElasticWrapper:
    """A net with all that stands around a head."""
    torch.manual_seed(0)
    blocks = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)]
    adapters = {2: nn.Conv2d(4, 4, 1)}
    net = ElasticWrapper(
        blocks,
        SkipHead(),
        nn.Conv2d(4, 4, 1),
        adapters=adapters,
        head_skip="input",
        checkpoint_blocks=True,
    )
    return net.double()


def step_of(net: ElasticWrapper, *, checkpoint_head: bool, **options: Any) -> list[Any]:
    """Return the losses, gradients and state of a step, all of which must be the same."""
    torch.manual_seed(3)  # for the noise of the head
    objective = ElasticObjective(
        net, nn.MSELoss(), psd_weight=0.1, checkpoint_head=checkpoint_head, **options
    )
    terms = objective(X, Y, step=5)
    terms.total.backward()
    gradients = {name: each.grad for name, each in objective.named_parameters()}
    return [terms[:4], terms.per_depth, gradients, dict(net.state_dict()), torch.get_rng_state()]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampled_taps": 1},
        {"tap_weights": {1: 0.0, 2: 0.5, 3: 2.0}},
        {
            "distillations": [
                Distillation(of="features", compare=cosine_distance, teacher="deepest", weight=0.3)
            ]
        },
    ],
    ids=["all taps", "sampled", "weights", "features"],
)
@pytest.mark.parametrize("make_net", [lambda: conv_net(3).double(), skip_net])
def test_losses_gradients_and_state_are_the_same(make_net: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = step_of(make_net(), checkpoint_head=False, **options)
    torch.manual_seed(0)
    by_tap = step_of(make_net(), checkpoint_head=True, **options)
    torch.testing.assert_close(by_tap, plain, rtol=1e-12, atol=1e-14)


def test_keyword_arguments_reach_the_net_and_a_mask_the_self_distillation() -> None:
    torch.manual_seed(0)
    net = rotary_net().eval()

    def loss(prediction: Tensor, target: None) -> Tensor:
        return prediction.square().mean()

    plain = ElasticObjective(net, loss, 0.1)(TOKENS, None, mask=MASK)
    by_tap = ElasticObjective(net, loss, 0.1, checkpoint_head=True)(TOKENS, None, mask=MASK)
    torch.testing.assert_close(by_tap.total, plain.total)
    torch.testing.assert_close(by_tap.per_depth, plain.per_depth)


def test_one_prediction_is_held_at_a_time() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most_alive: dict[bool, int] = {}

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        alive.append(weakref.ref(output))
        counts.append(sum(reference() is not None for reference in alive))

    for checkpoint_head in (False, True):
        net = conv_net(4).double()
        net.head.register_forward_hook(count)
        objective = ElasticObjective(
            net, nn.MSELoss(), psd_weight=0, checkpoint_head=checkpoint_head
        )
        alive.clear()
        counts: list[int] = []
        objective(X, Y).total.backward()
        most_alive[checkpoint_head] = max(counts)
    assert most_alive == {False: 4, True: 1}


def test_a_step_without_gradients_keeps_no_prediction_either() -> None:
    net = conv_net(3).double()
    objective = ElasticObjective(net, nn.MSELoss(), psd_weight=0.1, checkpoint_head=True)
    with torch.no_grad():
        terms = objective.eval()(X, Y)
    plain = ElasticObjective(net, nn.MSELoss(), psd_weight=0.1).eval()(X, Y)
    torch.testing.assert_close(terms.total, plain.total)
    assert not terms.total.requires_grad


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."),
    reason="the compiler of PyTorch 2.6 cannot look into a pass that rests at a depth",
)
def test_a_compiled_objective_computes_the_same_step_in_one_graph() -> None:
    torch._dynamo.reset()
    blocks = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)]
    net = ElasticWrapper(blocks, nn.Conv2d(4, 2, 1)).double()
    objective = ElasticObjective(net, nn.MSELoss(), psd_weight=0.1, checkpoint_head=True)
    objective(X, Y).total.backward()
    expected = [parameter.grad for parameter in net.parameters()]
    net.zero_grad(set_to_none=True)
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
    compiled(X, Y).total.backward()
    torch.testing.assert_close([parameter.grad for parameter in net.parameters()], expected)


def test_a_parameter_changed_before_the_backward_pass_is_named() -> None:
    net = conv_net(2).double()
    objective = ElasticObjective(net, nn.MSELoss(), psd_weight=0, checkpoint_head=True)
    terms = objective(X, Y)
    with torch.no_grad():
        net.head.get_parameter("linear.weight").mul_(2)
    message = "checkpoint_head: the parameter head.linear.weight .* leave out checkpoint_head"
    with pytest.raises(RuntimeError, match=message):
        terms.total.backward()


def test_a_task_loss_that_overwrites_the_target_is_named() -> None:
    objective = ElasticObjective(
        conv_net(2).double(), lambda p, t: t.sub_(p).mean(), psd_weight=0, checkpoint_head=True
    )
    with torch.no_grad(), pytest.raises(RuntimeError, match="writes in place into the target"):
        objective(X, Y.clone())


def test_what_needs_all_predictions_at_once_is_refused() -> None:
    net = conv_net(2)
    message = "checkpoint_head keeps no predictions, and a distillation compares them"
    with pytest.raises(ValueError, match=message):
        ElasticObjective(
            net, nn.MSELoss(), 0, distillations=[of_outputs(0.1)], checkpoint_head=True
        )
    ElasticObjective(net, nn.MSELoss(), 0, distillations=[of_outputs(0.0)], checkpoint_head=True)
    compiled: Any = torch.compile(net, backend="eager")
    with pytest.raises(ValueError, match="OptimizedModule around it would not see"):
        ElasticObjective(compiled, nn.MSELoss(), 0, checkpoint_head=True)


def test_a_loss_without_a_tensor_is_named() -> None:
    def number(prediction: Tensor, target: Tensor) -> Any:
        return F.mse_loss(prediction, target).item()

    objective = ElasticObjective(conv_net(2).double(), number, 0, checkpoint_head=True)
    with pytest.raises(TypeError, match="the task loss returned a float: expected a scalar"):
        objective(X, Y)
