"""Files of networks that take more than one tensor, at every length between their bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from elasticnet import ElasticWrapper, registry
from elasticnet.export import ExportError, export, runner
from elasticnet.registry import Architecture
from elasticnet.wrapper import Origin

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

SUFFIXES = [".pt2", ".onnx"]
IDS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 1, 2, 2, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
MAX_TOKENS = 16
TAKES_BOUNDS = callable(torch.export.Dim.AUTO)  # not in torch 2.6


class Embeddings(nn.Module):
    """Token ids with positions, and a mask that is the context of the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.positions = nn.Embedding(MAX_TOKENS, 8)
        self.register_buffer("numbers", torch.arange(MAX_TOKENS)[None])

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Any:
        tokens = ids.shape[1]
        numbers: Any = self.numbers
        x = self.words(ids) + self.positions(numbers[:, :tokens])  # (b, n, c)
        return x, mask


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)  # (b, 1, n, c) each, of one attention head
        if mask is not None:
            mask = mask[:, None, None, :].bool()  # (b, 1, 1, n)
        return x + nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, 0]


def call_block(block: nn.Module, x: Tensor, mask: Any, index: int) -> tuple[Tensor, Any]:
    return block(x, mask), mask


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(1))


def masked_net() -> ElasticWrapper:
    torch.manual_seed(0)
    blocks = [Attention() for _ in range(2)]
    net = ElasticWrapper(blocks, Mean(), Embeddings(), layout="b n c", call_block=call_block)
    return net.eval()


def output(net: ElasticWrapper, x: Any, **keywords: Any) -> Tensor:
    with torch.no_grad():
        return net(x, depth=1, **keywords)


# --- keyword arguments


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_keyword_arguments_are_inputs_of_the_file(suffix: str, tmp_path: Path) -> None:
    net = masked_net()

    written = export(
        net,
        tmp_path / f"net{suffix}",
        depth=1,
        example=IDS,
        keywords={"mask": MASK},
        axes={0: "batch", 1: ("tokens", 2, MAX_TOKENS)},
    )

    assert written.inputs == {"input": ("batch", "tokens"), "mask": ("batch", "tokens")}
    assert written.bounds == {"tokens": (2, MAX_TOKENS)}
    assert written.axes == {0: "batch", 1: "tokens"}
    assert written.shapes == ((2, 6), (1, 16), (1, 2), (7, 10))
    run = runner(written.path)
    generator = torch.Generator().manual_seed(1)
    for batch, tokens in ((1, 2), (3, 5), (2, 16), (1, 1)):
        ids = torch.randint(10, (batch, tokens), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, tokens // 2 + 1 :] = 0
        expected = output(net, ids, mask=mask)
        assert torch.allclose(run(ids, mask=mask), expected, atol=1e-5)
    # the mask has its say: all tokens open give another output
    assert not torch.allclose(run(IDS, mask=MASK), run(IDS, mask=torch.ones_like(MASK)))


def test_inputs_of_an_onnx_file_are_named_and_share_their_open_axes(tmp_path: Path) -> None:
    written = export(
        masked_net(),
        tmp_path / "net.onnx",
        example=IDS,
        keywords={"mask": MASK},
        axes={0: "batch", 1: ("tokens", 2, MAX_TOKENS)},
    )

    session = onnxruntime.InferenceSession(written.path, providers=["CPUExecutionProvider"])
    inputs = {each.name: each.shape for each in session.get_inputs()}
    assert inputs == {"input": ["batch", "tokens"], "mask": ["batch", "tokens"]}


def test_the_bounds_stand_in_the_files_description(tmp_path: Path) -> None:
    written = export(
        masked_net(),
        tmp_path / "net.pt2",
        example=IDS,
        keywords={"mask": MASK},
        axes={1: ("tokens", 2, MAX_TOKENS)},
    )

    extra = {"description.json": ""}
    torch.export.load(written.path, extra_files=extra)
    assert json.loads(extra["description.json"])["bounds"] == {"tokens": [2, MAX_TOKENS]}


@pytest.mark.skipif(not TAKES_BOUNDS, reason="programs of torch 2.6 have no bounds")
def test_a_program_refuses_lengths_above_the_most(tmp_path: Path) -> None:
    written = export(
        masked_net(),
        tmp_path / "net.pt2",
        example=IDS,
        keywords={"mask": MASK},
        axes={1: ("tokens", 2, 9)},
    )

    with pytest.raises(Exception, match="9"):
        runner(written.path)(IDS.repeat(1, 2), mask=MASK.repeat(1, 2))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_int8_weights_with_keyword_arguments(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = masked_net()
    net.head.linear = nn.Linear(8, 200)  # wide enough to be rounded

    written = export(
        net, tmp_path / f"net{suffix}", depth=1, example=IDS, keywords={"mask": MASK}, int8=True
    )

    assert written.int8_snr is not None
    assert written.int8_snr > 30
    difference = runner(written.path)(IDS, mask=MASK) - output(net, IDS, mask=MASK)
    assert 0 < difference.abs().max() < 0.1


def counting(module: ElasticWrapper, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0] * 0 + len(module.blocks), *inputs[1:])


def test_a_hook_on_a_net_with_keyword_arguments_is_compared_too(tmp_path: Path) -> None:
    net = masked_net()
    net.register_forward_pre_hook(counting)

    with pytest.raises(ExportError, match=r"itself differs by up to .*the hook counting"):
        export(net, tmp_path / "net.pt2", depth=1, example=IDS, keywords={"mask": MASK})

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_keyword_argument_may_be_a_tuple(suffix: str, tmp_path: Path) -> None:
    class Rotated(nn.Module):
        def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
            assert rotary is not None
            return x * rotary[0] + x.flip(-1) * rotary[1]

    net = ElasticWrapper([nn.Linear(4, 4)], nn.Identity(), Rotated(), layout="b n c").eval()
    x = torch.rand(2, 3, 4)
    rotary = (torch.rand(3, 4), torch.rand(3, 4))

    written = export(net, tmp_path / f"net{suffix}", example=x, keywords={"rotary": rotary})

    assert list(written.inputs) == ["input", "rotary_0", "rotary_1"]
    expected = output(net, x, rotary=rotary)
    assert torch.allclose(runner(written.path)(x, rotary=rotary), expected, atol=1e-6)


# --- tuples and dicts


class Sum(nn.Module):
    """A stem for two inputs, of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.second = nn.Linear(5, 8)

    def forward(self, x: Any) -> Tensor:
        first, second = x.values() if isinstance(x, dict) else x
        return self.first(first) + self.second(second)


class Measured(NamedTuple):
    position: Tensor
    speed: Tensor


def two_inputs() -> ElasticWrapper:
    torch.manual_seed(0)
    blocks = [nn.Linear(8, 8) for _ in range(2)]
    return ElasticWrapper(blocks, nn.Linear(8, 2), Sum(), layout="b c").eval()


A = torch.rand(2, 3)
B = torch.rand(2, 5)
PAIRS: dict[str, tuple[Any, list[str]]] = {
    "tuple": ((A, B), ["input_0", "input_1"]),
    "list": ([A, B], ["input_0", "input_1"]),
    "dict": ({"position": A, "speed": B}, ["position", "speed"]),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", PAIRS)
def test_the_input_may_hold_several_tensors(kind: str, suffix: str, tmp_path: Path) -> None:
    net = two_inputs()
    example, names = PAIRS[kind]

    written = export(net, tmp_path / f"net{suffix}", depth=1, example=example)

    assert written.inputs == {names[0]: ("batch", 3), names[1]: ("batch", 5)}
    x: Any = {"position": torch.rand(4, 3), "speed": torch.rand(4, 5)}
    if kind != "dict":
        x = type(example)(x.values())
    assert torch.allclose(runner(written.path)(x), output(net, x), atol=1e-6)


def test_a_named_tuple_is_an_input_of_onnx_files_alone(tmp_path: Path) -> None:
    example = Measured(A, B)

    written = export(two_inputs(), tmp_path / "net.onnx", example=example)

    assert list(written.inputs) == ["input_0", "input_1"]
    with pytest.raises(ExportError, match=r"torch.export.save cannot write this net: .*Measured"):
        export(two_inputs(), tmp_path / "net.pt2", example=example)


# --- an architecture that brings its keyword arguments


def test_an_architecture_may_bring_keyword_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = masked_net()
    net.origin = Origin("masked", {})
    masked = Architecture(
        build=lambda **_: masked_net(),
        example=lambda _: IDS,
        extras={"example_keywords": lambda _: {"mask": MASK}},
    )
    monkeypatch.setattr(registry, "_registered", {"masked": masked})

    written = export(net, tmp_path / "net.pt2")
    alone = export(net, tmp_path / "alone.pt2", keywords={})

    assert list(written.inputs) == ["input", "mask"]
    assert list(alone.inputs) == ["input"]


# --- what is refused


def test_lengths_beyond_the_nets_own_limit_are_refused_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'write axes=\{1: \("tokens", 1, 16\)\}') as raised:
        export(
            masked_net(),
            tmp_path / "net.pt2",
            example=IDS,
            keywords={"mask": MASK},
            axes={1: "tokens"},
        )

    assert "the net does not take shapes input (2, 18), mask (2, 18)" in str(raised.value)


@pytest.mark.skipif(not TAKES_BOUNDS, reason="torch 2.6 and its ONNX files agree there")
def test_a_mask_that_hides_everything_from_a_position_is_named_as_a_cause(tmp_path: Path) -> None:
    hidden = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])

    with pytest.raises(ExportError, match=r"as onnx differs .* position see nothing.*'eager'"):
        export(masked_net(), tmp_path / "net.onnx", example=IDS, keywords={"mask": hidden})


def test_a_limit_that_shows_in_the_trace_alone_is_refused_with_what_to_write(
    tmp_path: Path,
) -> None:
    few = IDS[:, :4]  # three times as many are allowed, too

    message = r'a limit or a branch at 16; write axes=\{1: \("tokens", 1, 16\)\}'
    with pytest.raises(ExportError, match=message):
        export(masked_net(), tmp_path / "net.onnx", example=few, axes={1: "tokens"})

    assert list(tmp_path.iterdir()) == []


def test_an_unknown_keyword_argument_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the net does not take .*: .*masks"):
        export(masked_net(), tmp_path / "net.pt2", example=IDS, keywords={"masks": MASK})
