"""Run a network whose inputs leave at depths of their own, from ONNX files of its stages.

    python run_exits.py inputs.npy     prints class, depth and score of each input

    from run_exits import StagedExits
    logits, depths, scores = StagedExits("folder")(x)

It needs numpy and onnxruntime, and nothing else. elasticnet.exits.write_stages puts this file into
the folder, beside exits.json and a file for each stage. A stage runs the blocks from one exit to
the next, so that no block runs twice.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingTypeStubs] - it has none
from numpy.typing import NDArray

Array = NDArray[Any]
Policy = Callable[[Sequence[Array]], Array]

LOGITS = "logits"  # what every stage calls its prediction
DESCRIPTION = "exits.json"


class Exits(NamedTuple):
    """What came out of a batch whose inputs left at depths of their own.

    Attributes:
        logits: The prediction of each input at the depth where it left, (b, ..., classes).
        depths: These depths, (b,) of int64.
        scores: How sure the policy was there, (b,).
    """

    logits: Array
    depths: Array
    scores: Array


# --- policies: those of elasticnet.exits.policies, where each is explained


def softmax(logits: Array) -> Array:
    """Return the probabilities of classes.

    Args:
        logits: (..., classes).
    """
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def confidence(logits_so_far: Sequence[Array]) -> Array:
    """Return the probability of the likeliest class.

    Args:
        logits_so_far: (..., classes) at each exit so far, of which the last count.
    """
    return softmax(logits_so_far[-1]).max(axis=-1)


def entropy(logits_so_far: Sequence[Array]) -> Array:
    """Return 1 minus the entropy of the classes as a share of the largest one.

    Args:
        logits_so_far: (..., classes) at each exit so far, of which the last count.
    """
    probabilities = softmax(logits_so_far[-1])
    num_classes = probabilities.shape[-1]
    if num_classes == 1:
        return np.ones_like(probabilities[..., 0])
    # A probability of 0 adds nothing, though its logarithm is -inf.
    logarithms = np.log(np.where(probabilities > 0, probabilities, 1))
    terms = probabilities * logarithms
    return 1 + terms.sum(axis=-1) / math.log(num_classes)


def margin(logits_so_far: Sequence[Array]) -> Array:
    """Return by how much the likeliest class is more probable than the second.

    Args:
        logits_so_far: (..., classes) at each exit so far, of which the last count.
    """
    probabilities = softmax(logits_so_far[-1])
    if probabilities.shape[-1] == 1:
        return probabilities[..., 0]
    rising = np.sort(probabilities, axis=-1)
    return rising[..., -1] - rising[..., -2]


def patience(logits_so_far: Sequence[Array]) -> Array:
    """Return how many exits in a row, the last one included, predict the same class.

    Args:
        logits_so_far: (..., classes) at each exit so far.
    """
    classes = [logits.argmax(axis=-1) for logits in logits_so_far]  # (...) at each exit
    agrees = np.ones(classes[-1].shape, dtype=bool)
    exits_in_a_row = np.zeros(classes[-1].shape, dtype=np.float32)
    for earlier in reversed(classes):
        agrees = agrees & (earlier == classes[-1])
        exits_in_a_row += agrees
    return exits_in_a_row


POLICIES: dict[str, Policy] = {
    "confidence": confidence,
    "entropy": entropy,
    "margin": margin,
    "patience": patience,
}


# --- running


class Stage:
    """The blocks from one exit to the next, and the prediction there.

    Args:
        file: The ONNX file.
        depth: How many blocks of the network have run behind it.
        threshold: The score from which an input leaves; infinity if none leaves here.
        temperature: What the logits are divided by before the policy sees them.
        num_threads: Threads of ONNX Runtime; 0 means one for each core.

    Attributes:
        reads: The names of the arrays that it takes.
    """

    def __init__(
        self, file: Path, depth: int, threshold: float, temperature: float, num_threads: int
    ) -> None:
        runtime: Any = onnxruntime
        options = runtime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3  # errors alone
        self._session = runtime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        self.depth = depth
        self.threshold = threshold
        self.temperature = temperature
        self.reads: list[str] = [each.name for each in self._session.get_inputs()]
        self._returns: list[str] = [each.name for each in self._session.get_outputs()]

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Return the logits, and what later stages read beside what there is already.

        Args:
            arrays: What the stage reads, by name; what it does not read is left out.

        Raises:
            ValueError: An array is missing.
        """
        missing = [name for name in self.reads if name not in arrays]
        if missing:
            raise ValueError(
                f"the stage up to depth {self.depth} reads {', '.join(self.reads)}: "
                f"{', '.join(missing)} is missing"
            )
        read = {name: arrays[name] for name in self.reads}
        returned: list[Array] = self._session.run(self._returns, read)
        return dict(zip(self._returns, returned, strict=True))


class StagedExits:
    """Runs the stages of a network at a depth that each input chooses by itself.

    Args:
        folder: What `elasticnet.exits.write_stages` has written.
        policy: Takes the place of the folder's policy: from the logits (b, ..., classes) at each
            exit so far, divided by their temperatures, to a score for each prediction.
        num_threads: Threads of ONNX Runtime; 0 means one for each core.

    Attributes:
        stages: From the shallowest to the deepest.

    Raises:
        ValueError: The folder names no policy, because it was a function, and none is given.

    Example:
        `logits, depths, scores = StagedExits("folder")(x)`
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        policy: Policy | None = None,
        num_threads: int = 0,
    ) -> None:
        folder = Path(folder)
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        name = description["policy"]
        if policy is None and name is None:
            raise ValueError(
                f"{folder / DESCRIPTION} names no policy, because it was a function of your own: "
                "give it again, policy=..."
            )
        self.policy = POLICIES[name] if policy is None else policy
        self.over_tokens: str = description["over_tokens"]
        # The axis of each array between the stages that counts the inputs; None: it has none.
        self._batch_axes: dict[str, int | None] = description["batch_axes"]
        self.stages: list[Stage] = []
        for stage in description["stages"]:
            threshold = stage["threshold"]
            self.stages.append(
                Stage(
                    folder / stage["file"],
                    depth=stage["depth"],
                    threshold=math.inf if threshold is None else threshold,
                    temperature=stage["temperature"],
                    num_threads=num_threads,
                )
            )

    def __call__(self, x: Array, **keywords: Array) -> Exits:
        """Return the prediction of each input, and the depth where it left.

        Args:
            x: Inputs (b, ...), with the dtype that the network takes.
            **keywords: The keyword arguments that the network was written with.

        Raises:
            ValueError: There is no input, or an argument is missing.
        """
        if len(x) == 0:
            raise ValueError(f"x of shape {x.shape} has no input")
        first_name = self.stages[0].reads[0]
        arrays: dict[str, Array] = {first_name: x, **keywords}
        rows = np.arange(len(x))  # the inputs that are still inside
        scaled_so_far: list[Array] = []  # their logits so far, as the policy sees them
        left: list[Exits] = []
        rows_that_left: list[Array] = []

        for stage in self.stages:
            arrays.update(stage.run(arrays))
            logits = arrays.pop(LOGITS)

            # See who is sure enough; all that come to the deepest exit leave there.
            scaled_so_far.append(logits / np.float32(stage.temperature))
            scores = self._scores(scaled_so_far)  # (inputs inside,)
            leaves = scores >= stage.threshold
            if stage is self.stages[-1]:
                leaves[:] = True
            depths = np.full(len(rows), stage.depth)
            left.append(Exits(logits[leaves], depths[leaves], scores[leaves]))
            rows_that_left.append(rows[leaves])
            if leaves.all():
                break

            # Go on with the others alone.
            if leaves.any():
                (stays,) = np.nonzero(~leaves)
                rows = rows[stays]
                arrays = self._taken(arrays, stays)
                scaled_so_far = [scaled[stays] for scaled in scaled_so_far]
        return _in_order(left, rows_that_left)

    def _scores(self, scaled_so_far: Sequence[Array]) -> Array:
        """Return the score of each input: its own, or one of those of its tokens."""
        scores = np.asarray(self.policy(scaled_so_far))
        if scores.ndim == 1:
            return scores
        by_token = scores.reshape(len(scores), -1)  # (b, tokens)
        if self.over_tokens == "least":
            return by_token.min(axis=1)
        if self.over_tokens == "mean":
            return by_token.mean(axis=1)
        return by_token[:, -1]

    def _taken(self, arrays: Mapping[str, Array], stays: Array) -> dict[str, Array]:
        """Return the arrays between stages for some of the inputs alone."""
        taken: dict[str, Array] = {}
        for name, axis in self._batch_axes.items():
            if name in arrays:
                array = arrays[name]
                taken[name] = array if axis is None else array.take(stays, axis=axis)
        return taken


def _in_order(left: Sequence[Exits], rows_that_left: Sequence[Array]) -> Exits:
    """Return what the inputs left with, in the order of the batch."""
    order = np.argsort(np.concatenate(rows_that_left))
    return Exits(
        logits=np.concatenate([each.logits for each in left])[order],
        depths=np.concatenate([each.depths for each in left])[order],
        scores=np.concatenate([each.scores for each in left])[order],
    )


def main() -> None:
    """Print what each input of a file comes to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", type=Path, help="a .npy file with inputs (b, ...)")
    folder = Path(__file__).resolve().parent
    parser.add_argument("--folder", type=Path, default=folder, help="default: that of this file")
    options = parser.parse_args()
    exits = StagedExits(options.folder)(np.load(options.inputs))
    classes = exits.logits.argmax(axis=-1)
    for label, depth, score in zip(classes, exits.depths, exits.scores, strict=True):
        print(f"class {label}, depth {depth}, score {score:.4f}")


if __name__ == "__main__":
    main()
