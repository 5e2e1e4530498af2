"""torch.compile around the net, the objective, or both: one graph, and the plain loop's weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from elasticnet import ElasticObjective
from plain_loop import make_net, make_objective, make_optimizer, train, trained_plainly
from split_nets import CASES, case_trained_plainly, train_case

pytestmark = pytest.mark.slow
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("what", ["the net", "the objective"])
def test_a_compiled_training_is_one_graph_and_equals_the_plain_loop(
    what: str, backend: str
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    net = make_net(torch.float64)
    if what == "the net":
        compiled: Any = torch.compile(net, backend=backend, fullgraph=True)
        objective: Any = make_objective(compiled)
    else:
        objective = torch.compile(make_objective(net), backend=backend)

    train(objective, make_optimizer(net.parameters()), dtype=torch.float64)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(net.state_dict(), trained_plainly(torch.float64))


def test_blocks_that_are_compiled_one_by_one_train_as_in_the_plain_loop() -> None:
    torch._dynamo.reset()
    net = make_net(torch.float64)
    for block in net.blocks:
        block.compile(backend="aot_eager")
    train(make_objective(net), make_optimizer(net.parameters()), dtype=torch.float64)
    torch.testing.assert_close(net.state_dict(), trained_plainly(torch.float64))


@pytest.mark.parametrize("name", CASES)
def test_a_compiled_split_model_is_one_graph_and_equals_the_plain_loop(name: str) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    if name in ("bert", "gpt2") and TORCH < (2, 7):
        pytest.skip("torch 2.6 cannot compile transformers' own forwards into one graph")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    case = CASES[name]()
    compiled: Any = torch.compile(case.net, backend="aot_eager", fullgraph=True)
    train_case(case, ElasticObjective(compiled, case.task_loss, psd_weight=0.1))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    actual = dict(case.net.state_dict())
    torch.testing.assert_close(actual, case_trained_plainly(name), rtol=1e-7, atol=1e-10)
