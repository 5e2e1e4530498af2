"""The depth card: what each depth of a net costs on one machine, and the deepest depth that fits a
budget.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from elasticnet.card.measuring import (
    Machine,
    NotMeasured,
    count_macs,
    dtype_of,
    limited_threads,
    machine_key,
    peak_memory,
    this_machine,
    time_depths,
)
from elasticnet.checkpoint import read_header, write_header
from elasticnet.wrapper import ElasticWrapper

# of times and memory: by how much one measurement differs from the next on a quiet machine
NOISE = 0.03
LARGEST = 1e300  # of any number in a card: integers beyond it cannot be divided as floats
ENOUGH_FOR_P95 = 20  # with fewer passes the 95th percentile is the slowest of them
UNITS = {"latency_ms": " ms", "memory_mb": " MB", "macs": " MACs", "psnr": " dB"}
REMEDIES = {
    "memory_mb": "measure it on Linux, macOS or CUDA, with memory=True (`elasticnet profile FILE` does)",
    "psnr": "give data to measure it on: `elasticnet profile FILE --data DIR`, or measure(..., quality=)",
}


class DepthCost(NamedTuple):
    """Cost of one depth: parameters of the truncated net, MACs by torch's own counter, latency in
    milliseconds.
    """

    depth: int
    parameters: int
    macs: int
    ms: float


def depth_costs(net: ElasticWrapper, example: Tensor, repeats: int = 5) -> list[DepthCost]:
    """Measure every depth of `net` on `example`, in eval mode without gradients; shallowest first.

    ms is the median of `repeats` runs after one to warm up, with the depths taking turns, so that a
    busy moment of the machine does not fall on one depth alone.
    """
    macs = {depth: count_macs(net, example, depth) for depth in net.taps}  # also the warm-up
    times = time_depths(net, example, repeats, warm_up=0)
    return [
        DepthCost(d, _parameters(net, d), macs[d], statistics.median(times[d])) for d in net.taps
    ]


@dataclass(frozen=True)
class DepthRow:
    """One depth of a card; None is what was not measured.

    parameters: of the truncated net. macs, latency_ms (median), latency_p95_ms, memory_mb (the
    peak, in 2**20 bytes: weights, input and all that the pass adds): of one pass.
    images_per_second, mpix_per_second (10**6 pixels of input): at the median. psnr (dB), ssim: on
    the card's data.
    """

    depth: int
    parameters: int
    macs: int
    latency_ms: float
    latency_p95_ms: float
    images_per_second: float
    mpix_per_second: float | None = None
    memory_mb: float | None = None
    psnr: float | None = None
    ssim: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            whole = field.name in ("depth", "parameters", "macs")
            kinds = int if whole else (int, float)
            least = {"depth": 1, "psnr": -LARGEST, "ssim": -1}.get(field.name, 0)
            if (
                isinstance(value, bool)
                or not isinstance(value, kinds)
                or not least <= value <= LARGEST
            ):
                expected = f"a {'whole' if whole else 'finite'} number, at least {least:g}"
                raise ValueError(
                    f"depth card: {field.name} {value!r} at depth {self.depth!r}: expected {expected}"
                )


@dataclass(frozen=True)
class DepthCard:
    """What each depth of a net costs on one machine, shallowest first, and what the numbers hang
    on.

    input_shape: of the example. repeats: passes timed at each depth. date: when, ISO 8601 in UTC.
    data: what PSNR and SSIM are means over, or None. warnings: what did not rise with depth, and
    what could not be measured.
    """

    machine: Machine
    input_shape: tuple[int, ...]
    repeats: int
    date: str
    rows: tuple[DepthRow, ...]
    data: str | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("depth card: no depths in it")
        for before, after in pairwise(self.rows):
            if after.depth <= before.depth:
                raise ValueError(
                    f"depth card: depth {after.depth} after depth {before.depth}: expected rising depths"
                )
            if after.parameters < before.parameters:
                raise ValueError(
                    f"depth card: {after.parameters} parameters at depth {after.depth}, fewer than the "
                    f"{before.parameters} of depth {before.depth}: a deeper net holds all of a shallower one's"
                )

    def row(self, depth: int) -> DepthRow:
        """Return the row of a depth; ValueError lists the depths that there are."""
        for row in self.rows:
            if row.depth == depth:
                return row
        raise ValueError(
            f"depth {depth!r}: this card has depths {', '.join(str(row.depth) for row in self.rows)}"
        )

    def depth_for(
        self,
        *,
        latency_ms: float | None = None,
        memory_mb: float | None = None,
        macs: float | None = None,
        psnr: float | None = None,
    ) -> int:
        """Return the deepest depth that fits all budgets: median latency, peak memory, MACs at
        most, PSNR at least.

        Raises ValueError where no depth fits (it says which budget the nearest depth misses, and by
        how much), without any budget, and for a budget on what the card does not hold.
        """
        given = {"latency_ms": latency_ms, "memory_mb": memory_mb, "macs": macs, "psnr": psnr}
        budgets = {name: value for name, value in given.items() if value is not None}
        if not budgets:
            raise ValueError(f"no budget given: expected at least one of {', '.join(given)}")
        for name, value in budgets.items():
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 < value < math.inf
            ):
                raise ValueError(f"{name} {value!r}: expected a number above 0")
            if any(getattr(row, name) is None for row in self.rows):
                raise ValueError(f"{name} {value:g}: the card holds no {name}; {REMEDIES[name]}")
        fitting = [row.depth for row in self.rows if not _missed(row, budgets)]
        if fitting:
            return max(fitting)
        nearest = min(self.rows, key=lambda row: max(_missed(row, budgets).values()))
        asked = " and ".join(
            f"{name} {'>=' if name == 'psnr' else '<='} {value:g}{UNITS[name]}"
            for name, value in budgets.items()
        )
        parts = []
        for name in _missed(nearest, budgets):
            value, gap = getattr(nearest, name), abs(getattr(nearest, name) - budgets[name])
            side = "too low" if name == "psnr" else "too much"
            parts.append(f"{name} {value:g}{UNITS[name]}, {gap:.3g}{UNITS[name]} {side}")
        raise ValueError(
            f"no depth fits {asked}: depth {nearest.depth} comes nearest, with {' and '.join(parts)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the card as plain dicts, lists, strings and numbers; `from_json` is its
        inverse.
        """
        value = asdict(self)
        return {
            **value,
            **{name: list(value[name]) for name in ("input_shape", "rows", "warnings")},
        }

    @classmethod
    def from_json(cls, value: Any) -> DepthCard:
        """Return the card that `to_json` described; ValueError says what is missing, unknown or of
        a wrong kind.
        """
        _check_keys(cls, value, "it")
        _check_keys(Machine, value["machine"], "machine")
        for name, kind in (("input_shape", int), ("warnings", str), ("rows", Mapping)):
            _check(isinstance(value[name], list), name, value[name], "a list")
            for entry in value[name]:
                _check(
                    isinstance(entry, kind) and not isinstance(entry, bool),
                    name,
                    entry,
                    kind.__name__,
                )
        strings = {**value["machine"], "date": value["date"]}
        threads = strings.pop("threads")
        _check(
            threads is None or _positive(threads),
            "threads",
            threads,
            "a whole number above 0, or null",
        )
        for name, entry in strings.items():
            _check(isinstance(entry, str), name, entry, "a string")
        _check(_positive(value["repeats"]), "repeats", value["repeats"], "a whole number above 0")
        _check(
            value["data"] is None or isinstance(value["data"], str),
            "data",
            value["data"],
            "a string or null",
        )
        for row in value["rows"]:
            _check_keys(DepthRow, row, "a row")
        converted = {
            "machine": Machine(**value["machine"]),
            "input_shape": tuple(value["input_shape"]),
            "rows": tuple(DepthRow(**row) for row in value["rows"]),
            "warnings": tuple(value["warnings"]),
        }
        return cls(**{**value, **converted})


def measure(
    net: ElasticWrapper,
    example: Tensor,
    *,
    repeats: int = 40,
    seconds: float = 60.0,
    threads: int | None = None,
    memory: bool = True,
    quality: Mapping[int, Sequence[float]] | None = None,
    data: str | None = None,
    progress: bool = False,
    **context: Any,
) -> DepthCard:
    """Measure every depth of `net` on this machine, on the example's device, in eval mode without
    gradients.

    example: an input of the net, with its batch; context: keyword arguments of the call. repeats:
    passes timed at each depth, the depths taking turns; fewer where these take longer than
    `seconds`. threads: of the CPU, default torch's present number. memory: on a CPU it takes a
    fresh process, some seconds. quality: {depth: (PSNR, SSIM)} for every depth, measured by the
    caller on what `data` names. Raises ValueError for arguments out of range.
    """
    for name, value in (("repeats", repeats), ("threads", threads)):
        if not (_positive(value) or (name == "threads" and value is None)):
            raise ValueError(f"{name} {value!r}: expected a whole number above 0")
    if not seconds > 0:
        raise ValueError(f"seconds {seconds!r}: expected a number above 0")
    if quality is not None and sorted(quality) != list(net.taps):
        raise ValueError(
            f"quality at depths {sorted(quality)}: expected one at each of {list(net.taps)}"
        )
    warnings, peaks = [], {}
    bar = tqdm(
        total=len(net.taps) * (1 + repeats) + memory, unit="pass", disable=not progress, leave=False
    )
    with limited_threads(threads), bar:
        machine = this_machine(example.device, dtype_of(net, example))
        macs = {}
        bar.set_description("counting")
        for depth in net.taps:
            macs[depth] = count_macs(net, example, depth, context)
            bar.update()
        bar.set_description("timing")
        times = time_depths(net, example, repeats, seconds, context, on_pass=bar.update)
        repeats = len(times[net.taps[0]])
        bar.set_description("memory")
        bar.total = len(net.taps) * (1 + repeats) + memory
        if memory:
            try:
                peaks = peak_memory(net, example, context)
            except NotMeasured as error:
                warnings.append(f"peak memory was not measured: {error}")
            bar.update()

    pixels = example.shape[0] * example.shape[2] * example.shape[3] if example.dim() == 4 else None
    rows = []
    for depth in net.taps:
        ordered = sorted(times[depth])
        median = statistics.median(ordered)
        p95 = ordered[math.ceil(0.95 * repeats) - 1]
        throughput = 1e3 * example.shape[0] / median, pixels and pixels / median / 1e3
        costs = _parameters(net, depth), macs[depth], median, p95, *throughput, peaks.get(depth)
        rows.append(DepthRow(depth, *costs, *map(float, quality[depth] if quality else ())))
    if repeats < ENOUGH_FOR_P95:
        warnings.append(
            f"p95 is of only {repeats} passes: give more repeats, and more seconds for them"
        )
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    warnings += not_rising(rows)
    return DepthCard(
        machine, tuple(example.shape), repeats, date, tuple(rows), data, tuple(warnings)
    )


def not_rising(rows: Sequence[DepthRow]) -> list[str]:
    """Return a line for each number that should rise with depth and does not from one depth to the
    next.

    Parameters and MACs have to rise; PSNR must not fall, latency and peak memory not by more than 3
    %.
    """
    found = []
    for before, after in pairwise(rows):
        for name in ("parameters", "macs", "latency_ms", "memory_mb", "psnr"):
            low, high = getattr(before, name), getattr(after, name)
            if low is None or high is None:
                continue
            tolerated = NOISE * low if name in ("latency_ms", "memory_mb") else 0
            if high < low - tolerated or (name in ("parameters", "macs") and high == low):
                how = "falls" if high < low else "does not rise"
                found.append(
                    f"{name} {how} with depth: {low:.7g} at depth {before.depth}, {high:.7g} at {after.depth}"
                )
    return found


def card_of(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
) -> DepthCard:
    """Return the card in a file (or in what `read_header` gave) that was measured on this kind of
    machine.

    The machine is this one, as it computes on `device` in `dtype` with `threads`. Raises ValueError
    where the file has no such card; the message names the machines that it has cards of, and the
    command that measures one.
    """
    is_header = isinstance(source, Mapping)
    cards: Mapping[str, Any] = (source if is_header else read_header(source)).get("cards", {})
    name, key = "this file" if is_header else str(source), machine_key(device, dtype, threads)
    if key not in cards:
        held = "; ".join(sorted(cards)) or "none"
        raise ValueError(
            f"{name}: no depth card of this machine ({key}), cards held: {held}; "
            f"measure one with `elasticnet profile {'FILE' if is_header else name}`"
        )
    try:
        card = DepthCard.from_json(cards[key])
        _check(card.machine.key == key, "machine", card.machine.key, repr(key))
    except ValueError as error:
        raise ValueError(f"{name}: its card of this machine is damaged ({error})") from error
    return card


def store_card(path: str | os.PathLike[str], card: DepthCard) -> None:
    """Write the card into a file that `save` wrote, in place of an earlier one of the same machine;
    atomic.
    """
    header = read_header(path)
    header["cards"] = {**header.get("cards", {}), card.machine.key: card.to_json()}
    write_header(path, header)


def _parameters(net: ElasticWrapper, depth: int) -> int:
    return sum(parameter.numel() for parameter in net.truncate(depth).parameters())


def _missed(row: DepthRow, budgets: Mapping[str, float]) -> dict[str, float]:
    """By which part of each budget a row misses it; those that it fits are left out."""
    over = {name: (getattr(row, name) - value) / value for name, value in budgets.items()}
    if "psnr" in over:
        over["psnr"] = -over["psnr"]
    return {name: part for name, part in over.items() if part > 0}


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _check(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"depth card: {name} {value!r}: expected {expected}")


def _check_keys(kind: Any, value: Any, name: str) -> None:
    _check(isinstance(value, Mapping), name, value, "a dict")
    wanted = {field.name for field in fields(kind)}
    for key in sorted(wanted ^ value.keys(), key=str):
        problem = "is unknown" if key in value else "is missing"
        raise ValueError(f"depth card: {key!r} {problem}: {name} has {', '.join(sorted(wanted))}")
