from __future__ import annotations

import pytest
import torch
from torch import nn

from elasticnet.export.inputs import checked_example, open_axes, random_like, refusal, variants
from elasticnet.sr import asrn


class Fixed(nn.Module):
    """Takes (any, 3, 8, 6) and nothing else; with `batch`, only that many."""

    def __init__(self, batch: int | None = None) -> None:
        super().__init__()
        self.batch = batch

    def forward(self, x):
        if x.shape[1:] != (3, 8, 6) or x.shape[0] != (self.batch or x.shape[0]):
            raise ValueError(f"made for 8x6\nand not for {tuple(x.shape)}")
        return x.sum(3)


def test_open_axes_are_those_that_the_net_takes_at_other_lengths():
    net, x = asrn(2, num_blocks=1, channels=8).eval(), torch.rand(1, 3, 8, 6)
    assert open_axes(net, x, None) == ({0: "batch", 2: "height", 3: "width"}, None)
    assert open_axes(net, x, {3: "columns"}) == ({3: "columns"}, None)
    assert open_axes(net, x, {}) == ({}, None)
    axes, note = open_axes(Fixed(), x, None)
    assert axes == {0: "batch"}
    assert (
        note == "height and width fixed: the net does not take shape (1, 3, 16, 18) (made for 8x6)"
    )
    axes, note = open_axes(Fixed(1), x, None)
    assert axes == {}
    assert "batch fixed: the net does not take shape (2, 3, 8, 6)" in str(note)
    assert open_axes(nn.Identity(), torch.rand(2, 5), None) == ({0: "batch"}, None)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            {2: "height"},
            r"axes \{2: 'height'\}: height fixed: "
            r"the net does not take shape \(1, 3, 16, 6\) \(made",
        ),
        ({4: "depth"}, "axes 4: 'depth': expected an axis from 0 to 3"),
        ({-1: "width"}, "axes -1: 'width'"),
        ({True: "channels"}, "axes True: 'channels'"),
        ({0: "two words"}, "axes 0: 'two words': expected .* a plain name"),
    ],
)
def test_an_axis_that_was_asked_for_is_an_error(axes, message):
    with pytest.raises(ValueError, match=message):
        open_axes(Fixed(), torch.rand(1, 3, 8, 6), axes)


def test_variants_change_open_axes_alone():
    assert list(variants((2, 3, 8, 6), {0: "b", 2: "h", 3: "w"})) == [
        [1, 3, 16, 18],
        [1, 3, 1, 1],
        [7, 3, 11, 8],
    ]
    assert list(variants((2, 5), {})) == [[2, 5]] * 3


def test_random_inputs_have_the_examples_range_and_dtype():
    x = random_like(torch.tensor([[-3.0, 5.0]]), (40, 50), seed=1)
    assert x.shape == (40, 50)
    assert -3 <= x.min() < -2.9
    assert 4.9 < x.max() <= 5
    ids = random_like(torch.tensor([[2, 4]]), (40, 50), seed=1)
    assert ids.dtype is torch.int64
    assert ids.unique().tolist() == [2, 3, 4]
    assert random_like(torch.zeros(1, 1), (40, 50), seed=1).std() > 0.2
    assert torch.equal(x, random_like(torch.tensor([[-3.0, 5.0]]), (40, 50), seed=1))


def test_an_example_is_checked():
    net = asrn(2, num_blocks=1, channels=8).eval()
    x = checked_example(net, torch.rand(1, 3, 4, 5, dtype=torch.float64, requires_grad=True))
    assert x.dtype is torch.float32
    assert not x.requires_grad
    for example, message in (
        ("a photo", "example: str"),
        (torch.rand(0, 3, 4, 4), r"example: shape \(0, 3, 4, 4\)"),
        (
            torch.rand(1, 4, 4, 4),
            r"example: the net does not take shape \(1, 4, 4, 4\): .*channels",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            checked_example(net, example)  # pyright: ignore[reportArgumentType]


def test_a_net_that_returns_no_tensor_is_refused():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    assert refusal(Pair(), torch.rand(2)) == "its output is a tuple, not a tensor"
    assert refusal(nn.Identity(), torch.rand(2)) is None
