"""net(x, taps=...) is the module's own call: hooks, compilers and wrappers see every pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel, scatter_gather

from contract import same
from elasticnet import ElasticObjective, ElasticWrapper, Taps
from tiny_nets import TogetherHead, conv_blocks, conv_net

X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))
Y = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(2))


def test_taps_by_two_names() -> None:
    net = conv_net(3)
    taps = net(X, taps=net.taps)
    assert isinstance(taps, Taps)
    same(net.forward_taps(X), taps, "forward_taps(x)")
    some = net(X, taps=[-1, 1])
    assert some.depths == (1, 3)
    same(some.predictions, (taps.predictions[0], taps.predictions[2]), "two predictions")
    same(some.features, taps.features, "the features of all taps")
    same(net.forward_taps(X, depths=[-1, 1]), some, "forward_taps(x, depths)")


def test_taps_do_not_depend_on_the_default_depth() -> None:
    net = conv_net(2)
    expected = net(X, taps=net.taps)
    with net.at_depth(1):
        same(net(X, taps=net.taps), expected, "inside at_depth(1)")


def test_depth_and_taps_together_raise() -> None:
    with pytest.raises(ValueError, match=r"depth 1 and taps \(2,\): expected one of the two"):
        conv_net(2)(X, depth=1, taps=(2,))  # pyright: ignore[reportCallIssue, reportArgumentType]


# --- the objective goes through the net's own call


def loss_of(net: nn.Module, **options: Any) -> dict[int, Tensor]:
    return ElasticObjective(net, nn.L1Loss(), psd_weight=0.1, **options)(X, Y).per_depth


def test_hooks_on_net_and_head_fire_in_training() -> None:
    net = conv_net(3)
    scaled = net(2 * X, taps=net.taps).predictions
    head_calls: list[int] = []
    outputs: list[Any] = []
    net.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    net.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    net.head.register_forward_hook(lambda *_: head_calls.append(1))
    losses = loss_of(net)
    same(list(losses.values()), [nn.functional.l1_loss(each, Y) for each in scaled], "losses")
    same(outputs, list(scaled), "what the hook saw: each prediction")
    assert len(head_calls) == 3


def test_a_replaced_forward_runs_in_training() -> None:
    """As accelerate does it, to put autocast around the forward."""
    net = conv_net(2)
    inner = net.forward
    dtypes: list[torch.dtype] = []

    def in_bfloat16(*inputs: Any, **keywords: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = inner(*inputs, **keywords)
        dtypes.extend(prediction.dtype for prediction in output.predictions)
        return output

    net.forward = in_bfloat16  # pyright: ignore[reportAttributeAccessIssue]
    loss_of(net)
    assert dtypes == [torch.bfloat16] * 2


def test_a_compiled_net_is_compiled_in_training() -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    net = conv_net(3)
    expected = loss_of(net)
    torch.testing.assert_close(loss_of(torch.compile(net, backend=backend)), expected)  # pyright: ignore[reportArgumentType]
    assert len(graphs) == 1


@pytest.mark.parametrize("options", [{}, {"sampled_taps": 1}], ids=["all taps", "sampled"])
def test_a_net_in_distributed_data_parallel_trains(
    options: dict[str, Any], one_process: None
) -> None:
    net = conv_net(3, adapters={1: nn.Conv2d(4, 4, 1)})
    plain = ElasticObjective(net, nn.L1Loss(), psd_weight=0.1, **options)
    parallel = DistributedDataParallel(net, find_unused_parameters=plain.needs_unused_search)
    objective = ElasticObjective(parallel, nn.L1Loss(), psd_weight=0.1, **options)
    for step in range(3):
        gradients: list[Any] = []
        for each in (plain, objective):
            each.zero_grad(set_to_none=True)
            each(X, Y, step=step).total.backward()
            gradients.append([parameter.grad for parameter in net.parameters()])
        torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7),
    reason="torch 2.6 has no FSDP2 on the CPU",
)
def test_a_net_that_is_the_root_of_fsdp2_trains(one_process: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = conv_net(2)
    expected = loss_of(net)
    mesh = init_device_mesh("cpu", (1,))
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    terms = ElasticObjective(net, nn.L1Loss(), psd_weight=0.1)(X, Y)
    terms.total.backward()
    torch.testing.assert_close(terms.per_depth, expected)
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_net_in_data_parallel_of_several_devices_is_refused_with_the_way() -> None:
    """DataParallel gathers named tuples field by field, and a depth is no tensor."""
    net = conv_net(2)
    parallel: Any = nn.DataParallel(net)
    loss_of(parallel)  # one device, or the CPU: nothing is gathered
    parallel.device_ids = [0, 1]
    with pytest.raises(
        TypeError, match=r"DataParallel of the devices \[0, 1\], .*no Taps: put the"
    ):
        loss_of(parallel)


def test_the_terms_of_an_objective_can_be_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way that the error names; PyTorch's own gathering takes tensors on GPUs alone."""

    class GatherOnCpu:
        @staticmethod
        def apply(device: Any, dim: int, *tensors: Tensor) -> Tensor:
            return torch.stack(tensors)

    monkeypatch.setattr(scatter_gather, "Gather", GatherOnCpu)
    objective = ElasticObjective(conv_net(2), nn.L1Loss(), psd_weight=0.1)
    terms = objective(X, Y)
    gathered = scatter_gather.gather([terms, terms], torch.device("cpu"))
    same(gathered.total, torch.stack([terms.total, terms.total]), "total")
    assert list(gathered.per_depth) == [1, 2]


def test_a_head_in_data_parallel_still_takes_all_taps() -> None:
    head = TogetherHead("b c h w", 4, 2)
    net = ElasticWrapper(conv_blocks(3), head).eval()
    expected = net(X, taps=net.taps)
    net.head = nn.DataParallel(head)
    same(net(X, taps=net.taps), expected, "all taps")
    same(net(X, depth=2), expected.predictions[1], "depth 2")


def test_what_is_no_elastic_net_is_named() -> None:
    with pytest.raises(TypeError, match="net is a Linear: expected an ElasticWrapper"):
        ElasticObjective(nn.Linear(2, 2), nn.L1Loss(), psd_weight=0.1)


# --- backward hooks


def test_a_backward_hook_that_would_not_run_is_named() -> None:
    """PyTorch runs it for a tensor, and would leave it out for a Taps without a word."""
    calls: list[int] = []

    def record(module: nn.Module, *gradients: Any) -> None:
        calls.append(1)

    net = conv_net(2)
    handle = net.register_full_backward_hook(record)
    net(X).sum().backward()
    assert calls == [1]
    with pytest.raises(TypeError, match=r"the backward hook .*record of this net would not run"):
        loss_of(net)
    with torch.no_grad():
        loss_of(net)
    handle.remove()
    loss_of(net)
    net.register_full_backward_pre_hook(record)
    with pytest.raises(TypeError, match=r"the backward hook .*record of this net would not run"):
        loss_of(net)


# --- heads that take all taps


class CountedHead(TogetherHead):
    """Counts how many taps each call gets."""

    def __init__(self) -> None:
        super().__init__("b c h w", 4, 2)
        self.calls: list[int] = []

    def forward(self, x: tuple[Tensor, ...], skip: Tensor | None = None) -> tuple[Tensor, ...]:
        self.calls.append(len(x))
        return super().forward(x, skip)


def test_a_head_that_takes_all_taps_is_called_once_a_pass() -> None:
    head = CountedHead()
    net = ElasticWrapper(conv_blocks(3), head)
    net(X, taps=net.taps)
    net(X, taps=[1, 3])
    net(X, depth=2)
    loss_of(net)
    assert head.calls == [3, 2, 1, 3]


def test_a_sequence_holds_a_head_that_takes_all_taps() -> None:
    net = ElasticWrapper(conv_blocks(2), CountedHead())
    plain = net.to_sequential()
    same(plain(X), net(X), "to_sequential()(x)")
    assert set(plain.state_dict()) == set(net.state_dict())


@pytest.mark.parametrize(
    ("output", "found"), [(torch.ones(2), "Tensor"), ((), "tuple"), ([X, X], "list")]
)
def test_a_head_that_returns_no_prediction_for_each_tap_is_named(output: Any, found: str) -> None:
    class Wrong(nn.Module):
        takes_all_taps = True

        def forward(self, features: tuple[Tensor, ...]) -> Any:
            return output

    net = ElasticWrapper(conv_blocks(2), Wrong())
    message = rf"takes_all_taps and returned a {found}: expected a tuple of 2 predictions"
    with pytest.raises(TypeError, match=message):
        net(X, taps=net.taps)


def test_a_head_that_rejects_several_taps_names_them() -> None:
    class Picky(nn.Module):
        takes_all_taps = True

        def forward(self, features: tuple[Tensor, ...]) -> Any:
            raise ValueError("not today")

    net = ElasticWrapper(conv_blocks(2), Picky())
    shape = re.escape("have shape (2, 4, 5, 5)")
    message = f"rejects the taps at depth 1, 2, whose features {shape}, {shape}: not today"
    with pytest.raises(RuntimeError, match=message):
        net(X, taps=net.taps)


# --- names that belong to others


def test_methods_of_a_head_are_its_own_affair() -> None:
    class Head(nn.Conv2d):
        def prepare(self, x: Tensor) -> Tensor:
            raise AssertionError("never called")

    net = ElasticWrapper(conv_blocks(1), Head(4, 2, 1))
    same(net(X), net.head(net.blocks[0](X)), "a head with a method called prepare")


@pytest.mark.parametrize("word", ["depth", "taps"])
def test_a_stem_with_an_argument_that_the_net_keeps_is_refused(word: str) -> None:
    class WithDepth(nn.Module):
        def forward(self, x: Tensor, depth: Tensor | None = None) -> Tensor:
            return x

    class WithTaps(nn.Module):
        def forward(self, x: Tensor, *, taps: int = 0) -> Tensor:
            return x

    stem = {"depth": WithDepth(), "taps": WithTaps()}[word]
    with pytest.raises(ValueError, match=f"the stem's forward has an argument '{word}', which it"):
        conv_net(2, stem=stem)
