"""The memory of a step with a head over a large vocabulary, with and without checkpoint_head.

    python tests/benchmarks/bench_checkpoint_head.py
    python tests/benchmarks/bench_checkpoint_head.py --vocabulary 32000 --out memory.json

Counts the bytes of all tensors that are alive at once, forward and backward pass together, without
the weights and their gradients; and times steps, alternating between the cases. The counted bytes
are the same on every machine; times are of this one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import weakref
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elasticnet import ElasticObjective, ElasticWrapper


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.most = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(returned):
            if isinstance(leaf, Tensor):
                self.count(leaf.untyped_storage())
        return returned

    def count(self, storage: Any) -> None:
        """Count a storage until it is freed."""
        key = storage._cdata
        if key in self.sizes:  # a view, or an operation in place
            return
        self.sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        """Take a storage that was freed out of the count."""
        self.now -= self.sizes.pop(key, 0)


def language_model(options: argparse.Namespace) -> ElasticWrapper:
    """Return a small transformer over tokens."""
    torch.manual_seed(0)
    blocks = [
        nn.TransformerEncoderLayer(
            options.width, nhead=4, dim_feedforward=4 * options.width, batch_first=True, dropout=0
        )
        for _ in range(options.blocks)
    ]
    head = nn.Linear(options.width, options.vocabulary)
    stem = nn.Embedding(options.vocabulary, options.width)
    return ElasticWrapper(blocks, head, stem, layout="b n c")


def token_loss(prediction: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(prediction.flatten(0, 1), target.flatten())


def make_cases(options: argparse.Namespace) -> dict[str, ElasticObjective]:
    """Return an objective for each case by its name."""
    net = language_model(options)
    one_tap = net.with_taps([-1])
    return {
        "the deepest tap alone": ElasticObjective(one_tap, token_loss, psd_weight=0),
        "all taps": ElasticObjective(net, token_loss, psd_weight=0),
        "all taps, checkpoint_head": ElasticObjective(
            net, token_loss, psd_weight=0, checkpoint_head=True
        ),
    }


def peak_bytes(objective: ElasticObjective, tokens: Tensor) -> int:
    """Return the most bytes alive in a step, without those of the gradients of weights."""
    objective.zero_grad(set_to_none=True)
    objective(tokens, tokens).total.backward()  # so that gradients are there already
    with LiveBytes() as live:
        objective(tokens, tokens).total.backward()
    return live.most


def step_seconds(objective: ElasticObjective, tokens: Tensor) -> float:
    objective.zero_grad(set_to_none=True)
    start = time.perf_counter()
    objective(tokens, tokens).total.backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description="The memory and time of a step with a head over a large vocabulary."
    )
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="tokens of a sample")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    torch.manual_seed(0)
    tokens = torch.randint(options.vocabulary, (options.batch, options.length))
    cases = make_cases(options)

    megabytes = {name: peak_bytes(each, tokens) / 1e6 for name, each in cases.items()}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.repeats):
        for name, objective in cases.items():
            times[name].append(step_seconds(objective, tokens))
    seconds = {name: statistics.median(each) for name, each in times.items()}

    first = next(iter(cases))
    print(f"{'':28} {'MB':>8} {'ratio':>6} {'s/step':>8} {'ratio':>6}")
    for name in cases:
        memory_ratio = megabytes[name] / megabytes[first]
        time_ratio = seconds[name] / seconds[first]
        print(
            f"{name:28} {megabytes[name]:8.1f} {memory_ratio:6.2f} {seconds[name]:8.3f} "
            f"{time_ratio:6.2f}"
        )
    if options.out is not None:
        sizes = {name: value for name, value in vars(options).items() if name != "out"}
        numbers = {"options": sizes, "megabytes": megabytes, "seconds": seconds}
        options.out.write_text(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
