"""The authors' checkpoints: every kind is loaded strictly and written back; others are refused."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from elasticnet.sr import asrn, edsr
from elasticnet.sr.models.convert import infer, load_official, official_state_dict, read_official
from elasticnet.sr.models.edsr import EDSR, GlobalSkipNetwork
from elasticnet.sr.models.rcan import RCAN

Checkpoint = dict[str, Tensor]
IGNORE_PROTOCOL = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


def official(plain: GlobalSkipNetwork) -> Checkpoint:
    """A synthetic official checkpoint: random values under the plain network's keys."""
    return {name: torch.randn_like(tensor) / 10 for name, tensor in plain.state_dict().items()}


def small_edsr() -> Checkpoint:
    return official(EDSR(4, 3, 8))


def small_rcan() -> Checkpoint:
    return official(RCAN(3, 2, 8, 3, 4))


def prefixed(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


WRAPPINGS: dict[str, Callable[[Checkpoint], Any]] = {
    "bare": lambda state: state,
    "module.": lambda state: prefixed("module.", state),
    "model.": lambda state: prefixed("model.", state),
    "model.module.": lambda state: prefixed("model.module.", state),
    "state_dict": lambda state: {"state_dict": state, "epoch": 300},
    "params": lambda state: {"params": state},
    "params_ema": lambda state: {
        "params": {name: tensor * 2 for name, tensor in state.items()},
        "params_ema": state,
    },
    "nested": lambda state: {"state_dict": {"params": prefixed("module.", state)}},
}


# Loading.


@pytest.mark.parametrize("make", [small_edsr, small_rcan])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@torch.no_grad()
def test_every_wrapping_loads_strictly(
    wrapping: str, make: Callable[[], Checkpoint], tmp_path: Path
) -> None:
    state = make()
    path = tmp_path / "official.pth"
    torch.save(WRAPPINGS[wrapping](state), path)
    for source in (WRAPPINGS[wrapping](state), path, str(path)):
        assert equal(read_official(source), state)
        net = load_official(source, fold=False)
        assert not net.training
        assert equal(official_state_dict(net), state)
    plain = EDSR(4, 3, 8) if make is small_edsr else RCAN(3, 2, 8, 3, 4)
    plain.load_state_dict(read_official(path))
    x = torch.rand(1, 3, 6, 5)
    assert torch.equal(net(x), plain(x * 255) / 255)


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    state = small_rcan()
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pt")
    if kind == "safetensors":
        save_file(prefixed("module.", state), path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    assert equal(official_state_dict(load_official(path)), state)


@settings(max_examples=20)
@given(st.data())
def test_sizes_are_told_from_the_tensors(data: st.DataObject) -> None:
    scale, num_blocks = data.draw(st.sampled_from([2, 3, 4, 8])), data.draw(st.integers(1, 12))
    channels = data.draw(st.integers(2, 9))
    with torch.device("meta"):
        edsr_state = EDSR(scale, num_blocks, channels).state_dict()
        sizes = {"scale": scale, "num_blocks": num_blocks, "channels": channels}
        assert infer(edsr_state) == ("edsr", sizes)
        group_size, reduction = (
            data.draw(st.integers(1, 11)),
            data.draw(st.sampled_from([1, 2, channels])),
        )
        # several reductions give one width: the least is told
        reduction = channels // (channels // reduction)
        rcan_state = RCAN(scale, num_blocks, channels, group_size, reduction).state_dict()
        assert infer(rcan_state) == (
            "rcan",
            {**sizes, "group_size": group_size, "reduction": reduction},
        )


def test_published_sizes_are_told() -> None:
    with torch.device("meta"):
        assert infer(EDSR(4, 32, 256).state_dict())[1] == {
            "scale": 4,
            "num_blocks": 32,
            "channels": 256,
        }
        assert infer(RCAN(4).state_dict())[1] == {
            "scale": 4,
            "num_blocks": 10,
            "channels": 64,
            "group_size": 20,
            "reduction": 16,
        }
        full = load_official(EDSR(2, 32, 256).state_dict())
    assert full.origin is not None
    assert full.origin.arguments["res_scale"] == 0.1


def test_arguments_replace_or_complete_what_is_told() -> None:
    net = load_official(small_edsr(), res_scale=0.1, taps=(1, 3), fold=False)
    assert net.taps == (1, 3)
    assert net.origin == (
        "edsr",
        {"scale": 4, "num_blocks": 3, "channels": 8, "res_scale": 0.1, "fold": False},
    )
    assert {block.res_scale for block in net.blocks} == {0.1}
    with pytest.raises(TypeError, match="reduction"):
        load_official(small_edsr(), reduction=2)


def test_half_precision_is_loaded_as_float32() -> None:
    net = load_official({name: tensor.half() for name, tensor in small_edsr().items()})
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


@torch.no_grad()
def test_a_truncated_net_goes_back_to_the_authors_keys() -> None:
    net = load_official(small_rcan(), fold=False)
    plain = RCAN(3, 1, 8, 3, 4)
    plain.load_state_dict(official_state_dict(net.truncate(1)))
    x = torch.rand(1, 3, 5, 4)
    assert torch.equal(net(x, depth=1), plain(x * 255) / 255)
    with pytest.raises(
        ValueError, match=r"a net that edsr\(\), rcan\(\) or load_official\(\) made"
    ):
        official_state_dict(asrn(2, 1, 16))


# What does not fit.


def holding_itself() -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    mapping["params"] = mapping
    return mapping


def without(state: Checkpoint, *names: str) -> Checkpoint:
    return {name: tensor for name, tensor in state.items() if name not in names}


def test_a_tensor_that_the_authors_do_not_have_is_named() -> None:
    net = edsr(2, num_blocks=1, channels=8)
    net.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match="tensor 'extra' has no counterpart in the authors'"):
        official_state_dict(net)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: without(state, "sub_mean.bias"),
            r"edsr\(scale=4, num_blocks=3, .*; missing: sub_mean.bias$",
        ),
        (
            lambda state: without(state, "head.0.weight"),
            "missing: head.0.weight; expected the authors' or BasicSR's keys",
        ),
        (lambda state: state | {"extra.weight": torch.ones(1)}, "unexpected: extra.weight$"),
        (
            lambda state: state | {"tail.1.bias": torch.ones(4)},
            r"shape: tail.1.bias \(4,\) instead of \(3,\)",
        ),
        (lambda state: state | {"head.0.weight": torch.ones(3)}, r"head.0.weight has shape \(3,\)"),
        (
            lambda state: state | {"tail.0.0.weight": torch.ones(8 * 25, 8, 3, 3)},
            "scale 25: expected one of 2, 3, 4, 8",
        ),
        (
            lambda state: state | {"body.999999999.weight": torch.ones(1)},
            "num_blocks=4.*missing: .*body.3.body.0",
        ),
        (
            lambda state: prefixed("generator.", state),
            "found generator.sub_mean.weight, .* and 22 more",
        ),
        (lambda state: {"conv_first.weight": torch.ones(8, 3, 3, 3)}, "found conv_first.weight$"),
        (
            lambda state: state | {"epoch": 3},
            "the mapping: entry 'epoch' is of type int: expected tensors under names",
        ),
        (
            lambda state: {},
            "the mapping: holds dict: expected a state dict with at least one tensor",
        ),
        (lambda state: {"params": {}}, "the mapping: holds dict"),
        (
            lambda state: {0: torch.ones(1)},
            "the mapping: entry 0 is of type Tensor: expected tensors under names",
        ),
        (lambda state: holding_itself(), "the mapping: entry 'params' is of type dict"),
    ],
)
def test_keys_that_do_not_fit_are_named(change: Callable[[Checkpoint], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_official(change(small_edsr()))


def test_a_wrong_size_is_named() -> None:
    with pytest.raises(
        ValueError,
        match=r"num_blocks=2, .*missing: body.2.weight.*unexpected: body.2.body.0.*and 2 more",
    ):
        load_official(small_edsr(), num_blocks=2)


class Payload:
    """What would make a folder, if anything in the file were executed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@IGNORE_PROTOCOL
def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    path, folder = tmp_path / "evil.pth", tmp_path / "made"
    for write in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        write({"state_dict": small_edsr(), "payload": Payload(folder)}, path)
        with pytest.raises(
            ValueError,
            match=r"evil.pth: damaged, or not a checkpoint of plain tensors.*save the state",
        ):
            load_official(path)
        assert not folder.exists()


@IGNORE_PROTOCOL
def test_damaged_files_are_refused(tmp_path: Path) -> None:
    randomness = random.Random(0)
    paths = [tmp_path / name for name in ("zip.pth", "old.pth", "x.safetensors")]
    state = small_edsr()
    torch.save(state, paths[0])
    torch.save(state, paths[1], _use_new_zipfile_serialization=False)
    save_file(state, paths[2])
    for path in paths:
        whole = path.read_bytes()
        for length in (0, 1, 100, len(whole) // 2, len(whole) - 100):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=path.name):
                load_official(path)
        for _ in range(30):
            damaged = bytearray(whole)
            for _ in range(20):
                damaged[randomness.randrange(min(len(whole), 2000))] = randomness.randrange(256)
            path.write_bytes(damaged)
            # any other error fails; a changed value is not seen, without a checksum
            with suppress(ValueError):
                load_official(path)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list.pth: holds list: expected a state dict"):
        load_official(tmp_path / "list.pth")
    with pytest.raises(FileNotFoundError, match="absent"):
        load_official(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match="absent"):
        load_official(tmp_path / "absent.safetensors")
