"""Sets that must have no input in common."""

from __future__ import annotations

import pytest
import torch

from elasticnet.exits import check_apart


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_shared_input_is_found_and_named(dtype: torch.dtype) -> None:
    x = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0]]).to(dtype)
    check_apart(training=[x[:2]], test=[x[2:3], x[3:]])
    with pytest.raises(ValueError, match=r"test and training share 1 inputs.*1 is 2 of training"):
        check_apart(training=[x[:2], x[2:3]], calibration=[x[3:4]], test=[x[4:], x[2:3]])


def test_batches_may_hold_targets_and_inputs_may_repeat_within_a_set() -> None:
    x = torch.eye(3)
    check_apart(one=[(x[[0, 0]], torch.tensor([1, 1]))], other=[[x[1:]]])


def test_many_shared_inputs_are_counted_and_a_few_are_named() -> None:
    x = torch.arange(9.0)[:, None]
    with pytest.raises(ValueError, match=r"share 9 inputs .*4 is 4 of one and 4 more"):
        check_apart(one=[x], other=[x])


def test_equal_bytes_of_another_shape_or_type_are_no_shared_input() -> None:
    zeros = torch.zeros(1, 4)
    check_apart(one=[zeros], other=[zeros.view(1, 2, 2)], third=[zeros.to(torch.int32)])
    transposed = torch.arange(4.0).view(1, 2, 2)
    with pytest.raises(ValueError, match="share 1 inputs"):
        check_apart(one=[transposed.mT.contiguous()], other=[transposed.mT])
