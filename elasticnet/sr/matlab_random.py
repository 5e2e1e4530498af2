"""The normal random numbers of MATLAB's `randn('seed', 0)`, as papers used them for noisy images.

The single `seed` selects the generator of MATLAB 4. Its uniform numbers are those of Park and
Miller, "Random number generators: good ones are hard to find", Communications of the ACM 31 (10),
1988. Two of them at a time become a normal number by Marsaglia's polar method, which gives two
numbers a pair; this generator uses the first one only.

The twelve numbers of `randn(3, 4)` that MATLAB's manual has printed come out, to all their digits.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

MULTIPLIER = 16807
MODULUS = 2**31 - 1
FIRST_STATE = 470211272  # the first uniform number behind seed 0 is this over MODULUS: 0.2190


def matlab_normals(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the first normal random numbers behind MATLAB's `randn('seed', 0)`.

    Args:
        shape: Of the result. As in MATLAB, the first axis runs fastest.

    Returns:
        Numbers of mean 0 and variance 1; the same ones with every call.

    Example:
        >>> matlab_normals((2, 2)).round(4).tolist()
        [[1.165, 0.0751], [0.6268, 0.3516]]
    """
    count = math.prod(shape)
    # The method accepts a pair with probability pi / 4, so that twice as many pairs are enough.
    num_pairs = 2 * count + 64
    uniform = _states(2 * num_pairs) / MODULUS
    points = (2 * uniform - 1).reshape(num_pairs, 2)  # in a square around 0
    squared_radius = (points**2).sum(axis=1)  # (num_pairs,)
    in_circle = squared_radius <= 1
    first = points[in_circle, 0]
    squared_radius = squared_radius[in_circle]
    normals = first * np.sqrt(-2 * np.log(squared_radius) / squared_radius)
    assert len(normals) >= count
    return normals[:count].reshape(shape, order="F")


def _states(count: int) -> NDArray[np.uint64]:
    """The first states of the uniform generator, each MULTIPLIER times the one before."""
    states = np.array([FIRST_STATE], dtype=np.uint64)
    step = MULTIPLIER  # from a state to the one that is len(states) later
    while len(states) < count:
        # A state and a step are below 2**31: their product fits 64 bits.
        later = states * np.uint64(step) % np.uint64(MODULUS)
        states = np.concatenate([states, later])
        step = step * step % MODULUS
    return states[:count]
