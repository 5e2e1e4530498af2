"""Which inputs are tried, and which axes are left open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elasticnet.export.axes import OpenLength, Place
from elasticnet.export.inputs import checked_example
from elasticnet.export.lengths import open_axes, refusal, variants
from elasticnet.export.samples import Sample, random_like, stretched
from elasticnet.sr import asrn


def sample(x: Any, **keywords: Any) -> Sample:
    return Sample(x=x, keywords=keywords)


class Fixed(nn.Module):
    """Takes (any, 3, 8, 6) and nothing else; with `batch`, only that many."""

    def __init__(self, batch: int | None = None) -> None:
        super().__init__()
        self.batch = batch

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (3, 8, 6) or x.shape[0] != (self.batch or x.shape[0]):
            raise ValueError(f"made for 8x6\nand not for {tuple(x.shape)}")
        return x.sum(3)


class Positions(nn.Module):
    """Adds positions, of which there are 2 to 16, and takes a mask of the tokens."""

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens = ids.shape[1]
        if not 2 <= tokens <= 16:
            raise IndexError(f"no position {tokens}")
        y = ids + torch.arange(16)[:tokens]
        return y if mask is None else y * mask


def axes_by_input(net: nn.Module, example: Sample, asked: Any) -> dict[str, dict[int, str]]:
    found = open_axes(net, example, asked)
    return {name: found.of(name) for name in example.tensors}


def test_open_axes_are_those_that_the_net_takes_at_other_lengths():
    net = asrn(2, num_blocks=1, channels=8).eval()
    x = sample(torch.rand(1, 3, 8, 6))

    assert axes_by_input(net, x, None) == {"input": {0: "batch", 2: "height", 3: "width"}}
    assert axes_by_input(net, x, {3: "columns"}) == {"input": {3: "columns"}}
    assert axes_by_input(net, x, {}) == {"input": {}}
    assert axes_by_input(nn.Identity(), sample(torch.rand(2, 5)), None) == {"input": {0: "batch"}}


def test_an_open_axis_that_the_net_does_not_take_is_left_out_with_a_note():
    x = sample(torch.rand(1, 3, 8, 6))

    size_fixed = open_axes(Fixed(), x, None)
    all_fixed = open_axes(Fixed(1), x, None)

    assert size_fixed.of("input") == {0: "batch"}
    assert (
        size_fixed.note
        == "height and width fixed: the net does not take shape (1, 3, 16, 18) (made for 8x6)"
    )
    assert all_fixed.lengths == ()
    assert "batch fixed: the net does not take shape (2, 3, 8, 6)" in str(all_fixed.note)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            {2: "height"},
            r"axes \{2: 'height'\}: height fixed: "
            r"the net does not take shape \(1, 3, 16, 6\) \(made for 8x6\)$",
        ),
        ({4: "depth"}, "axes 4: 'depth': expected an axis from 0 to 3"),
        ({-1: "width"}, "axes -1: 'width'"),
        ({True: "channels"}, "axes True: 'channels'"),
        ({0: "two words"}, "axes 0: 'two words': expected .* a plain name"),
        ([0, 1], r"axes \[0, 1\]: expected a dict, such as \{0: 'batch'\}"),
        ({0: 7}, "axes 0: 7: expected .* a plain name"),
        ({0: ("batch", 3, 2)}, r"axes 0: \('batch', 3, 2\): expected \(name, least, most\)"),
        ({0: ("batch", 0, 2)}, r"axes 0: \('batch', 0, 2\): expected \(name, least, most\)"),
        ({0: ("batch", 1)}, r"axes 0: \('batch', 1\): expected \(name, least, most\)"),
        ({0: ("batch", 1, 2.5)}, r"axes 0: \('batch', 1, 2.5\)"),
        ({0: ("batch", 2, 4)}, "axes 'batch': from 2 to 4, and the example has 1"),
        ({"mask": {0: "batch"}}, "axes 'mask': the inputs are input"),
        ({"input": {0: "batch"}, 1: "rows"}, "axes .*: expected axes as numbers, .* or names"),
        ({2: "size", 3: "size"}, "axes 'size': one name .* 8 in input, 6 in input; take two"),
    ],
)
def test_a_wrong_axis_is_an_error(axes: Any, message: str):
    with pytest.raises(ValueError, match=message):
        open_axes(Fixed(), sample(torch.rand(1, 3, 8, 6)), axes)


# --- bounds


IDS = torch.tensor([[3, 4, 5, 6, 7], [2, 2, 2, 2, 2]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def test_a_limit_that_the_net_has_is_named_with_what_to_write():
    with pytest.raises(ValueError, match=r"tokens fixed: .* \(no position 17\)") as raised:
        open_axes(Positions(), sample(IDS[:, :5].repeat(1, 1)), {1: ("tokens", 1, 17)})

    assert str(raised.value).endswith(
        '; it takes 2 to 16 tokens: write axes={1: ("tokens", 2, 16)} '
        "(on the command line: --axis 1=tokens:2:16)"
    )


def test_a_limit_is_found_without_bounds_too():
    ids = torch.cat([IDS, IDS], dim=1)  # (2, 10): three times as long is too long

    with pytest.raises(ValueError, match=r'write axes=\{1: \("tokens", 2, 16\)\}'):
        open_axes(Positions(), sample(ids), {1: "tokens"})


def test_a_least_length_that_the_net_does_not_take_is_an_error():
    class AtLeastFour(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] < 4:
                raise ValueError("too short")
            return x

    with pytest.raises(ValueError, match=r"\(2, 3\) \(too short\); it takes 4 to 9 tokens"):
        open_axes(AtLeastFour(), sample(IDS), {1: ("tokens", 3, 9)})


def test_bounds_are_kept_and_tried():
    found = open_axes(Positions(), sample(IDS), {0: "batch", 1: ("tokens", 2, 16)})

    assert found.bounds == {"tokens": (2, 16)}
    lengths = [shapes["input"] for shapes in variants(sample(IDS), found.lengths)]
    assert lengths == [[1, 16], [1, 2], [7, 9]]


# --- several inputs


def test_axes_of_further_inputs_go_along_at_the_same_position_and_length():
    example = sample(IDS, mask=MASK)

    axes = axes_by_input(Positions(), example, {0: "batch", 1: ("tokens", 2, 16)})

    assert axes == {"input": {0: "batch", 1: "tokens"}, "mask": {0: "batch", 1: "tokens"}}
    assert axes_by_input(Positions(), example, None)["mask"] == {0: "batch"}


def test_axes_can_be_named_for_each_input():
    class Apart(nn.Module):
        def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
            return x[0].sum() + x[1].sum(1)

    example = sample((torch.rand(2, 3), torch.rand(2, 3)))
    asked: Any = {"input_0": {1: "rows"}, "input_1": {1: "columns", 0: ("rows_too", 1, 9)}}

    axes = axes_by_input(Apart(), example, asked)

    assert axes == {"input_0": {1: "rows"}, "input_1": {0: "rows_too", 1: "columns"}}


def test_one_name_with_two_bounds_is_an_error():
    asked: Any = {"input": {1: ("tokens", 2, 16)}, "mask": {1: ("tokens", 2, 12)}}

    with pytest.raises(ValueError, match=r"axes 'tokens': two different bounds"):
        open_axes(Positions(), sample(IDS, mask=MASK), asked)


def test_inputs_have_the_names_of_their_arguments():
    x = torch.rand(1)

    assert list(sample(x, mask=x).tensors) == ["input", "mask"]
    assert list(sample((x, [x, x])).tensors) == ["input_0", "input_1_0", "input_1_1"]
    assert list(sample({"ids": x, "sizes": {"h": x}}).tensors) == ["ids", "sizes_h"]
    assert list(sample(x, rotary=(x, x)).tensors) == ["input", "rotary_0", "rotary_1"]
    with pytest.raises(ValueError, match="two inputs are called 'mask'"):
        _ = sample({"mask": x}, mask=x).tensors


# --- shapes and values


def test_variants_change_open_axes_alone():
    x = sample(torch.rand(2, 3, 8, 6))
    lengths = [
        OpenLength(name=name, least=1, most=None, places=(Place("input", axis),))
        for axis, name in {0: "b", 2: "h", 3: "w"}.items()
    ]

    assert [shapes["input"] for shapes in variants(x, lengths)] == [
        [1, 3, 16, 18],
        [1, 3, 1, 1],
        [7, 3, 11, 8],
    ]
    assert list(variants(sample(torch.rand(2, 5)), [])) == [{"input": [2, 5]}] * 3


@pytest.mark.parametrize(
    ("most", "tried"), [(512, [512, 512]), (1024, [16, 18]), (10**6, [16, 18])]
)
def test_bounds_with_more_values_than_a_check_should_run_are_not_tried(most: int, tried: list[int]):
    height = OpenLength("height", least=1, most=most, places=(Place("input", 2),))
    width = OpenLength("width", least=1, most=most, places=(Place("input", 3),))

    large, _, _ = variants(sample(torch.rand(1, 3, 8, 6)), [height, width])

    assert large["input"] == [1, 3, *tried]


def test_very_long_bounds_are_not_tried():
    tokens = OpenLength("tokens", least=1, most=8192, places=(Place("input", 1),))

    large, _, _ = variants(sample(IDS), [tokens])

    assert large["input"] == [2, 15]


def test_random_inputs_have_the_examples_range_and_dtype():
    x = random_like(torch.tensor([[-3.0, 5.0]]), (40, 50), seed=1)
    assert x.shape == (40, 50)
    assert -3 <= x.min() < -2.9
    assert 4.9 < x.max() <= 5
    ids = random_like(torch.tensor([[2, 4]]), (40, 50), seed=1)
    assert ids.dtype is torch.int64
    assert ids.unique().tolist() == [2, 3, 4]
    assert random_like(torch.tensor([True, False]), (40,), seed=1).dtype is torch.bool
    assert random_like(torch.zeros(1, 1), (40, 50), seed=1).std() > 0.2
    assert torch.equal(x, random_like(torch.tensor([[-3.0, 5.0]]), (40, 50), seed=1))


@pytest.mark.parametrize(
    ("values", "length", "expected"),
    [
        ([1, 1, 1, 0], 8, [1, 1, 1, 1, 1, 1, 0, 0]),
        ([1, 1, 1, 0], 2, [1, 0]),
        ([0, 0, 1, 1, 1], 1, [1]),
        ([1, 1, 1, 0, 0], 1, [1]),
    ],
)
def test_further_inputs_are_stretched(values: list[int], length: int, expected: list[int]):
    assert stretched(torch.tensor([values]), (3, length)).tolist() == [expected] * 3


# --- the example


def test_an_example_is_checked():
    net = asrn(2, num_blocks=1, channels=8).eval()

    x = checked_example(net, torch.rand(1, 3, 4, 5, dtype=torch.float64, requires_grad=True), {}).x

    assert x.dtype is torch.float32
    assert not x.requires_grad


EMPTY = torch.rand(0, 3)
WRONG_EXAMPLES: list[tuple[Any, Mapping[str, Any], str]] = [
    ("a photo", {}, "example: str"),
    ((), {}, "example: tuple without a tensor"),
    (torch.rand(0, 3, 4, 4), {}, r"example: shape \(0, 3, 4, 4\)"),
    (torch.rand(1, 4, 4, 4), {}, r"example: the net does not take shape \(1, 4, 4, 4\): .*channel"),
    ((EMPTY, EMPTY), {}, r"example: input_0: shape \(0, 3\)"),
    (torch.rand(1, 3), {"mask": EMPTY}, r"example: mask: shape \(0, 3\)"),
    (torch.rand(1, 3), {"mask": True}, "mask: bool; a file takes tensors alone"),
    (torch.rand(1, 3), {"mask": None}, "mask: None; leave it out"),
    (torch.rand(1, 3), torch.rand(2), "keywords: Tensor; expected a dict"),  # pyright: ignore
    (
        torch.rand(1, 3),
        {"mask": torch.rand(1)},
        r"example: the net does not take shapes input \(1, 3\), mask \(1,\): .*mask",
    ),
]


@pytest.mark.parametrize(("example", "keywords", "message"), WRONG_EXAMPLES)
def test_a_wrong_example_is_refused(example: Any, keywords: Mapping[str, Any], message: str):
    net = asrn(2, num_blocks=1, channels=8).eval()

    with pytest.raises(ValueError, match=message):
        checked_example(net, example, keywords)


def test_an_argument_that_is_missing_is_named_with_the_way_to_pass_it():
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x * mask

    with pytest.raises(ValueError, match=r"missing 1 .*'mask'; pass it as keywords=\{name: tensor"):
        checked_example(Masked(), torch.rand(2, 3), {})


def test_a_net_that_returns_no_tensor_is_refused():
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    assert refusal(Pair(), sample(torch.rand(2))) == "its output is a tuple, not a tensor"
    assert refusal(nn.Identity(), sample(torch.rand(2))) is None
