"""Recomputed blocks train as plain ones do: same gradients, same state afterwards."""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves

from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.recompute import recomputed

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(2))


class Scaled(nn.Module):
    """A convolution whose output is scaled by a number that `draw` makes anew in every run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # The tanh keeps the scaled values for its gradient, so that a wrong scale is seen.
        return torch.tanh(self.conv(x) * self.draw())

    def draw(self) -> Any:
        raise NotImplementedError


class PythonRandom(Scaled):
    def draw(self) -> float:
        return random.uniform(0.5, 2)


class NumpyRandom(Scaled):
    def draw(self) -> float:
        return float(np.random.uniform(0.5, 2))  # noqa: NPY002


class OwnTorchGenerator(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def draw(self) -> Tensor:
        return 0.5 + torch.rand((), generator=self.generator)


class OwnPythonGenerator(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.generator = random.Random(5)

    def draw(self) -> float:
        return self.generator.uniform(0.5, 2)


class OwnNumpyGenerator(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(5)

    def draw(self) -> float:
        return float(self.generator.uniform(0.5, 2))


class Counter(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def draw(self) -> float:
        self.runs += 1
        return 1 / self.runs


class TensorAttribute(Scaled):
    """State in a tensor that is no buffer, written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = torch.zeros(())

    def draw(self) -> Tensor:
        self.runs += 1
        return 1 / self.runs.clone()


class NewBuffer(Scaled):
    """A buffer that is replaced, not written to."""

    runs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def draw(self) -> Tensor:
        self.runs = self.runs + 1
        return 1 / self.runs


class UncountedWrite(Scaled):
    """A write that no version of the tensor counts."""

    runs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def draw(self) -> Tensor:
        self.runs.data.add_(1)
        return 1 / self.runs.clone()


class TwoNamesOfABuffer(Scaled):
    """One buffer with two names: a write to one is read by the other."""

    runs: Tensor
    same_runs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))
        self.register_buffer("same_runs", self.runs)

    def draw(self) -> Tensor:
        self.runs.add_(1)
        return 1 / self.same_runs.clone()


class LazyBuffer(Scaled):
    """A buffer that the first run fills."""

    scale: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", None)

    def draw(self) -> Tensor:
        if self.scale is None:
            self.scale = torch.tensor(3.0)
            return torch.tensor(0.5)
        return self.scale


class LazyAttribute(Scaled):
    """An attribute that the first run makes."""

    def draw(self) -> float:
        if not hasattr(self, "scale"):
            self.scale = 3.0
            return 0.5
        return self.scale


class History(Scaled):
    """A list that each run makes longer."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[int] = []

    def draw(self) -> float:
        self.history.append(1)
        return 1 / len(self.history)


class TensorInAList(Scaled):
    """State in a tensor inside containers, written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.nested = [{"runs": (torch.zeros(()),)}]

    def draw(self) -> Tensor:
        (runs,) = self.nested[0]["runs"]
        runs += 1
        return 1 / runs.clone()


class CounterInADict(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.nested = {"here": {"runs": 0}}

    def draw(self) -> float:
        self.nested["here"]["runs"] += 1
        return 1 / self.nested["here"]["runs"]


class HiddenState(Scaled):
    """A recurrent layer that keeps its hidden state, with its history."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(1, 1)
        self.hidden: Tensor | None = None

    def draw(self) -> Tensor:
        hidden = self.hidden.detach() if self.hidden is not None else None
        new_hidden = self.cell(torch.ones(1, 1), hidden)
        self.hidden = new_hidden
        return 2 + new_hidden


def spectral_norm_block() -> nn.Module:
    layers = [parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)) for _ in range(2)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


def old_spectral_norm_block() -> nn.Module:
    layers = [nn.utils.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)) for _ in range(2)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


def batch_norm_block() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())


def noisy_activation_block() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.RReLU())


MAKERS: list[Callable[[], nn.Module]] = [
    spectral_norm_block,
    old_spectral_norm_block,
    batch_norm_block,
    noisy_activation_block,
    PythonRandom,
    NumpyRandom,
    OwnTorchGenerator,
    OwnPythonGenerator,
    OwnNumpyGenerator,
    Counter,
    TensorAttribute,
    NewBuffer,
    UncountedWrite,
    TwoNamesOfABuffer,
    LazyBuffer,
    LazyAttribute,
    History,
    TensorInAList,
    CounterInADict,
    HiddenState,
]
EVERY_KIND_OF_STATE = pytest.mark.parametrize(
    "make_block", MAKERS, ids=[make_block.__name__ for make_block in MAKERS]
)


def twins(make_block: Callable[[], nn.Module]) -> tuple[ElasticWrapper, ElasticWrapper]:
    """Return two equal nets of two blocks each; the second one recomputes them."""
    torch.manual_seed(0)
    plain = ElasticWrapper([make_block(), make_block()], nn.Conv2d(4, 2, 1))
    torch.manual_seed(0)
    saving = ElasticWrapper(
        [make_block(), make_block()], nn.Conv2d(4, 2, 1), checkpoint_blocks=True
    )
    saving.load_state_dict(plain.state_dict())
    return plain, saving


def seed_generators() -> None:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002


def train(net: ElasticWrapper, steps: int = 2) -> list[Any]:
    """Train a few steps; return losses, gradients, state, and the generators' next numbers."""
    seed_generators()
    objective = ElasticObjective(net, nn.L1Loss(), psd_weight=0.1)
    seen: list[Any] = []
    for _ in range(steps):
        net.zero_grad()
        total = objective(X, Y).total
        total.backward()
        seen.append(total.item())
        seen.append([parameter.grad for parameter in net.parameters()])
    seen.append(own_state(net))
    seen.append([torch.rand(()).item(), random.random(), np.random.rand()])  # noqa: NPY002
    return seen


def own_state(net: nn.Module) -> list[Any]:
    """Return buffers, and the attributes that the blocks of this file hold state in."""
    state: list[Any] = [buffer.clone() for buffer in net.buffers()]
    for module in net.modules():
        for name in ("runs", "history", "scale", "training"):
            state.append(copy.copy(getattr(module, name, None)))
        for name in ("nested", "hidden"):
            state += [copy.copy(leaf) for leaf in tree_leaves(getattr(module, name, None))]
        generator = getattr(module, "generator", None)
        if isinstance(generator, torch.Generator):
            state.append(generator.get_state())
        elif isinstance(generator, random.Random):
            state.append(generator.getstate())
        elif isinstance(generator, np.random.Generator):
            state.append(generator.bit_generator.state["state"]["state"] % 2**32)
    return state


def assert_equal(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@EVERY_KIND_OF_STATE
def test_recomputed_blocks_train_as_plain_ones(make_block: Callable[[], nn.Module]) -> None:
    plain, saving = twins(make_block)
    assert_equal(train(saving), train(plain))


@EVERY_KIND_OF_STATE
def test_two_backward_passes_give_the_same_gradients(make_block: Callable[[], nn.Module]) -> None:
    _, net = twins(make_block)
    seed_generators()
    total = net(X).sum()
    total.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    state = own_state(net)
    net.zero_grad()
    total.backward()
    assert_equal([p.grad for p in net.parameters() if p.grad is not None], once)
    assert_equal(own_state(net), state)


def test_buffers_stay_the_same_tensors() -> None:
    _, net = twins(batch_norm_block)
    before = list(net.buffers())
    net(X).sum().backward()
    after = list(net.buffers())
    assert all(now is then for now, then in zip(after, before, strict=True))


def test_a_block_used_at_two_depths_has_the_state_of_each() -> None:
    torch.manual_seed(0)
    block = batch_norm_block()
    plain = ElasticWrapper([block, block], nn.Conv2d(4, 2, 1))
    saving = copy.deepcopy(plain)
    saving.checkpoint_blocks = True
    assert_equal(train(saving), train(plain))


def test_the_mode_of_the_first_run_holds_for_the_second() -> None:
    plain, saving = twins(lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Tanh()))
    gradients: list[list[Tensor | None]] = []
    for net in (plain, saving):
        total = net(X).sum()
        net.eval()
        total.backward()
        assert not any(module.training for module in net.modules())
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert_equal(gradients[1], gradients[0])


def test_autocast_holds_for_both_runs() -> None:
    plain, saving = twins(spectral_norm_block)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(train(saving), train(plain))


def test_the_second_run_of_a_failing_step_leaves_the_later_state() -> None:
    class Fragile(Counter):
        fails = False

        def forward(self, x: Tensor) -> Tensor:
            if self.fails:
                raise RuntimeError("failed on purpose")
            return super().forward(x)

    net = ElasticWrapper([Fragile()], nn.Conv2d(4, 2, 1), checkpoint_blocks=True)
    total = net(X).sum()
    Fragile.fails = True
    with pytest.raises(RuntimeError, match="failed on purpose"):
        total.backward()
    assert net.blocks[0].runs == 1


# --- the inputs of a block


def counting_call(
    block: nn.Module, x: Tensor, context: dict[str, Any], index: int
) -> tuple[Tensor, dict[str, Any]]:
    """A call_block that changes its context in place."""
    context["calls"].append(index)
    context["scale"] = context["scale"] * 2
    scale = context["scale"] + context["generator"].random()
    return torch.tanh(block(x) * scale), context


def test_a_context_that_is_changed_in_place() -> None:
    gradients: list[list[Tensor | None]] = []
    calls: list[int] = []
    for checkpoint_blocks in (False, True):
        torch.manual_seed(0)
        blocks = [nn.Conv2d(4, 4, 1) for _ in range(3)]
        net = ElasticWrapper(
            blocks,
            nn.Conv2d(4, 2, 1),
            call_block=counting_call,
            checkpoint_blocks=checkpoint_blocks,
        )
        calls = []
        net(X, calls=calls, scale=0.1, generator=random.Random(0)).sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert_equal(gradients[1], gradients[0])
    assert calls == [0, 1, 2]


class TwoMaps(nn.Module):
    """A block that hands on its list of two maps, with other maps in it."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(4, 4, 1)
        self.coarse = nn.Conv2d(4, 4, 1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps[0] = torch.tanh(self.fine(maps[0]))
        maps[1] = torch.tanh(self.coarse(maps[1]) + maps[0])
        return maps


class TwoMapsInPlace(TwoMaps):
    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps[0].tanh_()
        return super().forward(maps)


class LastMap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.conv(maps[-1])


def two_maps(x: Tensor) -> list[Tensor]:
    return [x * 1, x * 2]


def test_a_list_of_features_that_a_block_changes() -> None:
    gradients: list[list[Tensor | None]] = []
    for checkpoint_blocks in (False, True):
        torch.manual_seed(0)
        blocks = [TwoMaps(), TwoMaps()]
        net = ElasticWrapper(blocks, LastMap(), checkpoint_blocks=checkpoint_blocks)
        net(two_maps(X)).sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert_equal(gradients[1], gradients[0])


def test_a_tensor_in_a_list_that_is_written_to_is_refused() -> None:
    block = TwoMapsInPlace()
    total = LastMap()(recomputed(block, module=block)(two_maps(X))).sum()
    message = r"shape \(2, 4, 6, 6\) inside the inputs of TwoMapsInPlace was changed in place"
    with pytest.raises(RuntimeError, match=message):
        total.backward()


# --- parameters between the two runs


def test_a_step_between_forward_and_backward_is_refused() -> None:
    """Without recomputation PyTorch refuses it, too."""
    _, net = twins(batch_norm_block)
    total = net(X).sum()
    with torch.no_grad():
        net.get_parameter("blocks.1.0.weight").add_(1)
    message = r"the parameter 0\.weight of Sequential was changed between forward and backward"
    with pytest.raises(RuntimeError, match=message):
        total.backward()


def test_parameters_of_one_call_alone_are_refused() -> None:
    _, net = twins(batch_norm_block)
    doubled = {name: 2 * parameter for name, parameter in net.named_parameters()}
    total = torch.func.functional_call(net, doubled, (X,)).sum()
    with pytest.raises(RuntimeError, match=r"parameter .* was changed .*functional_call"):
        total.backward()


class Clamped(nn.Module):
    """A block that limits its own weight at the beginning of each run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.conv.weight.clamp_(-0.1, 0.1)
        return torch.tanh(self.conv(x))


def test_a_block_may_limit_its_own_weight() -> None:
    plain, saving = twins(Clamped)
    assert_equal(train(saving), train(plain))
    total = saving(X).sum()
    total.backward(retain_graph=True)
    total.backward()


# --- in several processes


@pytest.fixture
def one_process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
@pytest.mark.parametrize("make_block", [batch_norm_block, spectral_norm_block])
def test_distributed_recomputed_blocks(make_block: Callable[[], nn.Module]) -> None:
    plain, saving = twins(make_block)
    expected = train(plain)
    seed_generators()
    objective = DistributedDataParallel(ElasticObjective(saving, nn.L1Loss(), psd_weight=0.1))
    for step in range(2):
        saving.zero_grad()
        total = objective(X, Y).total
        total.backward()
        gradients = [parameter.grad for parameter in saving.parameters()]
        assert_equal([total.item(), gradients], expected[2 * step : 2 * step + 2])
    assert_equal(own_state(saving), expected[-2])


# --- what it costs


class Constant(nn.Module):
    """A block with a buffer that no run changes."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.register_buffer("table", torch.zeros(17, 19))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x) + self.table[0, 0])


def tables() -> Iterator[Tensor]:
    gc.collect()
    for thing in gc.get_objects():
        if type(thing) is Tensor and thing.shape == (17, 19):
            yield thing


def test_a_buffer_that_stays_the_same_is_not_kept_twice() -> None:
    net = ElasticWrapper([Constant(), Constant()], nn.Conv2d(4, 2, 1), checkpoint_blocks=True)
    total = net(X).sum()
    assert len(list(tables())) == 2
    total.backward()


def test_generators_that_a_block_does_not_use_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another thread may draw from them during the backward pass."""
    _, net = twins(batch_norm_block)
    total = net(X).sum()
    random.seed(4)
    later = random.getstate()
    calls: list[Any] = []
    monkeypatch.setattr(random, "setstate", calls.append)
    monkeypatch.setattr(np.random, "set_state", calls.append)
    total.backward()
    assert calls == []
    assert random.getstate() == later


def test_a_function_may_be_recomputed_by_itself() -> None:
    block = batch_norm_block()
    x = X.clone().requires_grad_()
    recomputed(block, module=block)(x).sum().backward()
    expected = X.clone().requires_grad_()
    block(expected).sum().backward()
    assert x.grad is not None
    assert_equal(x.grad, expected.grad)


# --- compiled


COMPILED: list[Callable[[], nn.Module]] = [
    batch_norm_block,
    spectral_norm_block,
    PythonRandom,
    Counter,
    NewBuffer,
]


@pytest.mark.parametrize(
    "make_block", [*COMPILED, NumpyRandom], ids=lambda make_block: make_block.__name__
)
def test_a_compiled_objective_with_recomputed_blocks(make_block: Callable[[], nn.Module]) -> None:
    plain, saving = twins(make_block)
    expected = train(plain)
    torch._dynamo.reset()
    seed_generators()
    objective = torch.compile(
        ElasticObjective(saving, nn.L1Loss(), psd_weight=0.1), backend="aot_eager"
    )
    for step in range(2):
        saving.zero_grad()
        total = objective(X, Y).total
        total.backward()
        gradients = [parameter.grad for parameter in saving.parameters()]
        torch.testing.assert_close([total.item(), gradients], expected[2 * step : 2 * step + 2])
    torch.testing.assert_close(own_state(saving), expected[-2])


@pytest.mark.parametrize("make_block", COMPILED, ids=lambda make_block: make_block.__name__)
def test_compiled_blocks_may_be_recomputed(make_block: Callable[[], nn.Module]) -> None:
    plain, saving = twins(make_block)
    expected = train(plain)
    torch._dynamo.reset()
    for block in saving.blocks:
        block.compile(backend="aot_eager")
    torch.testing.assert_close(train(saving)[:-1], expected[:-1])
