"""What is saved comes back to the bit at every depth; what does not fit or is damaged is named."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

import elasticnet
from contract import check_contract, disturb, same
from elasticnet import ElasticWrapper
from elasticnet.checkpoint import read_header
from elasticnet.sr import asrn
from tiny_nets import TinyHead, conv_blocks, conv_net

X = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(0))


def small_asrn(**options: Any) -> ElasticWrapper:
    return asrn(**{"scale": 2, "num_blocks": 3, "channels": 8, **options}).eval()


def rewrite(path: Path, edit: Callable[[dict[str, Any], dict[str, Tensor]], Any]) -> None:
    """Change a file's description and tensors; without a checksum, as the first ones were."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["elasticnet"])
        header.pop("checksum", None)
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    edit(header, tensors)
    safetensors.torch.save_file(tensors, path, {"elasticnet": json.dumps(header)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.safetensors"


# --- what was saved comes back


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 3, "upsampler": "subpixel", "fold": False},
        {"scale": 4, "skip": "bicubic", "shuffle": False, "residual_links": False},
        {"block": "res2net", "init": "default"},
        {"taps": [1, 3]},
        {"taps": [1, 3], "tap_affine": True},
    ],
)
def test_asrn_comes_back_by_name_at_every_depth(path: Path, options: dict[str, Any]) -> None:
    net = small_asrn(**options)
    disturb(net)
    elasticnet.save(net, path)
    for depth in (None, -1, *net.taps):
        loaded = elasticnet.load(path, depth)
        truncated = net.truncate(depth or -1)
        same(loaded.state_dict(), dict(truncated.state_dict()), f"state at depth {depth}")
        assert loaded.taps == truncated.taps
        assert not loaded.training
        with torch.no_grad():
            same(loaded(X), net(X, depth=depth), f"prediction at depth {depth}")
    check_contract(elasticnet.load(path), X)


def test_a_loaded_net_is_saved_to_the_same_bytes(path: Path, tmp_path: Path) -> None:
    net, again = small_asrn(), tmp_path / "again.safetensors"
    elasticnet.save(net, path, notes={"b": 1, "a": [2.5, None]})
    elasticnet.save(copy.deepcopy(net).train(), again, notes={"a": [2.5, None], "b": 1})
    assert again.read_bytes() == path.read_bytes()
    elasticnet.save(elasticnet.load(path), again, notes=read_header(path)["notes"])
    assert again.read_bytes() == path.read_bytes()


def test_a_truncated_net_is_saved_as_what_a_deeper_file_gives(path: Path, tmp_path: Path) -> None:
    net, small = small_asrn(), tmp_path / "small.safetensors"
    elasticnet.save(net, path)
    elasticnet.save(net.truncate(2), small)
    same(elasticnet.load(small).state_dict(), dict(elasticnet.load(path, 2).state_dict()), "state")
    assert read_header(small)["arguments"]["num_blocks"] == 2
    with pytest.raises(ValueError, match=r"depth 3: this net has taps at depths 1, 2 "):
        elasticnet.load(small, 3)


def test_a_grown_asrn_comes_back_by_name(path: Path) -> None:
    net = small_asrn()
    grown = net.grow([copy.deepcopy(net.blocks[0])], X)
    elasticnet.save(grown, path)
    loaded = elasticnet.load(path)
    assert loaded.taps == (1, 2, 3, 4)
    same(loaded(X), grown(X), "prediction")


def test_the_header_says_what_the_file_holds(path: Path) -> None:
    net = small_asrn(taps=[2, 3])
    elasticnet.save(net, path, notes={"psnr": 31.5})
    header = read_header(path)
    assert (header["format"], header["architecture"], header["taps"]) == (1, "asrn", [2, 3])
    assert header["notes"] == {"psnr": 31.5}
    assert header["arguments"]["channels"] == 8
    assert set(header["sha256"]) == set(net.state_dict())


def test_custom_nets_come_back_by_build(path: Path) -> None:
    """Dtypes, frozen parameters and buffers of every kind, an empty one too."""

    def build() -> ElasticWrapper:
        blocks = [nn.Sequential(block, nn.BatchNorm2d(4)) for block in conv_blocks(3)]
        blocks[0].to(torch.bfloat16)
        blocks[1].to(torch.float64).requires_grad_(False)
        blocks[2].register_buffer("mask", torch.tensor([True, False]))
        blocks[2].register_buffer("nothing", torch.empty(0, 3))
        return ElasticWrapper(blocks, TinyHead("b c h w", 4), taps=[1, 3])

    net = build()
    disturb(net)
    net.get_buffer("blocks.0.1.num_batches_tracked").fill_(7)
    net.get_parameter("blocks.0.0.first.weight").data = net.get_parameter(
        "blocks.0.0.first.weight"
    ).data.contiguous(memory_format=torch.channels_last)
    elasticnet.save(net, path)
    loaded = elasticnet.load(path, build=build)
    same(loaded.state_dict(), dict(net.state_dict()), "state")
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in net.named_parameters()
    }
    half = elasticnet.load(path, build=lambda: build().float())
    assert half.get_parameter("blocks.0.0.first.weight").dtype == torch.bfloat16, (
        "the file's dtype counts"
    )
    with pytest.raises(
        ValueError, match=r"holds a network of no registered architecture: pass build=, a function"
    ):
        elasticnet.load(path)


def test_shared_weights_are_saved_and_stay_shared(path: Path) -> None:
    """One block at three depths, and a head that is tied to the stem."""

    class TiedHead(nn.Module):
        def __init__(self, embedding: nn.Embedding) -> None:
            super().__init__()
            self.weight = embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.t()

    def build() -> ElasticWrapper:
        block, embedding = nn.Linear(4, 4), nn.Embedding(7, 4)
        return ElasticWrapper([block] * 3, TiedHead(embedding), embedding, layout="b n c")

    net, tokens = build(), torch.tensor([[1, 5]])
    elasticnet.save(net, path)
    loaded = elasticnet.load(path, build=build)
    same(loaded(tokens), net(tokens), "prediction")
    assert len(list(loaded.parameters())) == len(list(net.parameters())) == 3
    assert loaded.get_parameter("head.weight") is loaded.get_parameter("stem.weight")


def test_a_loaded_net_is_independent_of_its_file(path: Path) -> None:
    """Its weights lie in memory as torch's own do, because the last bit can depend on that."""
    torch.manual_seed(0)
    stem, head = nn.Linear(3, 16, bias=False), nn.Linear(16, 1)
    net = ElasticWrapper([nn.Linear(16, 16)], head, stem, layout="b n c")
    elasticnet.save(net, path)
    loaded = elasticnet.load(path, build=lambda: copy.deepcopy(net))
    path.write_bytes(b"\0" * path.stat().st_size)
    same(loaded.state_dict(), dict(net.state_dict()), "state after the file was overwritten")
    assert {p.data_ptr() % 16 for p in loaded.parameters()} == {0}
    with torch.no_grad():
        for _ in range(50):
            x = torch.randn(1, 5, 3)
            same(loaded(x), net(x), "prediction")


def test_only_the_tensors_of_the_depth_are_read(path: Path) -> None:
    """Damage behind a depth does not matter to it."""
    net = small_asrn()
    elasticnet.save(net, path)
    rewrite(path, lambda header, tensors: tensors["blocks.2.expand.weight"].add_(1))
    for depth in (1, 2):
        same(elasticnet.load(path, depth)(X), net(X, depth=depth), f"depth {depth}")
    message = (
        r"net\.safetensors: tensor 'blocks\.2\.expand\.weight' does not have the SHA-256 "
        "it was saved with"
    )
    with pytest.raises(ValueError, match=message):
        elasticnet.load(path)
    rewrite(
        path,
        lambda header, tensors: [
            tensors.pop(name) for name in [*tensors] if name.startswith("blocks.2")
        ],
    )
    same(elasticnet.load(path, 2)(X), net(X, depth=2), "without the third block")


# --- what does not fit, and damage


def set_architecture(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    header["architecture"] = "os"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda header, tensors: header.update(format=2),
            "format 2, and this version reads up to 1: update elasticnet",
        ),
        (
            set_architecture,
            r"architecture 'os' is not registered \(known: asrn, edsr, rcan\)\. Import the module",
        ),
        (
            lambda header, tensors: header["arguments"].update(scale=7),
            "asrn cannot be built as .*: scale 7: expected one",
        ),
        (
            lambda header, tensors: header["arguments"].update(width=7),
            "asrn cannot be built as .* argument 'width'",
        ),
        (
            lambda header, tensors: header["arguments"].update(channels=12),
            r"tensor '.*' has shape .*, this net needs \(",
        ),
        (
            lambda header, tensors: tensors.pop("head.output.bias"),
            "no tensor 'head.output.bias', which depth 3",
        ),
        (
            lambda header, tensors: tensors.update(extra=torch.ones(1)),
            "tensor 'extra' has no place in this net",
        ),
        (
            lambda header, tensors: header.pop("sha256"),
            r"its description is damaged \(it lacks sha256\)",
        ),
        (
            lambda header, tensors: header.pop("format"),
            r"its description is damaged \(it lacks format\)",
        ),
        (
            lambda header, tensors: header["sha256"].pop("stem.0.bias"),
            "tensor 'stem.0.bias' does not have the SHA-256",
        ),
    ],
)
def test_a_file_that_does_not_fit_says_why(path: Path, edit: Any, message: str) -> None:
    elasticnet.save(small_asrn(), path)
    rewrite(path, edit)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: {message}"):
        elasticnet.load(path)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: conv_net(3, channels=5),
            r"'blocks.0.first.weight' has shape \(4, 4, 3, 3\), this net needs \(5, 5, 3, 3\)",
        ),
        (
            lambda: conv_net(3, stem=nn.Conv2d(4, 4, 1)),
            "no tensor 'stem.bias', which depth 3 of this net needs",
        ),
        (
            lambda: ElasticWrapper(conv_blocks(3), nn.Identity()),
            "tensor 'head.linear.bias' has no place in this net",
        ),
        (lambda: conv_net(2), "depth 3: this net has taps at depths 1, 2 "),
    ],
)
def test_a_build_that_does_not_fit_the_file(
    path: Path, build: Callable[[], ElasticWrapper], message: str
) -> None:
    elasticnet.save(conv_net(3), path)
    with pytest.raises(ValueError, match=message):
        elasticnet.load(path, build=build)


@pytest.mark.parametrize("depth", [0, True, 1.0, "2", 4])
def test_a_wrong_depth(path: Path, depth: Any) -> None:
    elasticnet.save(small_asrn(), path)
    with pytest.raises(
        ValueError, match=re.escape(f"depth {depth!r}: this net has taps at depths 1, 2, 3")
    ):
        elasticnet.load(path, depth)


def test_files_of_other_kinds(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        elasticnet.load(tmp_path / "missing.safetensors")
    for content, reason in (
        (b"short", "ends at byte 5, and byte 7 is needed"),
        (
            b"\x17\x91" * 17,
            "a header of 10454984590368411927 bytes, with 26 in the file",
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"^{re.escape(str(path))}: not a whole safetensors file \({reason}"
        ):
            elasticnet.load(path)
    safetensors.torch.save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(
        ValueError, match=r"a safetensors file, but not one that elasticnet\.save wrote"
    ):
        elasticnet.load(path)


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    elasticnet.save(small_asrn(), path)
    whole = path.read_bytes()
    for length in [*range(0, 64, 7), *range(64, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=rf"^{re.escape(str(path))}: not a (whole )?safetensors file"
        ):
            elasticnet.load(path)


def test_a_built_net_with_a_tap_that_the_file_lacks_is_refused(path: Path) -> None:
    net = conv_net(4)
    elasticnet.save(net.with_taps([2, 4]), path)
    message = re.escape(f"{path}: this net has a tap at depth 1, and the file at depths 2, 4")
    for depth in (None, 2):
        with pytest.raises(ValueError, match=message):
            elasticnet.load(path, depth, build=lambda: conv_net(4))
    fewer = elasticnet.load(path, build=lambda: conv_net(4).with_taps([4]))
    assert fewer.taps == (4,)
