"""Heads: the folded against the plain one and against impulses; the bicubic skip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from elasticnet import ElasticObjective
from elasticnet.loss_weights import rising_deepest_share
from elasticnet.sr.models.asrn import asrn
from elasticnet.sr.models.heads import DeconvHead, SubpixelHead, add_to, bicubic_upsample
from elasticnet.sr.resize import imresize
from elasticnet.training.step import TrainingStep

CASES = {
    "height": st.integers(1, 9),
    "width": st.integers(1, 9),
    "scale": st.integers(1, 4),
    "channels": st.integers(1, 12),
    "hidden": st.integers(1, 10),
    "batch": st.integers(1, 3),
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def heads(
    scale: int, channels: int = 6, hidden: int = 5, skip: str | None = None
) -> tuple[DeconvHead, DeconvHead]:
    """A folded and a plain head of equal weights; large biases, so that borders show."""
    folded, plain = (
        DeconvHead(channels, scale, hidden, skip=skip),
        DeconvHead(channels, scale, hidden, False, skip),
    )
    with torch.no_grad():
        for name, parameter in folded.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 10)
    plain.load_state_dict(folded.state_dict())
    return folded, plain


def assert_near(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Equal within `relative` of the largest entry, which is of a sum's size."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    difference = (actual.double() - expected.double()).abs().max().item()
    assert difference <= relative * max(1.0, expected.double().abs().max().item())


def inner_map(head: DeconvHead, features: Tensor) -> Tensor:
    """What the last conv sees, layer by layer."""
    return head.deconvs(head.reduce(features))


@given(**CASES)
def test_folded_head_equals_plain_head(
    height: int, width: int, scale: int, channels: int, hidden: int, batch: int
) -> None:
    folded, plain = heads(scale, channels, hidden)
    features = torch.randn(batch, channels, height, width)
    assert_near(folded(features), plain(features), 1e-5)
    assert plain(features).shape == (batch, 3, scale * height, scale * width)
    features = features.double()
    assert_near(folded.double()(features), plain.double()(features), 1e-12)


@given(**CASES)
def test_gradients_of_the_folded_head_equal_the_plain_ones(
    height: int, width: int, scale: int, channels: int, hidden: int, batch: int
) -> None:
    gradients = []
    features = torch.randn(batch, channels, height, width, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(batch, 3, scale * height, scale * width, dtype=torch.float64)
    for head in heads(scale, channels, hidden):
        inputs = [features, *head.double().parameters()]
        gradients.append(torch.autograd.grad((head(features) * weights).sum(), inputs))
    assert len(gradients[0]) == 5 + 2 * len({1: "", 2: "a", 3: "a", 4: "ab"}[scale])
    for actual, expected in zip(*gradients, strict=True):
        assert_near(actual, expected, 1e-10)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_plain_head_is_its_layers_bit_for_bit(scale: int) -> None:
    _, head = heads(scale)
    features = torch.randn(2, 6, 7, 5)
    expected = head.reduce(features)
    for deconv in head.deconv_layers():
        expected = deconv(expected)
    expected = head.output(expected)
    assert torch.equal(head(features), expected)
    assert torch.equal(head((features,))[0], expected)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_kernels_are_the_plain_heads_impulse_response(scale: int) -> None:
    """An impulse in 3x3 zeros; the tap (row, column) of the kernel meets it on the other side."""
    head, _ = heads(scale, channels=4)
    head.double()
    kernel, bias_kernel = head.folded_kernels()
    nothing = torch.zeros(1, 4, 3, 3, dtype=torch.float64)
    silence = inner_map(head, nothing)  # the inner biases alone, everywhere
    inner = torch.zeros_like(silence)
    middle = slice(scale, 2 * scale)
    # the inner biases of one LR position
    inner[:, :, middle, middle] = silence[:, :, middle, middle]

    def respond(x: Tensor) -> Tensor:
        return F.conv2d(x, head.output.weight, padding=1)

    impulses = torch.zeros(4, 4, 3, 3, dtype=torch.float64)
    impulses[range(4), range(4), 1, 1] = 1
    responses, bias_response = respond(inner_map(head, impulses) - silence), respond(inner)
    expected, expected_bias = torch.zeros_like(kernel), torch.zeros_like(bias_kernel)
    for color in range(3):
        for sub_row in range(scale):
            for sub_column in range(scale):
                out = (color * scale + sub_row) * scale + sub_column
                for row in range(3):
                    for column in range(3):
                        y, x = (2 - row) * scale + sub_row, (2 - column) * scale + sub_column
                        expected[out, :, row, column] = responses[:, color, y, x]
                        expected_bias[out, 0, row, column] = bias_response[0, color, y, x]
    torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(bias_kernel, expected_bias, rtol=0, atol=1e-11)


def test_parameters_are_the_canonical_ones() -> None:
    """Folding adds no parameter, buffer or key; 24,387 parameters at x2 (published 24K)."""
    folded, plain = DeconvHead(96, 2), DeconvHead(96, 2, fold=False)
    assert sum(parameter.numel() for parameter in folded.parameters()) == 24_387
    folded(torch.rand(1, 96, 4, 4))
    assert {name: value.shape for name, value in folded.state_dict().items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("fold", [True, False])
def test_under_bfloat16_autocast(scale: int, fold: bool) -> None:
    """Two significant digits, and the kernels are worked out in float32 all the same."""
    head, plain = heads(scale)
    head.fold = fold
    features = torch.randn(2, 6, 8, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = head(features)
        kernels = head.folded_kernels()
    assert output.dtype == torch.bfloat16
    assert_near(output, plain(features).bfloat16(), 2e-2)
    for actual, expected in zip(kernels, head.folded_kernels(), strict=True):
        assert torch.equal(actual, expected)
    output.float().sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in head.parameters()
    )


@pytest.mark.parametrize("skip", [None, "bicubic"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)], ids=str
)
def test_half_precision_weights(dtype: torch.dtype, tolerance: float, skip: str | None) -> None:
    """Against float64 from the same rounded weights."""
    for scale in (1, 2, 3, 4):
        features, image = torch.randn(2, 6, 5, 4, dtype=dtype), torch.rand(2, 3, 5, 4, dtype=dtype)
        for head in heads(scale, skip=skip):
            output = head.to(dtype)(features, image)
            assert output.dtype == dtype
            expected = head.double()(features.double(), image.double())
            assert_near(output, expected.to(dtype), tolerance)


@pytest.mark.parametrize("fold", [True, False])
def test_one_call_serves_taps_of_any_size_and_dtype(fold: bool) -> None:
    folded, plain = (head.double() for head in heads(2))
    folded.fold = fold
    calls = []
    original = folded.folded_kernels
    object.__setattr__(folded, "folded_kernels", lambda: calls.append(1) or original())
    taps = [torch.randn(2, 6, height, 3, dtype=torch.float64) for height in (4, 4, 1, 5, 4)]
    outputs = folded(tuple(taps))
    assert len(calls) == int(fold)
    for output, features in zip(outputs, taps, strict=True):
        assert_near(output, plain(features), 1e-12)
    loss = torch.stack([output.square().sum() for output in outputs]).sum()
    expected_loss = torch.stack([plain(features).square().sum() for features in taps]).sum()
    gradients = torch.autograd.grad(loss, [*folded.parameters()])
    for actual, expected in zip(
        gradients, torch.autograd.grad(expected_loss, [*plain.parameters()]), strict=True
    ):
        assert_near(actual, expected, 1e-10)

    folded, plain = heads(2)
    if fold:  # a tap in another dtype than the weights
        (output,) = folded((taps[0],))
        assert_near(output, plain.double()(taps[0]), 1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_memory_format_of_the_features_is_kept(scale: int) -> None:
    head, plain = heads(scale, channels=8)
    features = torch.randn(2, 8, 6, 7)
    for layout in (torch.contiguous_format, torch.channels_last):
        output = head.to(memory_format=layout)(features.to(memory_format=layout))  # pyright: ignore[reportCallIssue]
        assert output.is_contiguous(memory_format=layout)
        assert_near(output, plain(features), 1e-5)


@pytest.mark.parametrize("scale", [3, 4])
def test_compiles_whole_with_gradients(scale: int) -> None:
    head, _ = heads(scale)
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    features = torch.randn(2, 6, 5, 6)
    weights = torch.randn(2, 3, 5 * scale, 6 * scale)
    outcomes = []
    for call in (compiled, head):
        output = call(features)
        outcomes.append(
            (output, *torch.autograd.grad((output * weights).sum(), [*head.parameters()]))
        )
    for actual, expected in zip(*outcomes, strict=True):
        assert_near(actual, expected, 1e-5)


@needs_gpu
def test_on_cuda_the_kernels_are_as_exact_as_on_the_cpu() -> None:
    """cuDNN may round float32 convolutions to TF32, an error of 1e-3."""
    head, _ = heads(4, channels=96, hidden=64)
    expected = head.folded_kernels()
    for actual, kernel in zip(head.cuda().folded_kernels(), expected, strict=True):
        assert_near(actual.cpu(), kernel, 1e-5)


def forget_compiled_objectives() -> None:
    """Let torch.compile begin anew, as in a process of its own.

    An objective that was compiled before, with another weight or batch, makes PyTorch leave such
    numbers open: they enter the next graph as tensors of the CPU. The step is then cut into parts,
    and PyTorch 2.11 crashed in the backward pass of such a step.
    """
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_compiled_step_holds_no_tensor_of_the_cpu() -> None:
    """A CUDA graph holds nothing of the CPU. Here tensors without values stand for a GPU's."""
    forget_compiled_objectives()
    devices: list[set[str]] = []  # of the forward and of the backward graph

    def keep_devices(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        values = [node.meta.get("val") for node in graph.graph.nodes]
        devices.append({each.device.type for each in values if isinstance(each, Tensor)})
        return graph.forward

    net = asrn(2, num_blocks=2, channels=8, skip="bicubic").to("meta")
    compiled = torch.compile(
        ElasticObjective(net, F.l1_loss, 1e-3),
        backend=aot_autograd(fw_compiler=keep_devices, bw_compiler=keep_devices),
    )
    lr = torch.empty(2, 3, 12, 12, device="meta")
    hr = torch.empty(2, 3, 24, 24, device="meta")
    compiled(lr, hr, step=0).total.backward()
    assert devices == [{"meta"}, {"meta"}]


@needs_gpu
@pytest.mark.parametrize(
    ("scale", "tap_weights"),
    [(3, None), (4, lambda step: rising_deepest_share((1, 2), step, total=10, start=0.5))],
)
def test_a_step_becomes_a_cuda_graph_with_the_same_losses(scale: int, tap_weights: Any) -> None:
    """Channels-last, as in training; with any part of the step on the CPU there is no graph."""
    forget_compiled_objectives()
    curves = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = (
            asrn(scale, num_blocks=2, channels=16, skip="bicubic")
            .cuda()
            .to(memory_format=torch.channels_last)
        )  # pyright: ignore
        objective = ElasticObjective(net, F.l1_loss, 1e-3, tap_weights=tap_weights)
        call = torch.compile(objective, mode="reduce-overhead") if compiled else objective
        step = TrainingStep(call, net, torch.optim.Adam(net.parameters(), lr=1e-3, fused=True))
        counters.clear()
        images = torch.rand(6, 2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
        batches = [(lr.cuda(), F.interpolate(lr.cuda(), scale_factor=scale)) for lr in images]
        curves.append(
            [step(lambda *_, batch=batch: batch, n).total.item() for n, batch in enumerate(batches)]
        )
        assert not counters["inductor"]["cudagraph_skips"]
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


def test_exports_with_free_height_and_width() -> None:
    head, plain = heads(2)
    size = {
        2: torch.export.Dim("height", min=2, max=64),
        3: torch.export.Dim("width", min=2, max=64),
    }
    program = torch.export.export(
        head.eval(), (torch.randn(1, 6, 5, 6),), dynamic_shapes=(size,)
    ).module()
    for height, width in ((5, 6), (9, 3)):
        features = torch.randn(1, 6, height, width)
        assert_near(program(features), plain(features), 1e-5)


def test_subpixel_head_is_its_layers_bit_for_bit() -> None:
    """The paper's module A: 334,755 parameters at x2 with 96 channels (published 334K)."""
    head = SubpixelHead(96, 2)
    assert sum(parameter.numel() for parameter in head.parameters()) == 334_755
    head = SubpixelHead(4, 3)
    features = torch.randn(2, 4, 5, 6)
    expanded = head.expand(features)
    shuffled = torch.empty(2, 4, 15, 18)
    for channel in range(4):
        for row in range(3):
            for column in range(3):
                shuffled[:, channel, row::3, column::3] = expanded[
                    :, channel * 9 + row * 3 + column
                ]
    assert torch.equal(head(features), head.output(shuffled))


@pytest.mark.parametrize(
    "make", [lambda s, k: DeconvHead(4, s, 5, True, k), lambda s, k: SubpixelHead(4, s, k)]
)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_skip_adds_the_enlarged_image(
    make: Callable[[int, str | None], nn.Module], scale: int
) -> None:
    head, without = make(scale, "bicubic"), make(scale, None)
    without.load_state_dict(head.state_dict())
    features, image = torch.randn(2, 4, 5, 6), torch.rand(2, 3, 5, 6)
    assert torch.equal(head(features, image), without(features) + bicubic_upsample(image, scale))
    with pytest.raises(
        ValueError, match=r"skip='bicubic' is called as head\(features, image\).*missing"
    ):
        head(features)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_bicubic_upsample_is_imresize_away_from_the_border(scale: int) -> None:
    image = torch.rand(2, 3, 11, 13)
    inside = slice(2 * scale, -2 * scale)
    expected = imresize(image.double(), scale)
    actual = bicubic_upsample(image, scale)
    assert actual.shape == expected.shape
    torch.testing.assert_close(
        actual.double()[..., inside, inside], expected[..., inside, inside], rtol=0, atol=1e-6
    )
    # other weights at the border, but no nonsense there
    assert (actual.double() - expected).abs().max() < 0.3


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_add_to_is_an_addition_and_in_place_where_the_types_allow_it(wide: torch.dtype) -> None:
    narrow, x = torch.rand(2, 3, 4).bfloat16(), torch.rand(3, 4, dtype=wide)
    expected = narrow + x
    assert torch.equal(add_to(narrow, x), expected)
    assert add_to(narrow, x).dtype == wide
    fresh = torch.rand(2, 3, 4, dtype=wide)
    expected = fresh + x.bfloat16()
    assert add_to(fresh, x.bfloat16()) is fresh
    assert torch.equal(fresh, expected)
