"""What the wrapper and the objective cost beside the same loops written by hand.

    python tests/benchmarks/bench_wrapper.py [--size tiny|large] [--rounds 41] [--calls N]
    [--json FILE]

Three tables for each of two networks, both of residual convolutions, one thread:

- passes: `net(x)` beside `nn.Sequential`, without and with a backward pass, and
  `net(x, taps=net.taps)` beside a loop that keeps features and predictions;
- steps: a whole training step (loss, backward pass, Adam) with deep supervision and
  self-distillation, the objective beside a loop in plain PyTorch for exactly this network;
- memory: what autograd keeps between the forward and the backward pass of these steps.

The rows take turns, so that a busy machine slows all of them alike. Times are those of the
processor, which other programs disturb less than the clock's; ratios are the medians of the ratios
within a round. Before all else the losses and the gradients of the two steps are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from harness import machine_name, make_parser, require_at_least, time_in_turn, write_report
from torch import Tensor, nn

from elasticnet import ElasticObjective, ElasticWrapper

PSD_WEIGHT = 1e-2
TOLERANCE = 1e-6
"""The largest relative difference of a loss or a gradient between objective and loop by hand."""


class Size(NamedTuple):
    """How large a network and its batch are.

    Attributes:
        blocks: The number of blocks, each with a tap.
        channels: Their width.
        side: Height and width of the images.
        batch: The number of images.
        calls: How often a measurement calls a pass or a step.
    """

    blocks: int
    channels: int
    side: int
    batch: int
    calls: int


SIZES = {
    # what Python does between the operations shows
    "tiny": Size(blocks=5, channels=8, side=16, batch=4, calls=20),
    # 8 residual blocks of EDSR-baseline's width, on patches of 48x48
    "large": Size(blocks=8, channels=64, side=48, batch=4, calls=1),
}


class Residual(nn.Module):
    """One convolution on a branch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.conv(x))


class Parts(NamedTuple):
    """The parts of one network, and a batch for it.

    Attributes:
        stem: The first convolution.
        blocks: The blocks.
        head: The head.
        x: The images.
        target: What they are to become.
    """

    stem: nn.Module
    blocks: nn.ModuleList
    head: nn.Module
    x: Tensor
    target: Tensor

    def sequential(self) -> nn.Sequential:
        """Return the network without taps, of the same modules."""
        return nn.Sequential(self.stem, *self.blocks, self.head)

    def wrapped(self) -> ElasticWrapper:
        """Return the elastic network, of the same modules."""
        return ElasticWrapper(self.blocks, self.head, self.stem)

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters."""
        return list(self.sequential().parameters())


def make_parts(size: Size) -> Parts:
    """Return a network and a batch, the same ones in each call."""
    torch.manual_seed(0)
    return Parts(
        stem=nn.Conv2d(3, size.channels, 3, padding=1),
        blocks=nn.ModuleList([Residual(size.channels) for _ in range(size.blocks)]),
        head=nn.Conv2d(size.channels, 3, 3, padding=1),
        x=torch.rand(size.batch, 3, size.side, size.side),
        target=torch.rand(size.batch, 3, size.side, size.side),
    )


# --- the loops by hand


def taps_by_hand(parts: Parts) -> tuple[list[Tensor], list[Tensor]]:
    """Return the features and the predictions behind each block."""
    x = parts.stem(parts.x)
    features: list[Tensor] = []
    predictions: list[Tensor] = []
    for block in parts.blocks:
        x = block(x)
        features.append(x)
        predictions.append(parts.head(x))
    return features, predictions


def loss_by_hand(parts: Parts) -> Tensor:
    """Return the sum of the taps' L1 losses and lambda L_PSD, as one writes it for one network."""
    features, predictions = taps_by_hand(parts)
    total = F.l1_loss(predictions[-1], parts.target)
    for prediction in predictions[:-1]:
        total = total + F.l1_loss(prediction, parts.target)

    # (b, c, h, w) -> (b, h w), of unit norm
    maps = [F.normalize(each.abs().sum(dim=1).flatten(1), eps=1e-4) for each in features]
    for student, teacher in pairwise(maps):
        distances = torch.linalg.vector_norm(student - teacher.detach(), dim=1)  # (b,)
        total = total + PSD_WEIGHT * distances.mean()
    return total


def step_of(parameters: list[nn.Parameter], loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Return a training step: loss, backward pass, Adam."""
    optimizer = torch.optim.Adam(parameters, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


# --- tables


def check_same(size: Size) -> None:
    """Raise unless the objective and the loop by hand have the same loss and gradients."""
    gradients: list[list[Tensor]] = []
    for loss_of in (loss_by_hand, loss_of_objective):
        parts = make_parts(size)
        total = loss_of(parts)
        total.backward()
        of_parts = [parameter.grad for parameter in parts.parameters()]
        gradients.append([total.detach(), *[each for each in of_parts if each is not None]])
    for by_hand, ours in zip(*gradients, strict=True):
        difference = float((by_hand - ours).norm() / by_hand.norm())
        if difference > TOLERANCE:
            raise ValueError(f"objective and loop by hand differ by {difference:.1e}")


def loss_of_objective(parts: Parts) -> Tensor:
    """Return the loss of an objective with the same terms."""
    objective = ElasticObjective(parts.wrapped(), nn.L1Loss(), psd_weight=PSD_WEIGHT)
    return objective(parts.x, parts.target).total


def passes(size: Size) -> dict[str, Callable[[], object]]:
    """Return the passes: each one by hand, and behind it our own."""
    parts = make_parts(size)
    sequential = parts.sequential()
    net = parts.wrapped()
    x = parts.x

    def without_gradients(function: Callable[[], object]) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad():
                return function()

        return call

    def with_backward(module: nn.Module) -> Callable[[], object]:
        def call() -> None:
            module(x).sum().backward()

        return call

    return {
        "forward: nn.Sequential": without_gradients(lambda: sequential(x)),
        "forward: net(x)": without_gradients(lambda: net(x)),
        "forward and backward: nn.Sequential": with_backward(sequential),
        "forward and backward: net(x)": with_backward(net),
        "forward of all taps: by hand": without_gradients(lambda: taps_by_hand(parts)),
        "forward of all taps: net(x, taps=net.taps)": without_gradients(
            lambda: net(x, taps=net.taps)
        ),
    }


def steps(size: Size) -> dict[str, Callable[[], object]]:
    """Return the training steps: by hand, and with the objective."""
    by_hand = make_parts(size)
    own = make_parts(size)
    objective = ElasticObjective(own.wrapped(), nn.L1Loss(), psd_weight=PSD_WEIGHT)
    return {
        "step: by hand": step_of(by_hand.parameters(), lambda: loss_by_hand(by_hand)),
        "step: ElasticObjective": step_of(
            own.parameters(), lambda: objective(own.x, own.target).total
        ),
    }


def kept_bytes(parts: Parts, loss_of: Callable[[Parts], Tensor]) -> int:
    """Return the bytes that autograd keeps for the backward pass, without weights and batch."""
    given = [parts.x, parts.target, *parts.parameters()]
    addresses_given = {each.untyped_storage().data_ptr() for each in given}
    kept: dict[int, Tensor] = {}  # held here, so that no address is used again

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(parts)
    return sum(
        tensor.untyped_storage().nbytes()
        for address, tensor in kept.items()
        if address not in addresses_given
    )


def loss_at_the_end(parts: Parts) -> Tensor:
    """Return the loss of the deepest prediction alone, as of a network without taps."""
    return F.l1_loss(parts.sequential()(parts.x), parts.target)


KEPT_BY = {
    "one prediction, no taps": loss_at_the_end,
    "by hand": loss_by_hand,
    "ElasticObjective": loss_of_objective,
}


def print_times(seconds: dict[str, list[float]]) -> None:
    """Print a table in which each second row is compared with the one before."""
    print("| | ms | times by hand | µs more |")
    print("| --- | ---: | ---: | ---: |")
    names = list(seconds)
    for by_hand, own in zip(names[::2], names[1::2], strict=True):
        pairs = list(zip(seconds[own], seconds[by_hand], strict=True))
        ratio = statistics.median(ours / hand for ours, hand in pairs)
        more = 1e6 * statistics.median(ours - hand for ours, hand in pairs)
        print(f"| {by_hand} | {1000 * statistics.median(seconds[by_hand]):.3f} | 1 | |")
        print(
            f"| {own} | {1000 * statistics.median(seconds[own]):.3f} | {ratio:.3f} | {more:.0f} |"
        )


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Print the tables of one network, and return their numbers."""
    size = SIZES[name]
    check_same(size)
    calls = size.calls if options.calls is None else options.calls
    seconds: dict[str, list[float]] = {}
    for cases in (passes(size), steps(size)):
        seconds |= time_in_turn(
            cases, options.rounds, warm_up=3, calls=calls, clock=time.process_time
        )
    kept = {row: kept_bytes(make_parts(size), loss_of) for row, loss_of in KEPT_BY.items()}

    print(
        f"\n{name}: {size.blocks} blocks of {size.channels} channels, "
        f"{size.batch} images of {size.side}x{size.side}\n"
    )
    print_times(seconds)
    print("\n| kept for the backward pass | MB |")
    print("| --- | ---: |")
    for row, count in kept.items():
        print(f"| {row} | {count / 1e6:.3f} |")
    return {"seconds": seconds, "kept_bytes": kept}


def main() -> None:
    """Print the tables, and write them to --json."""
    parser = make_parser(__doc__)
    parser.add_argument("--size", choices=list(SIZES), help="one of the networks; default: both")
    parser.add_argument("--rounds", type=int, default=41, help="measurements that count")
    parser.add_argument("--calls", type=int, help="calls in one measurement; default: by the size")
    options = parser.parse_args()
    require_at_least(parser, options, 1, "rounds")

    torch.set_num_threads(1)
    print(machine_name())
    names = list(SIZES) if options.size is None else [options.size]
    numbers = {name: measure(name, options) for name in names}
    write_report(options, machine_name(), **numbers)


if __name__ == "__main__":
    main()
