"""Architectures by name: registered by a call or declared by a package, found by files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import elasticnet
from contract import same
from elasticnet import ElasticWrapper
from elasticnet.checkpoint import read_header, write_header
from elasticnet.registry import (
    Architecture,
    architecture_of,
    build,
    find,
    names,
    recorded,
    register,
    register_all,
    unregister,
)
from elasticnet.sr import asrn
from elasticnet.wrapper import Origin
from third_party import install, run_code, run_python


def linear_net(
    num_blocks: int = 2, width: int = 4, taps: list[int] | None = None, **others: Any
) -> ElasticWrapper:
    """Build a small net; `others` are recorded, too."""
    blocks = [nn.Linear(width, width) for _ in range(num_blocks)]
    return ElasticWrapper(blocks, nn.Linear(width, 1), taps=taps, layout="b c")


LINEAR = Architecture(build=linear_net)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Take away what a test registers."""
    before = names()
    yield
    for name in set(names()) - set(before):
        unregister(name)


# --- register


def test_a_registered_architecture_is_found() -> None:
    register("linear", LINEAR)
    assert find("linear") is LINEAR
    assert "linear" in names()
    assert list(names()) == sorted(names())


def test_the_same_object_may_be_registered_twice() -> None:
    register("linear", LINEAR)
    register("linear", LINEAR)
    assert find("linear") is LINEAR


@pytest.mark.parametrize("name", ["linear", "asrn"])
def test_a_taken_name_is_refused_and_stays(name: str) -> None:
    register("linear", LINEAR)
    before = find(name)
    with pytest.raises(ValueError, match=f"architecture name '{name}' is taken by another"):
        register(name, Architecture(build=linear_net))
    assert find(name) is before


def test_of_several_all_are_registered_or_none() -> None:
    with pytest.raises(ValueError, match="architecture name 'asrn' is taken"):
        register_all({"linear": LINEAR, "asrn": LINEAR})
    assert "linear" not in names()
    register_all({"linear": LINEAR, "line": LINEAR})
    assert {"line", "linear"} <= set(names())


def test_a_forgotten_name_can_be_registered_anew() -> None:
    register("linear", LINEAR)
    unregister("linear")
    changed = Architecture(build=linear_net, depth_argument="depth")
    register("linear", changed)
    assert find("linear") is changed


@pytest.mark.parametrize("name", ["", "my net", "9lives", "../net", "nét", "a\n"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected letters, digits"):
        register(name, LINEAR)


def test_a_function_is_no_architecture() -> None:
    with pytest.raises(
        TypeError, match="architecture 'linear' is a function: expected an Architecture"
    ):
        register("linear", linear_net)  # pyright: ignore[reportArgumentType]
    assert "linear" not in names()


# --- find


def test_an_unknown_name_is_refused_with_the_known_ones_and_the_remedies() -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the message is compared below)
        find("nothing")
    said = str(refused.value)
    assert "architecture 'nothing' is not registered (known: asrn, edsr, rcan)" in said
    assert "--import MODULE" in said
    assert "import elasticnet.sr" in said


# --- build, and what is recorded


def test_a_built_net_comes_back_by_its_name(tmp_path: Path) -> None:
    register("linear", LINEAR)
    net = build("linear", width=6, taps=[1, 2]).eval()
    elasticnet.save(net, tmp_path / "net.safetensors")
    header = read_header(tmp_path / "net.safetensors")
    assert header["architecture"] == "linear"
    assert header["arguments"] == {"num_blocks": 2, "width": 6}
    loaded = elasticnet.load(tmp_path / "net.safetensors", depth=1)
    assert (len(loaded.blocks), loaded.origin) == (1, ("linear", {"num_blocks": 1, "width": 6}))
    x = torch.rand(3, 6)
    same(loaded(x), net(x, depth=1), "prediction at depth 1")


def test_other_keyword_arguments_are_recorded_by_their_own_names() -> None:
    register("linear", LINEAR)
    net = build("linear", flavour="plain")
    assert net.origin == ("linear", {"num_blocks": 2, "width": 4, "flavour": "plain"})


def test_a_builder_must_return_an_elastic_net() -> None:
    register("linear", Architecture(build=nn.Linear))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="builder of 'linear' returned a Linear"):
        build("linear", in_features=1, out_features=1)


def test_the_arguments_are_cut_to_the_depth() -> None:
    arguments = {"layers": 9, "width": 4}
    by_layers = Architecture(build=linear_net, depth_argument="layers")
    assert by_layers.arguments_at(arguments, depth=2) == {"layers": 2, "width": 4}
    assert arguments["layers"] == 9


def test_blocks_are_counted_by_whatever_argument_counts_them() -> None:
    by_layers = Architecture(
        build=linear_net, depth_argument="layers", count_arguments=("groups", "copies")
    )
    assert by_layers.count_blocks({"layers": 5, "groups": 3, "width": 9}) == 15
    assert by_layers.count_blocks({"layers": 10**9, "groups": 0, "copies": -2}) == 10**9
    assert by_layers.count_blocks({"layers": "5", "groups": None}) == 1


def test_a_cut_and_a_grown_net_are_recorded_by_their_own_size() -> None:
    net = asrn(2, num_blocks=3, channels=8)
    name, arguments = recorded(net.truncate(2))
    assert (name, arguments["num_blocks"]) == ("asrn", 2)
    grown = net.grow([net.blocks[0]], torch.rand(1, 3, 4, 4))
    name, arguments = recorded(grown)
    assert (name, arguments["num_blocks"]) == ("asrn", 4)


def test_a_users_own_net_has_no_architecture() -> None:
    own = linear_net()
    assert recorded(own) == (None, {})
    assert architecture_of(own) is None
    assert architecture_of(nn.Linear(1, 1)) is None
    elsewhere: Any = nn.Linear(1, 1)
    elsewhere.origin = (0.0, 0.5, 1.0)  # a point, say
    assert architecture_of(elsewhere) is None
    assert architecture_of(asrn(2, num_blocks=1, channels=8)) is find("asrn")


def test_a_forged_file_cannot_ask_for_more_modules_than_it_has_tensors(tmp_path: Path) -> None:
    """The product of blocks and groups is compared, before anything is built."""
    built: list[int] = []

    def build_counted(groups: int = 1, num_blocks: int = 1, **others: Any) -> ElasticWrapper:
        built.append(groups)
        return linear_net(num_blocks)

    counted = Architecture(build=build_counted, count_arguments=("groups",))
    register("counted", counted)
    net = build("counted", num_blocks=2)
    net.origin = Origin("counted", {"num_blocks": 2, "groups": 1000})
    elasticnet.save(net, tmp_path / "net.safetensors")
    built.clear()
    with pytest.raises(
        ValueError, match=r"counted cannot be built .*: 2000 blocks cannot lie in 6"
    ):
        elasticnet.load(tmp_path / "net.safetensors")
    assert built == []


class ScaledLinear(nn.Linear):
    """Has a buffer outside the state dict and a tensor in a plain attribute, of torch.empty."""

    def __init__(self, size: int) -> None:
        super().__init__(4, 4)
        self.register_buffer("gain", torch.empty(size).fill_(2.0), persistent=False)
        self.offset = torch.empty(1).fill_(3.0)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.get_buffer("gain")[:1] + self.offset


def build_with_unsaved_tensors(
    num_blocks: int = 1, size: int = 1, taps: list[int] | None = None
) -> ElasticWrapper:
    blocks = [ScaledLinear(size) for _ in range(num_blocks)]
    return ElasticWrapper(blocks, nn.Linear(4, 1), taps=taps)


def test_a_builder_that_returns_something_else_is_named(tmp_path: Path) -> None:
    register("linear", LINEAR)
    elasticnet.save(build("linear"), tmp_path / "net.safetensors")
    unregister("linear")
    register("linear", Architecture(build=lambda **_: nn.Linear(1, 1)))  # pyright: ignore
    message = "linear cannot be built as .*: its builder returned a Linear: expected an ElasticWr"
    with pytest.raises(ValueError, match=message):
        elasticnet.load(tmp_path / "net.safetensors")


def test_buffers_that_no_file_holds_have_the_builders_values(tmp_path: Path) -> None:
    register("linear", Architecture(build=build_with_unsaved_tensors))
    net = build("linear", num_blocks=2)
    elasticnet.save(net, tmp_path / "net.safetensors")
    generator = torch.get_rng_state()
    loaded = elasticnet.load(tmp_path / "net.safetensors", depth=1)
    assert torch.equal(torch.get_rng_state(), generator)
    assert loaded.get_buffer("blocks.0.gain").tolist() == [2.0]
    (block,) = loaded.blocks
    assert isinstance(block, ScaledLinear)
    assert block.offset.tolist() == [3.0]
    x = torch.rand(2, 4)
    assert torch.equal(loaded(x), net(x, depth=1))


def test_buffers_that_no_file_holds_must_not_be_large(tmp_path: Path) -> None:
    register("linear", Architecture(build=build_with_unsaved_tensors))
    elasticnet.save(build("linear"), tmp_path / "net.safetensors")
    description = dict(read_header(tmp_path / "net.safetensors"))
    description["arguments"] = {"num_blocks": 1, "size": 10**12}
    write_header(tmp_path / "net.safetensors", description)
    message = (
        r"linear cannot be built as .*: its tensors that are not in the state dict, such as "
        r"'blocks\.0\.gain', take 4000000 MB: expected at most 256 MB"
    )
    with pytest.raises(ValueError, match=message):
        elasticnet.load(tmp_path / "net.safetensors")


# --- packages that declare architectures


GOOD = """
from torch import Tensor, nn
from elasticnet import ElasticWrapper
from elasticnet.registry import Architecture
def build(num_blocks=2, taps=None):
    return ElasticWrapper([nn.Linear(4, 4) for _ in range(num_blocks)], nn.Linear(4, 1), taps=taps)
ARCHITECTURE = Architecture(build=build)
"""
REGISTERS_ITSELF = f"""{GOOD}
from elasticnet.registry import register
register("tenlines", ARCHITECTURE)
"""


@pytest.mark.parametrize("code", [GOOD, REGISTERS_ITSELF])
def test_a_declared_architecture_is_found_without_an_import(tmp_path: Path, code: str) -> None:
    install(tmp_path, "tenlines", code, ["tenlines = tenlines:ARCHITECTURE"])
    script = """
import sys
from elasticnet.registry import build, names
assert "tenlines" in names() and "tenlines" not in sys.modules
import elasticnet
elasticnet.save(build("tenlines", num_blocks=3), "net.safetensors")
print(elasticnet.load("net.safetensors", depth=2))
"""
    done = run_code(tmp_path, script)
    assert done.returncode == 0, done.stderr
    assert "taps=(1, 2)" in done.stdout


def test_a_declared_name_is_taken(tmp_path: Path) -> None:
    install(tmp_path, "tenlines", GOOD, ["tenlines = tenlines:ARCHITECTURE"])
    done = run_code(
        tmp_path,
        "from elasticnet.registry import Architecture, register\n"
        "register('tenlines', Architecture(build=print))",
    )
    assert "ValueError: architecture name 'tenlines' is taken by another" in done.stderr


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (
            "tenlines = tenlines:ARCHITECTURE",
            "import no_such_module",
            "ImportError: architecture 'tenlines': ten-lines declares it as "
            "'tenlines:ARCHITECTURE', which cannot be imported (ModuleNotFoundError: "
            "No module named 'no_such_module')",
        ),
        (
            "tenlines = tenlines:MISSING",
            GOOD,
            "ImportError: architecture 'tenlines': ten-lines declares it as 'tenlines:MISSING', "
            "which cannot be imported (AttributeError: ",
        ),
        (
            "tenlines = tenlines:build",
            GOOD,
            "TypeError: architecture 'tenlines' is a function: expected an Architecture",
        ),
    ],
)
def test_a_broken_package_is_named(tmp_path: Path, line: str, code: str, message: str) -> None:
    install(tmp_path, "tenlines", code, [line])
    done = run_code(tmp_path, "from elasticnet.registry import find; find('tenlines')")
    assert message in done.stderr
    script = "from elasticnet.registry import find, names; find('asrn'); print(names())"
    assert "'tenlines'" in run_code(tmp_path, script).stdout


def test_a_source_tree_that_is_not_installed_registers_by_an_import(tmp_path: Path) -> None:
    """No package declares anything here, as without an installation."""
    script = """
import importlib.metadata
import sys
importlib.metadata.entry_points = lambda **options: []
from elasticnet.registry import find, names
assert names() == ()
try:
    find("asrn")
except ValueError as error:
    print(error)
import elasticnet.sr
assert names() == ("asrn", "edsr", "rcan")
assert "torch" not in sys.modules
find("asrn")
"""
    done = run_python(tmp_path, "-c", script)
    assert done.returncode == 0, done.stderr
    assert "'asrn' is not registered (known: none)" in done.stdout
    assert "`import elasticnet.sr` registers the library's own" in done.stdout
