"""ASRN's arguments in any combination: the function, the file, every depth, the export."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_asrn import naive_asrn, naive_block

import elasticnet
from contract import check_contract, same
from elasticnet import ElasticWrapper
from elasticnet.checkpoint import read_header
from elasticnet.checkpoint.header import KEY
from elasticnet.checkpoint.safetensors_file import header_bytes, read_table
from elasticnet.export import export, runner
from elasticnet.sr.models.asrn import asrn

MAB_SWITCHES = ("fusion", "residual_links", "shuffle", "residual")
NO_SWITCHES = dict.fromkeys(MAB_SWITCHES, False)
IMAGE = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))


@st.composite
def arguments_of_asrn(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments that fit each other; the network is small."""
    num_blocks = draw(st.integers(1, 3))
    arguments: dict[str, Any] = {
        "scale": draw(st.sampled_from([1, 2, 3, 4])),
        "num_blocks": num_blocks,
        "channels": draw(st.sampled_from([8, 12, 16])),
        "upsampler": draw(st.sampled_from(["deconv", "subpixel"])),
        "block": draw(st.sampled_from(["mab", "shufflenet", "res2net"])),
        "skip": draw(st.sampled_from([None, "bicubic"])),
        "init": draw(st.sampled_from(["interpolate", "default"])),
        "fold": draw(st.booleans()),
        "checkpoint_blocks": draw(st.booleans()),
        "taps": draw(st.sampled_from([None, (num_blocks,)])),
    }
    adapter = draw(st.sampled_from([None, "tap_affine", "tap_fusion"]))
    if adapter is not None:
        arguments[adapter] = True
    if arguments["block"] == "mab":
        for name in MAB_SWITCHES:
            arguments[name] = draw(st.booleans())
    return arguments


def build(arguments: dict[str, Any]) -> ElasticWrapper:
    """A network of these arguments in which every number differs from its start."""
    net = asrn(**arguments).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


@given(arguments_of_asrn())
@torch.no_grad()
def test_every_depth_is_the_naive_network(arguments: dict[str, Any]) -> None:
    net = build(arguments).double()
    image = IMAGE.double()
    for depth in net.taps:
        expected = naive_asrn(net, image, depth)
        torch.testing.assert_close(net(image, depth=depth), expected, rtol=0, atol=1e-10)


@settings(max_examples=8)
@given(arguments_of_asrn())
def test_every_network_keeps_the_contract(arguments: dict[str, Any]) -> None:
    check_contract(build(arguments), IMAGE)


@settings(max_examples=20)
@given(arguments_of_asrn())
@torch.no_grad()
def test_every_network_comes_back_by_name_cut_to_any_depth(arguments: dict[str, Any]) -> None:
    net = build(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        elasticnet.save(net, path)
        in_the_file = read_header(path)["arguments"]
        not_stored = {"init", "taps", "checkpoint_blocks"}
        for name in arguments.keys() - not_stored:
            assert in_the_file[name] == arguments[name], name
        for depth in net.taps:
            loaded = elasticnet.load(path, depth)
            assert len(loaded.blocks) == depth
            same(loaded(IMAGE), net(IMAGE, depth=depth), f"depth {depth}")


@given(arguments_of_asrn())
@torch.no_grad()
def test_every_folded_block_is_the_naive_block(arguments: dict[str, Any]) -> None:
    """`folded()` is what an export takes; blocks without it are exported as they are."""
    net = build(arguments).double()
    x = torch.randn(2, arguments["channels"], 4, 6, dtype=torch.float64)
    for block in net.blocks:
        folded = getattr(block, "folded", lambda block=block: block)()
        torch.testing.assert_close(folded(x), naive_block(block, x), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "arguments",
    [
        *({name: False} for name in MAB_SWITCHES),
        NO_SWITCHES,
        {"block": "shufflenet"},
        {"block": "res2net"},
    ],
    ids=str,
)
def test_every_switch_is_exported(arguments: dict[str, Any], tmp_path: Path) -> None:
    net = build({"scale": 2, "num_blocks": 2, "channels": 16, **arguments})
    result = export(net, tmp_path / "net.pt2", depth=2)
    with torch.no_grad():
        torch.testing.assert_close(
            runner(result.path)(IMAGE), net(IMAGE, depth=2), rtol=0, atol=1e-4
        )


# Files from before a switch existed, and files that say what they are not.


def with_arguments(path: Path, arguments: dict[str, Any]) -> None:
    """Write other arguments into a file's description, and leave its checksum out."""
    table = read_table(path)
    tensor_bytes = path.read_bytes()[table.data_start :]
    header = json.loads(table.metadata[KEY])
    header.pop("checksum")
    header["arguments"] = arguments
    path.write_bytes(header_bytes(table.entries, {KEY: json.dumps(header)}) + tensor_bytes)


def test_a_file_that_names_no_switch_is_the_published_network(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    net = build({"scale": 3, "num_blocks": 2, "channels": 16})
    elasticnet.save(net, path)
    with_arguments(path, {"scale": 3, "num_blocks": 2, "channels": 16})
    with torch.no_grad():
        same(elasticnet.load(path)(IMAGE), net(IMAGE), "prediction")


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"fusion": "no"}, "asrn cannot be built as .*: fusion 'no': expected True or False"),
        ({"shuffle": 1}, "asrn cannot be built as .*: shuffle 1: expected True or False"),
        ({"residual": [1]}, "asrn cannot be built as .*: argument residual is a list"),
        ({"block": "resnet"}, "asrn cannot be built as .*: block 'resnet': expected one of"),
        ({"block": "res2net", "residual": False}, "block 'res2net' with residual=False"),
        ({"block": "shufflenet"}, r"no tensor 'blocks\.0\.depthwise\.weight'"),
        ({"block": "res2net"}, r"tensor 'blocks\.0\.groups\.3\.weight' has no place in this net"),
    ],
    ids=str,
)
def test_a_file_of_another_network_than_it_says_is_refused(
    claim: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.safetensors"
    elasticnet.save(asrn(2, 2, 24), path)
    with_arguments(path, {"scale": 2, "num_blocks": 2, "channels": 24, **claim})
    with pytest.raises(ValueError, match=message):
        elasticnet.load(path)
