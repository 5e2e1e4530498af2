"""spandrel, the real package, loads our files and gives what our networks give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import elasticnet
from basicsr_nets import basic_edsr, basic_rcan
from elasticnet.sr import asrn, edsr, rcan
from elasticnet.sr.models.carried import CARRIER, carried_checkpoint, load_carried
from elasticnet.sr.models.convert import official_state_dict
from elasticnet.wrapper import ElasticWrapper

spandrel = pytest.importorskip("spandrel", reason='needs pip install "elastic-depth[spandrel]"')


def registry_with_ours(depth: int | None = None):
    """spandrel's own architectures and ours; the global registry stays as it is."""
    from elasticnet.sr.spandrel import install

    registry = registry_without_ours()
    install(registry, depth=depth)
    return registry


def registry_without_ours():
    """spandrel's own architectures, whatever another test has installed."""
    registry = spandrel.ArchRegistry()
    for support in spandrel.MAIN_REGISTRY:
        if not support.architecture.id.startswith("elasticnet"):
            registry.add(support)
    return registry


def random_net(
    build: Callable[..., ElasticWrapper], *arguments: int, **keywords: Any
) -> ElasticWrapper:
    """A net whose weights are random, so that each depth gives something else."""
    torch.manual_seed(0)
    net = build(*arguments, **keywords)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return net.eval()


@torch.no_grad()
def test_an_asrn_file_gives_the_same_image_in_spandrel(tmp_path: Path) -> None:
    net = random_net(asrn, 4, 3, 16, skip="bicubic")
    save_file(carried_checkpoint(net), tmp_path / "net.safetensors")
    x = torch.rand(1, 3, 14, 11)

    model = spandrel.ModelLoader(registry=registry_with_ours()).load_from_file(
        tmp_path / "net.safetensors"
    )

    assert isinstance(model, spandrel.ImageModelDescriptor)
    assert (model.scale, model.input_channels, model.output_channels) == (4, 3, 3)
    assert (model.purpose, model.tags) == ("SR", ["depth 3"])
    assert model.architecture.id == "elasticnet"
    assert torch.equal(model(x.clone()), net(x).clamp(0, 1))


@torch.no_grad()
def test_a_depth_of_choice_is_loaded(tmp_path: Path) -> None:
    net = random_net(asrn, 2, 3, 16)
    save_file(carried_checkpoint(net), tmp_path / "net.safetensors")
    loader = spandrel.ModelLoader(registry=registry_with_ours(depth=1))
    model = loader.load_from_file(tmp_path / "net.safetensors")
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(model.model(x), net(x, depth=1))
    assert not torch.equal(model.model(x), net(x))


@torch.no_grad()
def test_our_rcan_loads_in_spandrel_as_it_is(tmp_path: Path) -> None:
    net = random_net(rcan, 2, 2, 16, group_size=2, reduction=4, fold=False)
    torch.save(official_state_dict(net), tmp_path / "rcan.pth")
    x = torch.rand(1, 3, 10, 12)

    loader = spandrel.ModelLoader(registry=registry_without_ours())
    model = loader.load_from_file(tmp_path / "rcan.pth")

    assert model.architecture.id == "RCAN"
    # Its network multiplies its input in place, so it gets a copy.
    assert torch.equal(model.model(x.clone()), net(x))


@torch.no_grad()
def test_our_edsr_loads_in_spandrel_with_our_architectures(tmp_path: Path) -> None:
    net = random_net(edsr, 3, 3, 8, fold=False)
    torch.save(official_state_dict(net), tmp_path / "edsr.pth")
    x = torch.rand(1, 3, 10, 12)
    with pytest.raises(spandrel.UnsupportedModelError):
        spandrel.ModelLoader(registry=registry_without_ours()).load_from_file(tmp_path / "edsr.pth")

    model = spandrel.ModelLoader(registry=registry_with_ours()).load_from_file(
        tmp_path / "edsr.pth"
    )

    assert model.scale == 3
    torch.testing.assert_close(model.model(x), net(x), rtol=0, atol=2e-6)


@pytest.mark.parametrize("theirs", [basic_edsr(2, 2, 8), basic_rcan(4, 2, 8, 2, 4)])
@torch.no_grad()
def test_networks_of_basicsr_load_in_spandrel_with_our_architectures(
    theirs: torch.nn.Module, tmp_path: Path
) -> None:
    torch.save({"params": theirs.state_dict()}, tmp_path / "net.pth")
    loader = spandrel.ModelLoader(registry=registry_with_ours())
    model = loader.load_from_file(tmp_path / "net.pth")
    x = torch.rand(1, 3, 10, 12)
    torch.testing.assert_close(model.model(x), theirs(x), rtol=0, atol=2e-6)


@torch.no_grad()
def test_spandrels_own_files_are_still_its_own() -> None:
    """Every architecture of the main registry stands before ours."""
    state = official_state_dict(rcan(2, 2, 16, group_size=2, reduction=4))
    assert registry_with_ours().load(dict(state)).architecture.id == "RCAN"


def test_install_twice_changes_nothing() -> None:
    registry = registry_with_ours()
    before = len(registry)
    from elasticnet.sr.spandrel import install

    install(registry)
    assert len(registry) == before == len(registry_without_ours()) + 2


# --- the tensor of bytes


def test_a_carried_checkpoint_is_read_back_bit_for_bit() -> None:
    net = random_net(asrn, 2, 2, 8)
    found = load_carried(carried_checkpoint(net, {"psnr": {"1": 30.0}}))
    for name, tensor in net.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    assert not found.training


def test_damaged_bytes_are_refused() -> None:
    state = carried_checkpoint(random_net(asrn, 2, 2, 8))
    state[CARRIER][-100] ^= 1
    with pytest.raises(ValueError, match="damaged"):
        load_carried(state)


def test_a_net_that_no_architecture_builds_is_refused() -> None:
    net = asrn(2, 2, 8)
    own = ElasticWrapper(list(net.blocks), net.head, stem=net.stem)
    with pytest.raises(ValueError, match="a network of no registered architecture"):
        carried_checkpoint(own)
    assert elasticnet.sr  # the architectures are registered
