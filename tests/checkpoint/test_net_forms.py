"""Nets that are compiled, wrapped, tied, lazy or hold what autograd computed: saved and loaded."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import elasticnet
from contract import disturb, same
from elasticnet import ElasticWrapper
from elasticnet.checkpoint import read_header
from elasticnet.registry import Architecture, build, register, unregister
from elasticnet.sr import asrn

X = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(0))
VECTORS = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.safetensors"


# --- compiled and wrapped nets


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


WRAPPERS = [compiled, nn.DataParallel, AveragedModel, checkpoint_wrapper]


def small_asrn() -> ElasticWrapper:
    torch.manual_seed(0)
    net = asrn(2, num_blocks=2, channels=8).eval()
    disturb(net)
    return net


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_net_gives_the_same_bytes(
    path: Path, tmp_path: Path, wrap: Callable[[nn.Module], Any]
) -> None:
    elasticnet.save(small_asrn(), path)
    elasticnet.save(wrap(small_asrn()), tmp_path / "wrapped.safetensors")
    assert (tmp_path / "wrapped.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, checkpoint_wrapper])
def test_wrapped_blocks_give_the_same_bytes(
    path: Path, tmp_path: Path, wrap: Callable[[nn.Module], Any]
) -> None:
    net = small_asrn()
    elasticnet.save(net, path)
    for index, block in enumerate(net.blocks):
        net.blocks[index] = wrap(block)
    net.head = wrap(net.head)
    elasticnet.save(net, tmp_path / "wrapped.safetensors")
    assert (tmp_path / "wrapped.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_file_is_loaded_into_a_wrapped_net(path: Path, wrap: Callable[[nn.Module], Any]) -> None:
    saved = small_asrn()
    elasticnet.save(saved, path)
    net = asrn(2, num_blocks=2, channels=8).eval()
    net.blocks[1] = wrap(net.blocks[1]) if wrap is not AveragedModel else net.blocks[1]
    wrapped = wrap(net)
    elasticnet.load_into(wrapped, path)
    same(wrapped(X), saved(X), "prediction")


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group of this process alone."""
    store: Any = distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_net_in_distributed_data_parallel_gives_the_same_bytes(
    path: Path, tmp_path: Path
) -> None:
    elasticnet.save(small_asrn(), path)
    elasticnet.save(DistributedDataParallel(small_asrn()), tmp_path / "parallel.safetensors")
    assert (tmp_path / "parallel.safetensors").read_bytes() == path.read_bytes()


def sharded(net: ElasticWrapper) -> ElasticWrapper:
    mesh = init_device_mesh("cpu", (1,))
    for part in (*net.blocks, net):
        fully_shard(part, mesh=mesh)
    return net


@pytest.mark.usefixtures("process_group")
def test_a_sharded_net_gives_the_same_bytes_and_is_filled(path: Path, tmp_path: Path) -> None:
    elasticnet.save(small_asrn(), path)
    from_sharded = tmp_path / "sharded.safetensors"
    elasticnet.save(sharded(small_asrn()), from_sharded)
    assert from_sharded.read_bytes() == path.read_bytes()

    # A sharded net cannot run on the CPU with torch 2.6, so that what it holds is saved again.
    net = sharded(asrn(2, num_blocks=2, channels=8))
    elasticnet.load_into(net, path)
    elasticnet.save(net, from_sharded)
    assert from_sharded.read_bytes() == path.read_bytes()


def test_memory_that_a_parameter_is_a_part_of_can_be_resized_after_a_save(path: Path) -> None:
    net = linear_net([nn.Linear(4, 4)])
    flat = torch.rand(40)
    net.get_parameter("blocks.0.weight").data = flat[4:20].view(4, 4)
    elasticnet.save(net, path)
    flat.untyped_storage().resize_(0)  # as sharded training does between passes


def linear_net(blocks: list[Any]) -> ElasticWrapper:
    return ElasticWrapper(blocks, nn.Linear(4, 2)).eval()


def test_a_builder_may_wrap_blocks(path: Path) -> None:
    saved = linear_net([nn.Linear(4, 4) for _ in range(3)])
    elasticnet.save(saved, path)
    blocks = [compiled(nn.Linear(4, 4)), nn.DataParallel(nn.Linear(4, 4)), nn.Linear(4, 4)]
    for depth in saved.taps:
        loaded = elasticnet.load(path, depth, build=lambda: copy.deepcopy(linear_net(blocks)))
        same(loaded(VECTORS), saved(VECTORS, depth=depth), f"depth {depth}")


class Held(nn.Module):
    """A block whose own attribute has the name that nn.DataParallel gives to what it wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def test_an_attribute_called_module_keeps_its_name(path: Path) -> None:
    elasticnet.save(linear_net([Held()]), path)
    assert "blocks.0.module.weight" in read_header(path)["sha256"]


@pytest.mark.parametrize("piece", ["_orig_mod", "module", "_checkpoint_wrapped_module"])
def test_files_of_earlier_versions_with_wrapped_names_are_read(path: Path, piece: str) -> None:
    saved = linear_net([nn.ModuleDict({piece: nn.Linear(4, 4)}) for _ in range(2)])
    elasticnet.save(saved, path)
    assert f"blocks.1.{piece}.weight" in read_header(path)["sha256"]
    net = linear_net([nn.Linear(4, 4) for _ in range(2)])
    elasticnet.load_into(net, path)
    blocks: Any = saved.blocks
    same(net.blocks[1].state_dict(), blocks[1][piece].state_dict(), "second block")


def test_a_net_with_merged_adapters_is_asked_for() -> None:
    class AdaptedModel(nn.Module):
        def merge_and_unload(self) -> nn.Module:
            return nn.Linear(1, 1)

    message = "net is a AdaptedModel, whose adapters no file can hold: merge them first"
    with pytest.raises(TypeError, match=message):
        elasticnet.save(AdaptedModel(), "net.safetensors")


# --- tied weights


def tied_blocks() -> ElasticWrapper:
    block = nn.Linear(4, 4)
    return linear_net([block, block])


def tied_parameter() -> ElasticWrapper:
    blocks = [nn.Linear(4, 4), nn.Linear(4, 4)]
    blocks[1].bias = blocks[0].bias
    return linear_net(blocks)


def tied_buffer() -> ElasticWrapper:
    net = separate_buffers()
    net.blocks[1].register_buffer("gain", net.get_buffer("blocks.0.gain"))
    return net


def separate_buffers() -> ElasticWrapper:
    blocks = [nn.Linear(4, 4), nn.Linear(4, 4)]
    for block in blocks:
        block.register_buffer("gain", torch.rand(4))
    return linear_net(blocks)


def separate_blocks() -> ElasticWrapper:
    return linear_net([nn.Linear(4, 4), nn.Linear(4, 4)])


TIES = [
    (separate_blocks, tied_blocks, "weight"),
    (separate_blocks, tied_parameter, "bias"),
    (separate_buffers, tied_buffer, "gain"),
]


@pytest.mark.parametrize(("separate", "tied", "name"), TIES)
def test_different_copies_are_not_loaded_into_one_tensor(
    path: Path, separate: Callable[[], Any], tied: Callable[[], Any], name: str
) -> None:
    elasticnet.save(separate(), path)
    message = rf"'blocks\.0\.{name}' and 'blocks\.1\.{name}' are shared in this net, and differ"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {message} in the file"):
        elasticnet.load(path, build=tied)
    net = tied()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=message):
        elasticnet.load_into(net, path)
    same(net.state_dict(), before, "state")


@pytest.mark.parametrize(("separate", "tied", "name"), TIES)
def test_equal_copies_are_loaded_into_one_tensor(
    path: Path, separate: Callable[[], Any], tied: Callable[[], Any], name: str
) -> None:
    net = separate()
    net.blocks[1].load_state_dict(net.blocks[0].state_dict())
    elasticnet.save(net, path)
    same(elasticnet.load(path, build=tied)(VECTORS), net(VECTORS), "load")
    into = tied()
    elasticnet.load_into(into, path)
    same(into(VECTORS), net(VECTORS), "load_into")


def test_one_bit_of_difference_is_enough(path: Path) -> None:
    net = separate_blocks()
    net.blocks[1].load_state_dict(net.blocks[0].state_dict())
    weight = net.get_parameter("blocks.1.weight")
    weight.data.view(torch.int32)[0, 0] ^= 1
    elasticnet.save(net, path)
    with pytest.raises(ValueError, match=r"'blocks\.0\.weight' and 'blocks\.1\.weight' are shared"):
        elasticnet.load(path, build=tied_blocks)


def test_parameters_that_lie_in_each_others_memory_are_tied_for_load_into(path: Path) -> None:
    elasticnet.save(separate_blocks(), path)
    net = separate_blocks()
    weight = net.get_parameter("blocks.0.weight")
    net.get_parameter("blocks.1.weight").data = weight.data.t()
    before = weight.clone()
    with pytest.raises(ValueError, match="are shared in this net, and differ"):
        elasticnet.load_into(net, path)
    same(weight, before, "weight")


def test_an_expanded_buffer_is_named_before_anything_is_written(path: Path) -> None:
    elasticnet.save(separate_buffers(), path)
    net = separate_buffers()
    net.blocks[1].register_buffer("gain", torch.zeros(1).expand(4))
    before = copy.deepcopy(net.state_dict())
    message = "'blocks.1.gain' of this net is an expanded tensor, whose values share memory"
    with pytest.raises(ValueError, match=message):
        elasticnet.load_into(net, path)
    same(net.state_dict(), before, "state")


# --- lazy layers


def lazy_net() -> ElasticWrapper:
    blocks = [nn.Sequential(nn.LazyConv2d(4, 3, padding=1), nn.LazyBatchNorm2d()) for _ in range(2)]
    return ElasticWrapper(blocks, nn.LazyConv2d(2, 1)).eval()


@pytest.fixture
def saved_lazy_net(path: Path) -> ElasticWrapper:
    net = lazy_net()
    net(X)
    disturb(net)
    elasticnet.save(net, path)
    return net


@pytest.mark.parametrize("depth", [1, 2])
def test_lazy_layers_are_loaded(path: Path, saved_lazy_net: ElasticWrapper, depth: int) -> None:
    loaded = elasticnet.load(path, depth, build=lazy_net)
    same(loaded(X), saved_lazy_net(X, depth=depth), f"depth {depth}")


def test_lazy_layers_are_filled_in_place(path: Path, saved_lazy_net: ElasticWrapper) -> None:
    net = lazy_net()
    parameters = list(net.parameters())
    elasticnet.load_into(net, path)
    assert all(new is old for new, old in zip(net.parameters(), parameters, strict=True))
    same(net(X), saved_lazy_net(X), "prediction")


def test_a_lazy_net_that_has_not_run_is_not_saved(path: Path) -> None:
    message = "tensor 'blocks.0.0.weight' belongs to a lazy layer that has not run yet"
    with pytest.raises(ValueError, match=message):
        elasticnet.save(lazy_net(), path)
    assert not path.exists()


# --- what load does with the net that a builder returns


def test_at_full_depth_the_built_net_itself_is_filled(path: Path) -> None:
    saved = separate_blocks()
    elasticnet.save(saved, path)
    built = separate_blocks()
    assert elasticnet.load(path, build=lambda: built) is built
    same(built(VECTORS), saved(VECTORS), "prediction")


class TiedByHand(nn.Module):
    """Multiplies by a parameter that it also keeps in a list, where no state dict shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.weights = [self.linear.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) @ self.weights[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_else_holds_a_parameter_sees_the_values_of_the_file(
    path: Path, dtype: torch.dtype
) -> None:
    saved = linear_net([TiedByHand(), TiedByHand()]).to(dtype)
    elasticnet.save(saved, path)
    built = linear_net([TiedByHand(), TiedByHand()])
    optimizer = torch.optim.SGD(built.parameters(), lr=0.1)

    loaded = elasticnet.load(path, build=lambda: built)

    same(loaded(VECTORS.to(dtype)), saved(VECTORS.to(dtype)), "prediction")
    (group,) = optimizer.param_groups
    assert all(mine is own for mine, own in zip(group["params"], loaded.parameters(), strict=True))


def tied_net(num_blocks: int = 2, taps: list[int] | None = None) -> ElasticWrapper:
    return ElasticWrapper([TiedByHand() for _ in range(num_blocks)], nn.Linear(4, 2), taps=taps)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_what_else_holds_a_parameter_of_a_registered_net_sees_the_values_of_the_file(
    path: Path, depth: int, training: bool
) -> None:
    register("tied", Architecture(build=tied_net, example=lambda _: VECTORS))
    try:
        saved = build("tied").train(training)
        elasticnet.save(saved, path)

        loaded = elasticnet.load(path, depth)

        assert loaded.origin is not None
        same(loaded(VECTORS), saved.eval()(VECTORS, depth=depth), "prediction")
        loaded(VECTORS).sum().backward()
        assert all(parameter.grad is not None for parameter in loaded.parameters())
    finally:
        unregister("tied")


def test_a_parameter_with_an_attribute_of_sharded_ones_is_an_ordinary_one(path: Path) -> None:
    net = linear_net([nn.Linear(4, 4)])
    weight: Any = net.get_parameter("blocks.0.weight")
    weight.full_tensor = None

    elasticnet.save(net, path)

    loaded = elasticnet.load(path, build=lambda: linear_net([nn.Linear(4, 4)]))
    same(loaded(VECTORS), net(VECTORS), "prediction")


def test_a_net_after_a_backward_pass_is_filled_at_every_depth(path: Path) -> None:
    def build() -> ElasticWrapper:
        blocks = [nn.utils.weight_norm(nn.Linear(4, 4)) for _ in range(2)]
        net = linear_net(blocks)
        net(VECTORS).sum().backward()
        return net

    saved = build()
    elasticnet.save(saved, path)
    for depth in saved.taps:
        loaded = elasticnet.load(path, depth, build=build)
        same(loaded(VECTORS), saved(VECTORS, depth=depth), f"depth {depth}")


def test_a_buffer_on_the_net_itself_comes_back(path: Path) -> None:
    def build() -> ElasticWrapper:
        net = separate_blocks()
        net.register_buffer("steps", torch.tensor(0))
        return net

    net = build()
    net.get_buffer("steps").fill_(7)
    elasticnet.save(net, path)
    assert elasticnet.load(path, build=build).get_buffer("steps").item() == 7
