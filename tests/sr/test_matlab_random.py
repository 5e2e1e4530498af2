"""MATLAB's old normal random numbers, against those that its manual printed."""

from __future__ import annotations

import math

import numpy as np

from elasticnet.sr.matlab_random import matlab_normals

# randn(3, 4) in the manuals of MATLAB 5 and 6, which show the numbers behind randn('seed', 0).
PRINTED = [
    [1.1650, 0.3516, 0.0591, 0.8717],
    [0.6268, -0.6965, 1.7971, -1.4462],
    [0.0751, 1.6961, 0.2641, -0.7012],
]


def one_after_another(count: int) -> list[float]:
    """The same numbers by a plain loop: the generator of Park and Miller, the polar method."""
    state = 470211272
    states = [state]
    normals: list[float] = []
    while len(normals) < count:
        while len(states) < 2:
            state = 16807 * state % (2**31 - 1)
            states.append(state)
        x, y = (2 * each / (2**31 - 1) - 1 for each in states)
        states = []
        square = x * x + y * y
        if square <= 1:
            normals.append(x * math.sqrt(-2 * math.log(square) / square))
    return normals


def test_the_numbers_of_the_manual() -> None:
    assert matlab_normals((3, 4)).round(4).tolist() == PRINTED


def test_the_first_axis_runs_fastest() -> None:
    numbers = matlab_normals((2, 3, 3))
    assert numbers.shape == (2, 3, 3)
    assert numbers.ravel(order="F").round(4).tolist()[:4] == [1.165, 0.6268, 0.0751, 0.3516]


def test_they_are_those_of_a_plain_loop() -> None:
    assert np.allclose(matlab_normals((5000,)), one_after_another(5000), rtol=1e-12)


def test_their_mean_is_0_and_their_variance_1() -> None:
    numbers = matlab_normals((200_000,))
    assert abs(numbers.mean()) < 0.01
    assert abs(numbers.std() - 1) < 0.01


def test_an_empty_shape_gives_none() -> None:
    assert matlab_normals((0, 3)).shape == (0, 3)
