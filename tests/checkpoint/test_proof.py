"""A file names an architecture only if that gives the function of the net that was saved."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import elasticnet
from contract import disturb, same
from elasticnet import ElasticWrapper
from elasticnet.checkpoint import read_header
from elasticnet.checkpoint.proof import architecture_to_record
from elasticnet.registry import Architecture, build, register, unregister
from elasticnet.sr import asrn, edsr, rcan

X = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(0))
SMALL: dict[str, Callable[[], ElasticWrapper]] = {
    "asrn": lambda: asrn(2, num_blocks=3, channels=8),
    "edsr": lambda: edsr(2, num_blocks=3, channels=8),
    "rcan": lambda: rcan(2, num_blocks=2, channels=8, group_size=1, reduction=2),
}


def small_net(name: str) -> ElasticWrapper:
    """Return a net whose every part counts, as after a training."""
    net = SMALL[name]().eval()
    disturb(net)
    return net


def set_attribute(module: str, name: str, value: Any) -> Callable[[ElasticWrapper], None]:
    """Return a change of one attribute of a net's module."""

    def change(net: ElasticWrapper) -> None:
        setattr(net.get_submodule(module), name, value)

    return change


def put_a_block_into_a_sequential(net: ElasticWrapper) -> None:
    net.blocks[1] = nn.Sequential(net.blocks[1])


def replace_an_activation(net: ElasticWrapper) -> None:
    body: Any = net.blocks[0].body
    body[1] = nn.LeakyReLU(0.2)


def replace_a_slope(net: ElasticWrapper) -> None:
    body: Any = net.blocks[0].body
    body[1].inplace = False


def normalise_weights(net: ElasticWrapper) -> None:
    parametrizations.weight_norm(net.blocks[0].get_submodule("expand"))


def prune_weights(net: ElasticWrapper) -> None:
    prune.l1_unstructured(net.blocks[0].get_submodule("expand"), "weight", 0.5)


def hook_the_net(net: ElasticWrapper) -> None:
    net.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 0.5,))


def hook_a_block(net: ElasticWrapper) -> None:
    def double(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output * 2

    net.blocks[1].register_forward_hook(double)


def replace_the_forward(net: ElasticWrapper) -> None:
    forward = net.forward
    net.forward = lambda x, *args, **kwargs: forward(x * 0.5, *args, **kwargs)


def add_a_buffer(net: ElasticWrapper) -> None:
    net.register_buffer("steps", torch.tensor(7))


class Halved(ElasticWrapper):
    """Halves its input."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return super().forward(x * 0.5, *args, **kwargs)


def make_a_subclass(net: ElasticWrapper) -> None:
    net.__class__ = Halved


CHANGES: list[tuple[str, Any, str]] = [
    (
        "asrn",
        set_attribute("blocks.1", "shuffle", False),
        "'blocks.1' has shuffle True there, and False here",
    ),
    ("asrn", set_attribute("blocks.1", "residual", False), "has residual True there"),
    ("asrn", set_attribute("blocks.1", "residual_links", False), "has residual_links True there"),
    (
        "asrn",
        set_attribute("blocks.0", "fusion", None),
        "the tensor 'blocks.0.fusion.weight' is missing here",
    ),
    (
        "asrn",
        set_attribute("stem.0", "padding_mode", "reflect"),
        "'stem.0' has padding_mode 'zeros' there, and 'reflect' here",
    ),
    ("asrn", set_attribute("", "head_skip", "input"), "the net has head_skip None there"),
    ("asrn", set_attribute("blocks.2.expand", "stride", (2, 2)), "has stride (1, 1) there"),
    (
        "edsr",
        set_attribute("blocks.0", "res_scale", 0.5),
        "'blocks.0' has res_scale 1.0 there, and 0.5 here",
    ),
    (
        "asrn",
        put_a_block_into_a_sequential,
        "the tensor 'blocks.1.0.expand.weight' is missing there",
    ),
    (
        "edsr",
        replace_an_activation,
        "'blocks.0.body.1' is of class ReLU there, and of class LeakyReLU here",
    ),
    ("edsr", replace_a_slope, "'blocks.0.body.1' has inplace True there, and False here"),
    ("asrn", normalise_weights, "parametrizations.weight.original0' is missing there"),
    ("asrn", prune_weights, "the tensor 'blocks.0.expand.weight' is missing here"),
    ("asrn", hook_the_net, "the outputs for an example differ by up to"),
    ("asrn", hook_the_net, "the net has a forward hook here"),
    ("rcan", hook_a_block, "'blocks.1' has a forward hook here"),
    ("asrn", replace_the_forward, "the forward of the net is replaced here"),
    ("asrn", add_a_buffer, "the tensor 'steps' is missing there"),
    (
        "asrn",
        make_a_subclass,
        "the net is of class ElasticWrapper there, and of class Halved here",
    ),
]


@pytest.mark.parametrize(("name", "change", "reason"), CHANGES)
def test_a_changed_net_is_saved_without_an_architecture_and_the_change_is_named(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    change: Callable[[ElasticWrapper], None],
    reason: str,
) -> None:
    net = small_net(name)
    change(net)
    path = tmp_path / "net.safetensors"
    elasticnet.save(net, path)
    assert read_header(path)["architecture"] is None
    (message,) = caplog.messages
    assert message.startswith(f"{path}: saved without an architecture, so that load needs build=: ")
    assert f"{name} builds another net: " in message
    assert reason in message


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("training", [False, True])
def test_a_net_as_it_was_built_keeps_its_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, training: bool
) -> None:
    net = small_net(name).train(training)
    elasticnet.save(net, tmp_path / "net.safetensors")
    assert read_header(tmp_path / "net.safetensors")["architecture"] == name
    assert caplog.messages == []
    loaded = elasticnet.load(tmp_path / "net.safetensors")
    same(loaded(X), net.eval()(X), "prediction")


def test_equal_blocks_may_change_places_and_be_shared() -> None:
    net = small_net("asrn")
    net.blocks[0], net.blocks[1] = net.blocks[1], net.blocks[0]
    net.blocks[2] = net.blocks[1]
    assert architecture_to_record(net).architecture == "asrn"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_keep_the_name(dtype: torch.dtype) -> None:
    assert architecture_to_record(small_net("edsr").to(dtype)).architecture == "edsr"


def test_a_net_without_memory_is_compared_by_names_and_settings() -> None:
    net = small_net("asrn").to("meta")
    assert architecture_to_record(net).why_none is None
    set_attribute("blocks.0", "shuffle", False)(net)
    assert "has shuffle True there" in str(architecture_to_record(net).why_none)


def test_a_hook_that_only_looks_keeps_the_name_in_eval_mode() -> None:
    net = small_net("asrn")
    seen: list[int] = []
    net.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    assert architecture_to_record(net).architecture == "asrn"
    # In a training no pass is made, so nobody knows what the hook does.
    seen.clear()
    doubt = str(architecture_to_record(net.train()).why_none)
    assert doubt == "asrn builds another net: 'blocks.0' has a forward hook here"
    assert seen == []


# --- the proof leaves no trace


class Restless(nn.Linear):
    """Draws random numbers, counts its calls, keeps its output and moves a buffer, in eval too."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.scale = nn.Parameter(torch.rand(4))
        self.order = random.sample(range(4), 4)
        self.calls = 0
        self.last_output: Tensor | None = None
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, input: Tensor) -> Tensor:
        self.calls += 1
        self.get_buffer("steps").add_(1)
        noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        self.last_output = super().forward(input) * self.scale + noise
        return self.last_output


def restless_net(num_blocks: int = 2, taps: list[int] | None = None) -> ElasticWrapper:
    return ElasticWrapper([Restless() for _ in range(num_blocks)], nn.Linear(4, 1), taps=taps)


def seed_every_generator() -> None:
    random.seed(123)
    np.random.seed(123)  # noqa: NPY002
    torch.manual_seed(123)


def draw_from_every_generator() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002


def test_the_proof_draws_no_random_numbers_and_moves_nothing() -> None:
    architecture = Architecture(build=restless_net, example=lambda _: torch.rand(2, 4))
    register("restless", architecture)
    try:
        net = build("restless").eval()
        net(torch.rand(2, 4))
        before = copy.deepcopy(net.state_dict())
        seed_every_generator()
        next_numbers = draw_from_every_generator()
        seed_every_generator()
        last_output = net.blocks[0].last_output

        assert architecture_to_record(net).architecture == "restless"

        same(net.state_dict(), before, "state")
        assert draw_from_every_generator() == next_numbers
        assert net.blocks[0].calls == 1
        assert net.blocks[0].last_output is last_output
    finally:
        unregister("restless")


class Recording(nn.Linear):
    """Changes in place what it holds: lists, dicts, sets, a tensor and generators of its own."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.calls: list[list[str]] = [[]]
        self.recent: deque[int] = deque(maxlen=2)
        self.counts = {"calls": torch.zeros(())}
        self.shapes: set[tuple[int, ...]] = set()
        self.steps = torch.zeros(())
        self.torch_generator = torch.Generator()
        self.python_generator = random.Random(0)
        self.old_generator = np.random.RandomState(0)
        self.numpy_generator = np.random.default_rng(0)

    def forward(self, input: Tensor) -> Tensor:
        self.calls[0].append("called")
        self.recent.append(1)
        self.counts["calls"] += 1
        self.shapes.add(tuple(input.shape))
        self.steps += 1
        torch.rand(1, generator=self.torch_generator)
        self.python_generator.random()
        self.old_generator.rand()
        self.numpy_generator.random()
        return super().forward(input)

    def held(self) -> list[Any]:
        return [
            copy.deepcopy([self.calls, self.recent, self.shapes]),
            [self.counts["calls"].item(), self.steps.item()],
            self.torch_generator.get_state().tolist(),
            self.python_generator.getstate(),
            self.old_generator.get_state(legacy=False)["state"]["pos"],  # how far it is
            self.numpy_generator.bit_generator.state,
        ]


def recording_net(num_blocks: int = 2, taps: list[int] | None = None) -> ElasticWrapper:
    return ElasticWrapper([Recording() for _ in range(num_blocks)], nn.Linear(4, 1), taps=taps)


def test_the_proof_leaves_what_modules_hold_and_change_in_place() -> None:
    register("recording", Architecture(build=recording_net, example=lambda _: torch.rand(2, 4)))
    try:
        net = build("recording").eval()
        net(torch.rand(2, 4))
        block: Any = net.blocks[0]
        before = block.held()
        calls = block.calls

        assert architecture_to_record(net).architecture == "recording"

        assert block.held() == before
        assert block.calls is calls
    finally:
        unregister("recording")


class Centred(nn.Linear):
    """Has a setting whose name is also one of an elastic net's attributes."""

    def __init__(self, origin: float = 0.5) -> None:
        super().__init__(4, 4)
        self.origin = origin

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input - self.origin)


def centred_net(num_blocks: int = 2, taps: list[int] | None = None) -> ElasticWrapper:
    return ElasticWrapper([Centred() for _ in range(num_blocks)], nn.Linear(4, 1), taps=taps)


def test_a_setting_of_a_block_counts_whatever_an_elastic_net_calls_by_its_name() -> None:
    register("centred", Architecture(build=centred_net))
    try:
        net = build("centred")
        block: Any = net.blocks[1]
        block.origin = 0.25

        doubt = str(architecture_to_record(net).why_none)

        assert doubt == "centred builds another net: 'blocks.1' has origin 0.5 there, and 0.25 here"
    finally:
        unregister("centred")


def test_an_attribute_that_accelerate_uses_too_is_no_replaced_forward() -> None:
    net = small_net("asrn").train()
    vars(net.blocks[0])["_original_forward"] = None

    assert architecture_to_record(net).architecture == "asrn"


class Forwarding:
    """A hook that is an object with a hook of its own, such as a recorder of other libraries."""

    def __init__(self, hook: Any) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return 2 * output


def test_a_hook_object_counts_whatever_its_own_attributes_are() -> None:
    net = small_net("asrn").train()
    net.head.register_forward_hook(Forwarding(hook=torch.distributed.is_available))

    doubt = str(architecture_to_record(net).why_none)

    assert doubt == "asrn builds another net: 'head' has a forward hook here"


def traced_net(num_blocks: int = 2, taps: list[int] | None = None) -> ElasticWrapper:
    """Return a net of traced blocks, each of which has a class of its own."""
    blocks = [torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4))) for _ in range(num_blocks)]
    return ElasticWrapper(blocks, nn.Linear(4, 1), taps=taps)


def test_classes_that_are_made_for_each_object_are_compared_by_their_names() -> None:
    register("traced", Architecture(build=traced_net))
    try:
        record = architecture_to_record(build("traced"))
    finally:
        unregister("traced")
    assert record.architecture == "traced"


def lazy_blocks() -> list[nn.Module]:
    return [nn.LazyLinear(4), nn.LazyLinear(4)]


def spectral_blocks() -> list[nn.Module]:
    return [parametrizations.spectral_norm(nn.Linear(4, 4)) for _ in range(2)]


def old_weight_norm_blocks() -> list[nn.Module]:
    return [nn.utils.weight_norm(nn.Linear(4, 4)) for _ in range(2)]


def attention_blocks() -> list[nn.Module]:
    return [nn.TransformerEncoderLayer(4, 2, 8, batch_first=True) for _ in range(2)]


def batch_norm_blocks() -> list[nn.Module]:
    return [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(3)) for _ in range(2)]


@pytest.mark.parametrize(
    "make_blocks",
    [lazy_blocks, spectral_blocks, old_weight_norm_blocks, attention_blocks, batch_norm_blocks],
)
def test_unusual_layers_are_described_and_come_back(
    tmp_path: Path, make_blocks: Callable[[], list[nn.Module]]
) -> None:
    def unusual_net(num_blocks: int = 2, taps: list[int] | None = None) -> ElasticWrapper:
        return ElasticWrapper(make_blocks()[:num_blocks], nn.Linear(4, 1), taps=taps)

    x = torch.rand(5, 3, 4)
    register("unusual", Architecture(build=unusual_net, example=lambda _: x))
    try:
        net = build("unusual")
        net(x).sum().backward()
        elasticnet.save(net.eval(), tmp_path / "net.safetensors")
        loaded = elasticnet.load(tmp_path / "net.safetensors", depth=1)
        with torch.no_grad():
            same(loaded(x), net(x, depth=1), "prediction")
    finally:
        unregister("unusual")


def test_a_net_prepared_by_accelerate_is_to_be_unwrapped() -> None:
    accelerate = pytest.importorskip("accelerate")
    net = small_net("asrn")
    prepared = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(net)
    doubt = str(architecture_to_record(prepared).why_none)
    assert "the forward of the net is replaced here by accelerate: save accelerator.unw" in doubt


def test_a_builder_that_fails_is_no_description() -> None:
    def fails(num_blocks: int = 2, taps: list[int] | None = None) -> ElasticWrapper:
        if taps is not None:
            raise ValueError("only once")
        return restless_net(num_blocks)

    register("fails", Architecture(build=fails))
    try:
        doubt = architecture_to_record(build("fails")).why_none
    finally:
        unregister("fails")
    assert doubt == "fails builds another net: its builder fails: only once"
