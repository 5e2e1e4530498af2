"""BatchNorm in the shared head and in adapters: statistics for each depth, in every form."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import elasticnet
from contract import NetworkContract, same
from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.recalibration import recalibrate, separate_statistics
from elasticnet.registry import Architecture, register, unregister
from elasticnet.wrapper import Origin

CHANNELS = 4
NUM_CLASSES = 3


class ScalingBlock(nn.Module):
    """Makes features larger and moves them, so that every depth has other statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x + 1 + self.conv(x)


def head_with_norm() -> nn.Sequential:
    norm = nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.ReLU())
    return nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 3))


def make_net(head: nn.Module | None = None, **options: Any) -> ElasticWrapper:
    torch.manual_seed(0)
    blocks = [ScalingBlock() for _ in range(3)]
    stem = nn.Conv2d(3, CHANNELS, 1)
    return ElasticWrapper(blocks, head or head_with_norm(), stem, **options)


def batches(number: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 5, 5, generator=generator) for _ in range(number)]


def recalibrated(**options: Any) -> ElasticWrapper:
    net = make_net(**options).eval()
    recalibrate(net, batches())
    return net


class TestRecalibratedNet(NetworkContract):
    """Every invariant of a wrapped network holds with statistics for each depth."""

    def net(self) -> ElasticWrapper:
        return recalibrated()

    def example(self) -> Tensor:
        return batches(1)[0]


class TestRecalibratedNetWithAdapters(NetworkContract):
    """They hold with adapters that have BatchNorm, and taps at some depths only."""

    def net(self) -> ElasticWrapper:
        return recalibrated(taps=(1, 3), adapters={1: nn.BatchNorm2d(CHANNELS)})

    def example(self) -> Tensor:
        return batches(1)[0]


# --- what is measured


def test_each_depth_gets_what_update_bn_measures_of_the_net_that_ends_there() -> None:
    net = make_net().eval()
    ends_there = {depth: net.truncate(depth) for depth in net.taps}

    measured = recalibrate(net, batches())

    assert measured == ["head.0.0"]
    for depth, small in ends_there.items():
        torch.optim.swa_utils.update_bn(batches(), small)
        expected = small.head.state_dict()
        actual = net.head_statistics[str(depth)].state_dict()
        names = ("running_mean", "running_var", "num_batches_tracked")
        assert list(actual) == [f"0.0.{name}" for name in names]
        for name, value in actual.items():
            assert torch.equal(value, expected[name]), (depth, name)


def test_predictions_are_normalised_at_every_depth() -> None:
    net = make_net(head=nn.BatchNorm2d(CHANNELS, affine=False))
    optimizer_steps(net)
    x = torch.cat(batches())

    recalibrate(net.eval(), [x])

    for prediction in net.forward_taps(x).predictions:
        mean = prediction.mean((0, 2, 3))
        deviation = prediction.std((0, 2, 3))
        torch.testing.assert_close(mean, torch.zeros(CHANNELS), atol=1e-4, rtol=0)
        torch.testing.assert_close(deviation, torch.ones(CHANNELS), atol=1e-3, rtol=0)


def optimizer_steps(net: ElasticWrapper) -> None:
    """Let the head's own statistics become the mean over depths, as training does."""
    net.train()
    with torch.no_grad():
        for batch in batches():
            net.forward_taps(batch)


def test_adapters_are_measured_where_update_bn_resets_them_for_good() -> None:
    adapters = {depth: nn.BatchNorm2d(CHANNELS) for depth in (1, 2, 3)}
    net = make_net(head=nn.AdaptiveAvgPool2d(1), adapters=adapters)
    torch.optim.swa_utils.update_bn(batches(), net)
    assert adapters[1].num_batches_tracked == 0  # what the warning is about

    measured = recalibrate(net, batches())

    assert measured == ["adapters.1", "adapters.2", "adapters.3"]
    net.eval()
    for depth, adapter in adapters.items():
        features = [net.forward_taps(batch).features[depth - 1] for batch in batches()]
        mean = torch.stack([each.mean((0, 2, 3)) for each in features]).mean(0)
        torch.testing.assert_close(adapter.running_mean, mean)


def test_the_trunk_is_measured_only_if_asked() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(CHANNELS)
    stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), norm)
    net = ElasticWrapper([ScalingBlock(), ScalingBlock()], head_with_norm(), stem).eval()
    before = copy.deepcopy(norm.state_dict())

    assert recalibrate(net, batches()) == ["head.0.0"]
    same(norm.state_dict(), before, "the stem's statistics")

    assert recalibrate(net, batches(), trunk=True) == ["stem.1", "head.0.0"]
    assert not torch.equal(norm.get_buffer("running_mean"), before["running_mean"])
    twin = copy.deepcopy(stem)
    torch.optim.swa_utils.update_bn(batches(), twin)
    same(norm.state_dict(), twin[1].state_dict(), "the stem's statistics")


def test_dropout_is_off_and_every_mode_and_momentum_comes_back() -> None:
    head = head_with_norm()
    head.insert(0, nn.Dropout(0.5))
    net = make_net(head=head).train()
    net.blocks[1].eval()

    recalibrate(net, [(batch, "target") for batch in batches()])

    plain = make_net(head=nn.Sequential(nn.Identity(), *head[1:]))
    recalibrate(plain, batches())
    same(net.head_statistics.state_dict(), plain.head_statistics.state_dict(), "statistics")
    assert not net.blocks[1].training
    assert all(
        part.training for part in (net.blocks[0], head[0], head[1], net.head_statistics["1"])
    )
    assert head.get_submodule("1.0").momentum == 0.1


class ScalingStem(nn.Module):
    """A stem that takes more than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 1)

    def forward(self, x: Tensor, scale: float) -> Tensor:
        return scale * self.conv(x)


def test_a_batch_may_hold_the_keyword_arguments_of_the_net() -> None:
    torch.manual_seed(0)
    blocks = [ScalingBlock() for _ in range(2)]
    net = ElasticWrapper(blocks, head_with_norm(), ScalingStem())
    plain = ElasticWrapper(net.blocks, head_with_norm(), ScaledByTwo(net.stem))

    recalibrate(net, [{"x": batch, "scale": 2.0} for batch in batches()])
    recalibrate(plain, batches())

    expected = dict(plain.head_statistics.named_buffers())
    same(dict(net.head_statistics.named_buffers()), expected, "statistics")


class ScaledByTwo(nn.Module):
    def __init__(self, stem: nn.Module | None) -> None:
        super().__init__()
        assert stem is not None
        self.stem = stem

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x, scale=2.0)


def test_a_net_without_such_modules_stays_as_it_is() -> None:
    net = make_net(head=nn.AdaptiveAvgPool2d(1))
    keys = list(net.state_dict())
    assert recalibrate(net, batches()) == []
    separate_statistics(net)
    assert list(net.state_dict()) == keys


# --- separated statistics


def test_separating_keeps_the_function_and_each_depth_then_updates_its_own() -> None:
    net = make_net().eval()
    optimizer_steps(net)
    x = batches(1)[0]
    before = net.eval().forward_taps(x)

    separate_statistics(net)
    same(net.forward_taps(x), before, "predictions")

    net.train()
    net(x, depth=2)
    moved = [
        depth
        for depth in net.taps
        if not torch.equal(
            net.head_statistics[str(depth)].get_buffer("0.0.running_mean"),
            net.head.get_buffer("0.0.running_mean"),
        )
    ]
    assert moved == [2]


def test_training_reaches_the_shared_weights_at_every_depth() -> None:
    net = recalibrated().train()
    objective = ElasticObjective(net, F.cross_entropy, psd_weight=0.1)
    objective(batches(1)[0], torch.arange(8) % NUM_CLASSES).total.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
    assert "head.0.0.weight" in dict(net.named_parameters())


def test_only_the_depths_named_get_statistics() -> None:
    net = make_net().eval()
    separate_statistics(net, depths=[2])
    assert list(net.head_statistics) == ["2"]
    separate_statistics(net)
    assert sorted(net.head_statistics) == ["1", "2", "3"]


# --- the forms of a net


def test_an_ordinary_sequence_has_ordinary_batch_norm() -> None:
    net = recalibrated()
    x = batches(1)[0]
    for depth in net.taps:
        plain = net.truncate(depth).to_sequential()
        assert torch.equal(plain(x), net(x, depth=depth))
        assert [type(module).__name__ for module in plain.modules()].count("HeadStatistics") == 0


def test_a_grown_net_has_the_deepest_statistics_at_its_new_depths() -> None:
    net = recalibrated()
    grown = net.grow([nn.Identity()], batches(1)[0], init=lambda block: None)
    same(
        grown.head_statistics["4"].state_dict(), net.head_statistics["3"].state_dict(), "statistics"
    )
    assert grown.head_statistics["4"] is not grown.head_statistics["3"]


def test_a_file_holds_the_statistics_of_every_depth(tmp_path: Path) -> None:
    net = recalibrated()
    x = batches(1)[0]
    elasticnet.save(net, tmp_path / "net.safetensors")
    for depth in net.taps:
        loaded = elasticnet.load(tmp_path / "net.safetensors", depth, build=make_net)
        assert torch.equal(loaded(x), net(x, depth=depth))
        same(loaded.state_dict(), net.truncate(depth).state_dict(), "state")

    with pytest.raises(ValueError, match=r"'head_statistics.1.*recalibration.separate_statistics"):
        elasticnet.load_into(make_net(), tmp_path / "net.safetensors")
    prepared = make_net().eval()
    separate_statistics(prepared)
    elasticnet.load_into(prepared, tmp_path / "net.safetensors")
    same(prepared.forward_taps(x), net.forward_taps(x), "predictions")


def test_a_registered_net_keeps_its_architecture(tmp_path: Path) -> None:
    def build(num_blocks: int = 3, taps: Any = None) -> ElasticWrapper:
        torch.manual_seed(0)
        blocks = [ScalingBlock() for _ in range(num_blocks)]
        net = ElasticWrapper(blocks, head_with_norm(), nn.Conv2d(3, CHANNELS, 1), taps=taps)
        net.origin = Origin("with_norm_in_head", {"num_blocks": num_blocks})
        return net

    register(
        "with_norm_in_head",
        Architecture(build, example=lambda _: batches(1)[0]),
    )
    try:
        net = build().eval()
        recalibrate(net, batches())
        elasticnet.save(net, tmp_path / "net.safetensors")
        for depth in net.taps:
            loaded = elasticnet.load(tmp_path / "net.safetensors", depth)
            same(loaded(batches(1)[0]), net(batches(1)[0], depth=depth), f"depth {depth}")
    finally:
        unregister("with_norm_in_head")


@pytest.mark.parametrize("what", ["net", "head"])
def test_compiled_nets_give_the_same_bits(what: str) -> None:
    net = recalibrated()
    x = batches(1)[0]
    expected = [net(x, depth=depth) for depth in net.taps]
    if what == "head":
        compiled: Any = net
        compiled.head = torch.compile(net.head, backend="eager")
        recalibrate(net, batches())
    else:
        compiled = torch.compile(net, backend="eager", fullgraph=True)
    for depth in net.taps:
        assert torch.equal(compiled(x, depth=depth), expected[depth - 1])


def test_every_depth_is_exported_with_its_statistics(tmp_path: Path) -> None:
    net = recalibrated()
    x = batches(1)[0]
    from elasticnet.export import export

    for depth in net.taps:
        path = tmp_path / f"{depth}.pt2"
        export(net, path, depth=depth, example=x)
        program: Any = torch.export.load(path).module()
        torch.testing.assert_close(program(x), net(x, depth=depth))


class Meeting(nn.Module):
    """Lets a second thread come into the head, if it can, before the first one goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.second_came = threading.Event()
        self.first_is_done = threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        self.names.append(threading.current_thread().name)
        if self.names == ["first"]:
            self.second_came.wait(timeout=0.3)
        elif self.names == ["first", "second"]:
            self.second_came.set()
            self.first_is_done.wait(timeout=0.3)
        return x

    def __deepcopy__(self, memo: Any) -> Meeting:
        return self


def test_threads_at_different_depths_do_not_meet_in_the_head() -> None:
    meeting = Meeting()
    net = recalibrated(head=nn.Sequential(meeting, *head_with_norm()))
    x = batches(1)[0]
    expected = {depth: net(x, depth=depth) for depth in net.taps}
    found: dict[int, Tensor] = {}

    def run(depth: int) -> None:
        found[depth] = net(x, depth=depth)
        meeting.first_is_done.set()

    meeting.names.clear()
    first = threading.Thread(target=run, args=(1,), name="first")
    second = threading.Thread(target=run, args=(3,), name="second")
    first.start()
    while first.is_alive() and not meeting.names:
        pass
    second.start()
    first.join()
    second.join()

    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[3], expected[3])


# --- warnings and refusals


def warnings_of(net: ElasticWrapper, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        net.check(batches(1)[0])
    return [record.getMessage() for record in caplog.records]


def test_check_warns_of_one_set_of_statistics_for_several_depths(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = make_net()
    (warning,) = warnings_of(net, caplog)
    assert "BatchNorm '0.0'" in warning
    assert "depths 1, 2, 3" in warning
    assert "recalibrate(net, batches)" in warning

    recalibrate(net, batches())
    assert warnings_of(net, caplog) == []
    assert warnings_of(make_net(taps=(3,)), caplog) == []


def test_check_warns_of_adapters_that_measured_nothing(caplog: pytest.LogCaptureFixture) -> None:
    adapters = {depth: nn.BatchNorm2d(CHANNELS) for depth in (1, 2, 3)}
    net = make_net(head=nn.AdaptiveAvgPool2d(1), adapters=adapters)
    assert warnings_of(net, caplog) == []  # nothing was measured at all: it is a new net

    torch.optim.swa_utils.update_bn(batches(), net)
    (warning,) = warnings_of(net, caplog)
    assert "BatchNorm 'adapters.1' has measured no batch" in warning

    recalibrate(net, batches())
    assert warnings_of(net, caplog) == []


def test_check_warns_of_an_adapter_that_several_depths_share(
    caplog: pytest.LogCaptureFixture,
) -> None:
    adapter = nn.Sequential(nn.BatchNorm2d(CHANNELS))
    net = make_net(head=nn.AdaptiveAvgPool2d(1), adapters={1: adapter, 3: adapter})
    (warning,) = warnings_of(net, caplog)
    assert "'adapters.1.0' is in the adapters at depths 1, 3" in warning

    parts_shared = {1: nn.Sequential(nn.Identity(), adapter[0]), 3: adapter}
    net = make_net(head=nn.AdaptiveAvgPool2d(1), adapters=parts_shared)
    (warning,) = warnings_of(net, caplog)
    assert "'adapters.1.1' is in the adapters at depths 1, 3" in warning


class HeadOfAllTaps(nn.Module):
    takes_all_taps = True

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self.norm(each) for each in features)


def interrupted() -> Iterator[Tensor]:
    yield batches(1)[0]
    raise KeyboardInterrupt


def test_what_cannot_be_measured_is_refused_and_nothing_changes() -> None:
    net = recalibrated(adapters={1: nn.BatchNorm2d(CHANNELS)})
    before = copy.deepcopy(net.state_dict())

    with pytest.raises(ValueError, match="batches is empty"):
        recalibrate(net, [])
    with pytest.raises(ValueError, match=r"batches is a tensor of shape \(.*\): expected a list"):
        recalibrate(net, batches()[0])
    with pytest.raises(ValueError, match=r"batches is a list_iterator.*trunk=True.*twice"):
        recalibrate(net, iter(batches()), trunk=True)
    with pytest.raises(KeyboardInterrupt):
        recalibrate(net, interrupted())
    same(net.state_dict(), before, "state")
    assert net.head.get_submodule("0.0").momentum == 0.1

    with pytest.raises(TypeError, match="net is a Linear: expected an ElasticWrapper"):
        recalibrate(nn.Linear(2, 2), batches())
    for head in (HeadOfAllTaps(), nn.DataParallel(HeadOfAllTaps())):
        with pytest.raises(ValueError, match="'norm' cannot have statistics for each depth"):
            recalibrate(make_net(head=head), batches())
    with pytest.raises(ValueError, match="depth 7"):
        separate_statistics(net, depths=[7])
    with pytest.raises(ValueError, match=r"keys \['pixels', 'y'\].*as 'x'"):
        recalibrate(net, [{"pixels": batches(1)[0], "y": 1}])


def test_a_lazy_norm_is_measured_as_soon_as_it_has_a_shape() -> None:
    net = make_net(head=nn.Sequential(nn.LazyBatchNorm2d(), nn.AdaptiveAvgPool2d(1)))
    with pytest.raises(ValueError, match="'0' is lazy and has no shape yet: run the net once"):
        recalibrate(net, batches())
    net(batches(1)[0])
    assert recalibrate(net, batches()) == ["head.0"]
