"""Files of earlier versions load to the same tensors, and the same net gives the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import elasticnet
from elasticnet import ElasticWrapper
from elasticnet.checkpoint import read_header
from elasticnet.checkpoint.tensors import digest
from elasticnet.sr import asrn, edsr, rcan

OLD_FILE = Path(__file__).parent / "old" / "edsr_x2_with_card.safetensors"
WEIGHTS = Path(elasticnet.__file__).parent / "sr" / "weights"

# What the version before the rooms wrote for the nets of NETS, with NOTES and CARDS.
SHA256_OF_FILES = {
    "asrn": "876375b6e117f5544f1a46c4e971da67bf8c42768e7f0903c12dac1da3a36cf0",
    "asrn cut": "debbde2fccd01f3a3b928b94f96a198c60784ede12105bc29930142f7ab866aa",
    "edsr": "9cc92209198ccfc9be2f26c3530a7c90d342906201b41e2c6467883323014166",
    "rcan": "ea38282ae5a1ff8e26617314ed7c845673ac3e8f66e9f82ff145339d99af0249",
    "own": "6c90a38fe28328136462a71fe19971781d90317f6bacc8dea6815a5ddd8a6c13",
}
NOTES = {"step": 3, "psnr": {2: 30.5, 10: 31.5}, "name": "n\u00e4me"}
CARDS = {"a machine": {"rows": [1, 2.5, None]}}

# What the version before the rooms read from OLD_FILE.
SHA256_OF_TENSORS = {
    "blocks.0.body.0.bias": "3bd2a63378bb24d4b109ad6b8a08a482f699753b13a4663b93b25bc4751b3d9f",
    "blocks.0.body.0.weight": "7e5e78e6d3f12c2d786d83baa6c09bed4f6bdb567987b5d764ad28811d93c6cf",
    "blocks.0.body.2.bias": "9abc67e5b012482635787ad8059d80f27d14f905ca27ac6c80198b7781133a7e",
    "blocks.0.body.2.weight": "ef746cc1b92283a88ba2c2b58530f993a6f42e18e3f3eb8403703e5054e21d73",
    "blocks.1.body.0.bias": "f26923deebd24d44e6dcd30f3a95f6c1bedc046090e90f980d777a3f66517dcb",
    "blocks.1.body.0.weight": "a0745d2a45433f24fa116b00aa2a3dfa028fa61e6023d15c3b694adf1b0df905",
    "blocks.1.body.2.bias": "56dc161501641d2bdd6c7126b1d967f84974c1632ec94f9bd294684c702e4c64",
    "blocks.1.body.2.weight": "7dea2c122054a4d07c29f84ccba9200e31371b6daa75ae6218000f09d42ef987",
    "blocks.2.body.0.bias": "988d5d2d51829b44f58066dbf369dcdd47fda75583a1f2b2b499de9c972d6c67",
    "blocks.2.body.0.weight": "1dad55dfc59bcaa56a6a9dea6ef9fb43c286cf293c42500f491d22ea98e8265e",
    "blocks.2.body.2.bias": "2972a91a54957151b38ce826041ee5c09b9accbeacb2481052b502c682c0bbb9",
    "blocks.2.body.2.weight": "11054d016fc6fc6e465aadb6c0231fb75cdb40ecf6acf895b61bf25f65a69fd0",
    "head.add_mean.bias": "f8a9fd7711152ca8c76079e90c87c9b2b78d17ea0af32ac8143779e1ce838c0a",
    "head.add_mean.weight": "6df2d6dd505ac84663311e9826f09fe619290b4e1c108d80630464bbe6ba4da3",
    "head.conv.bias": "19800cb7480bad20b6936d9c227341048eb4ef35ddab1dcc7d0f92a2af2e2631",
    "head.conv.weight": "caea5e53e71a6cefa3320ab49676b39a281ccdcbeeb726781e29538aa633ad65",
    "head.tail.0.0.bias": "85977bb9028cf956ed3b6d2251f5adf461cd310b1ae95a289d704ae735158add",
    "head.tail.0.0.weight": "0df1aec88deccdcf70c25b7e1d9058d35df48e0dc84a92a1320b8683a4e99491",
    "head.tail.1.bias": "9a076e4f39f46f82a2458ef10ea9732b5cd08257a21e84a7515566861b61f1d4",
    "head.tail.1.weight": "6ae1a48a1ab2d89f7a01d69218ac767e3580cf6de033471792a1e0f6fe545ce4",
    "stem.conv.bias": "d7dcc3f3640e695c9c009def8d629c84797d8d07dbf2a3281f313c5f9327f1ce",
    "stem.conv.weight": "ecb8ffbc3f617b8a5c7a911a64c061c6bb0707ae4dd878ae3a0f3184c1d12ad9",
    "stem.sub_mean.bias": "539b24d2d19fc58f89452d5dd5e3bab4441ff8c9894b480b58f3d9e894e7084f",
    "stem.sub_mean.weight": "994ec31f4208ef2a9bb1edba6c9ef6571c6731e78b702fe3280edb725e4d07c0",
}

# Of all tensors' names and bytes of the networks in the package, as that version loaded them.
# By the safetensors library; asrn_x4_published is the file of that version.
SHA256_OF_WEIGHTS = {
    "asrn_x2": "2bbd18824199e149204b12c0a69748ce7657f15c51998d3e626716a210a00fd5",
    "asrn_x3": "b2a5912a3f669057d92bed4e86af5c3aa88e3bfc24ad3fa8281328d063e4db8c",
    "asrn_x4": "361d375890578d2051316e9b19f5d3c893917778701e8ee8948845371c91a3d2",
    "asrn_x4_published": "199902c716a3e0b328ef69c675a7b769b85ce9812864e60df6471f06a93c09ac",
}


def fill(net: ElasticWrapper) -> ElasticWrapper:
    """Give every tensor of a net values that float16 holds exactly, the same on every machine."""
    with torch.no_grad():
        for index, tensor in enumerate(net.state_dict().values()):
            values = (torch.arange(tensor.numel()) + 7 * index) % 251
            if tensor.is_floating_point():
                values = values / 256 - 0.5
            tensor.copy_(values.reshape(tensor.shape))
    return net.eval()


def cut_asrn() -> ElasticWrapper:
    return asrn(4, num_blocks=3, channels=8, taps=[1, 2, 3], tap_affine=True).truncate(2)


def own_net() -> ElasticWrapper:
    """A net of no architecture, with an adapter, several dtypes and buffers of every kind."""
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)) for _ in range(3)]
    blocks[0].to(torch.bfloat16)
    blocks[1].to(torch.float64)
    blocks[2].register_buffer("mask", torch.tensor([True, False]))
    blocks[2].register_buffer("nothing", torch.empty(0, 3))
    adapters = {1: nn.Conv2d(4, 4, 1)}
    return ElasticWrapper(blocks, nn.Conv2d(4, 2, 1), adapters=adapters, taps=[1, 3])


NETS: dict[str, Callable[[], ElasticWrapper]] = {
    "asrn": lambda: asrn(2, num_blocks=2, channels=8),
    "asrn cut": cut_asrn,
    "edsr": lambda: edsr(3, num_blocks=2, channels=8),
    "rcan": lambda: rcan(2, num_blocks=2, channels=8, group_size=2, reduction=2),
    "own": own_net,
}


@pytest.mark.parametrize("name", NETS)
def test_the_same_net_gives_the_same_bytes_as_before(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    net = fill(NETS[name]())
    elasticnet.save(net, path, NOTES, CARDS)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256_OF_FILES[name]


def test_an_old_file_loads_to_equal_tensors() -> None:
    net = elasticnet.load(OLD_FILE)
    loaded = {name: digest(tensor) for name, tensor in net.state_dict().items()}
    assert loaded == SHA256_OF_TENSORS
    assert net.taps == (1, 2, 3)
    assert read_header(OLD_FILE)["notes"] == {"step": 7}


@pytest.mark.parametrize("name", SHA256_OF_WEIGHTS)
def test_the_weights_in_the_package_load_to_the_same_bytes(name: str) -> None:
    net = elasticnet.load(WEIGHTS / f"{name}.safetensors")
    total = hashlib.sha256()
    for key, tensor in sorted(net.state_dict().items()):
        total.update(key.encode())
        total.update(tensor.contiguous().numpy().tobytes())
    assert total.hexdigest() == SHA256_OF_WEIGHTS[name]
