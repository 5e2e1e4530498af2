"""A depth card as data: rows of measured numbers, the choice of a depth, and JSON; no torch."""

from __future__ import annotations

import keyword
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any, NamedTuple

from elasticnet.card.machine import Machine
from elasticnet.card.old_cards import upgraded

FORMAT = 3  # of a card's JSON
LARGEST = 1e300  # of any number in a card: integers beyond it cannot be divided as floats
NOISE = 0.03  # part by which times and memory differ from one measurement to the next
COSTS = {"latency_ms": "ms", "memory_mb": "MB", "macs": "MACs"}  # budgets, with their units
# no names of metrics
RESERVED = {"depth", "parameters", "latency_spread_ms", "latency_p95_ms", "quality", *COSTS}


@dataclass(frozen=True)
class Metric:
    """One measure of how good a depth is, and how its numbers are shown.

    Attributes:
        name: Its key in `quality` and its argument of `depth_for`: an identifier, and none of the
            costs' names.
        title: Of its column; "" shows the name.
        unit: Of its numbers, such as "dB"; "" for none.
        decimals: That a table shows; None shows four significant digits.
        lower_is_better: Whether smaller numbers are better, as for an error.

    Raises:
        ValueError: The name cannot be used.
    """

    name: str
    title: str = ""
    unit: str = ""
    decimals: int | None = None
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        is_name = self.name.isidentifier() and not keyword.iskeyword(self.name)
        if not is_name or self.name in RESERVED:
            raise ValueError(
                f"metric {self.name!r}: expected an identifier, "
                f"and none of {', '.join(sorted(RESERVED))}"
            )

    @property
    def heading(self) -> str:
        """The column's title, with the unit."""
        title = self.title or self.name
        return f"{title} ({self.unit})" if self.unit else title

    def is_worse(self, value: float, than: float) -> bool:
        """Return whether a number is worse than another one.

        Args:
            value: The number.
            than: The other one.
        """
        return value > than if self.lower_is_better else value < than


@dataclass(frozen=True, kw_only=True)
class DepthRow:
    """One depth of a card.

    Attributes:
        depth: The depth.
        parameters: Of the truncated net.
        macs: Multiply-accumulates of one pass.
        latency_ms: Of one pass, in milliseconds; the median.
        latency_p95_ms: The 95th percentile of the same.
        latency_spread_ms: Half the distance between the quartiles of the same. None of fewer than
            three passes, and in cards of earlier versions.
        memory_mb: The peak of one pass, in 10**6 bytes: weights, input and all that the pass adds.
            None where it was not measured.
        quality: How good this depth is on the card's data, by the metrics' names.

    Raises:
        ValueError: A number is of a wrong kind or out of range.
    """

    depth: int
    parameters: int
    macs: int
    latency_ms: float
    latency_p95_ms: float
    latency_spread_ms: float | None = None
    memory_mb: float | None = None
    quality: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        self._check_number("depth", self.depth, is_whole=True, least=1)
        self._check_number("parameters", self.parameters, is_whole=True)
        self._check_number("macs", self.macs, is_whole=True)
        self._check_number("latency_ms", self.latency_ms)
        self._check_number("latency_p95_ms", self.latency_p95_ms)
        if self.latency_spread_ms is not None:
            self._check_number("latency_spread_ms", self.latency_spread_ms)
        if self.memory_mb is not None:
            self._check_number("memory_mb", self.memory_mb)
        for name, value in self.quality.items():
            self._check_number(name, value, least=-LARGEST)

    def value_of(self, name: str) -> float | None:
        """Return one number of the row; None where it was not measured.

        Args:
            name: A cost or a metric.
        """
        if name in COSTS:
            return getattr(self, name)
        return self.quality.get(name)

    def _check_number(
        self, name: str, value: Any, *, is_whole: bool = False, least: float = 0
    ) -> None:
        kinds = int if is_whole else (int, float)
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if is_number and least <= value <= LARGEST:
            return
        expected = "a whole number" if is_whole else "a finite number"
        if least > -LARGEST:
            expected = f"{expected}, at least {least:g}"
        raise ValueError(
            f"depth card: {name} {value!r} at depth {self.depth!r}: expected {expected}"
        )


class Budget(NamedTuple):
    """A limit of one number of a row.

    Attributes:
        name: Of the number.
        limit: What it may be at most, or at least.
        unit: Of both; "" for none.
        is_minimum: Whether the limit is one from below.
        too_far: What a number beyond the limit is called, such as "too much".
    """

    name: str
    limit: float
    unit: str
    is_minimum: bool
    too_far: str

    def excess(self, row: DepthRow) -> float:
        """Return by how much a row misses the budget; 0 or less where it fits.

        Args:
            row: With this number measured.
        """
        value = row.value_of(self.name)
        assert value is not None  # looked at when the budget was made
        return self.limit - value if self.is_minimum else value - self.limit

    def missed_part(self, row: DepthRow) -> float:
        """Return the excess as a part of the limit, so that different budgets can be compared.

        Args:
            row: With this number measured.
        """
        return self.excess(row) / (abs(self.limit) or 1.0)

    def shown(self, value: float) -> str:
        """Return a number with the budget's unit.

        Args:
            value: The number.
        """
        return f"{value:g} {self.unit}".rstrip()


@dataclass(frozen=True, kw_only=True)
class DepthCard:
    """What each depth of a net costs on one machine, and what the numbers depend on.

    Attributes:
        machine: On which it was measured.
        input_shape: Of the example.
        repeats: Passes timed at each depth.
        date: When, ISO 8601 in UTC.
        rows: One for each depth, shallowest first.
        per_pass: What one pass takes in, by unit, such as `{"samples": 16}`; the throughput is
            shown in these units a second.
        metrics: What `quality` of the rows holds.
        data: On what the quality was measured; None without.
        warnings: What did not rise with depth, and what could not be measured.

    Raises:
        ValueError: There are no rows, depths or parameters do not rise, or the rows' quality is not
            that of the metrics.
    """

    machine: Machine
    input_shape: tuple[int, ...]
    repeats: int
    date: str
    rows: tuple[DepthRow, ...]
    per_pass: Mapping[str, float] = field(default_factory=dict[str, float])
    metrics: tuple[Metric, ...] = ()
    data: str | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("depth card: no depths in it")
        for before, after in pairwise(self.rows):
            if after.depth <= before.depth:
                raise ValueError(
                    f"depth card: depth {after.depth} after depth {before.depth}: "
                    "expected rising depths"
                )
            if after.parameters < before.parameters:
                raise ValueError(
                    f"depth card: {after.parameters} parameters at depth {after.depth}, "
                    f"fewer than the {before.parameters} of depth {before.depth}: "
                    "a deeper net holds all of a shallower one's"
                )
        names = [metric.name for metric in self.metrics]
        for row in self.rows:
            if sorted(row.quality) != sorted(names):
                raise ValueError(
                    f"depth card: quality at depth {row.depth} by {sorted(row.quality)}: "
                    f"expected {sorted(names)}"
                )

    def row(self, depth: int) -> DepthRow:
        """Return the row of a depth.

        Args:
            depth: One of the card's depths.

        Raises:
            ValueError: The card has no such depth; the message lists those it has.
        """
        for row in self.rows:
            if row.depth == depth:
                return row
        listed = ", ".join(str(row.depth) for row in self.rows)
        raise ValueError(f"depth {depth!r}: this card has depths {listed}")

    def depth_for(
        self,
        *,
        latency_ms: float | None = None,
        memory_mb: float | None = None,
        macs: float | None = None,
        **quality: float | None,
    ) -> int:
        """Return the deepest depth that fits all budgets that are given.

        Args:
            latency_ms: The median latency may be so many milliseconds.
            memory_mb: The peak memory may be so many MB (10**6 bytes).
            macs: A pass may take so many multiply-accumulates.
            **quality: A metric of the card must be at least this, or at most this where lower is
                better.

        Raises:
            ValueError: No depth fits (the message says which budget the nearest depth misses, and
                by how much), no budget is given, or the card does not hold what one is for.

        Example:
            `card.depth_for(latency_ms=20, accuracy=0.5)`
        """
        limits = {"latency_ms": latency_ms, "memory_mb": memory_mb, "macs": macs, **quality}
        budgets = [self._budget(name, limit) for name, limit in limits.items() if limit is not None]
        if not budgets:
            names = [*COSTS, *(metric.name for metric in self.metrics)]
            raise ValueError(f"no budget given: expected at least one of {', '.join(names)}")
        for row in reversed(self.rows):
            if all(budget.excess(row) <= 0 for budget in budgets):
                return row.depth
        raise ValueError(self._no_fit(budgets))

    def to_json(self) -> dict[str, Any]:
        """Return the card as plain dicts, lists, strings and numbers; `from_json` reads it."""
        return {
            "format": FORMAT,
            "machine": asdict(self.machine),
            "input_shape": list(self.input_shape),
            "repeats": self.repeats,
            "date": self.date,
            "per_pass": dict(self.per_pass),
            "metrics": [asdict(metric) for metric in self.metrics],
            "data": self.data,
            "rows": [{**asdict(row), "quality": dict(row.quality)} for row in self.rows],
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, value: Any) -> DepthCard:
        """Return the card that `to_json` described, also one of an earlier format.

        Args:
            value: What a file or a JSON text held.

        Raises:
            ValueError: Something is missing, unknown, of a wrong kind, or of a newer format.
        """
        return _card_from_json(value)

    def _budget(self, name: str, limit: Any) -> Budget:
        """Return a budget that was given, checked to be for something that the card holds."""
        metric = next((metric for metric in self.metrics if metric.name == name), None)
        is_number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if name in COSTS and not (is_number and 0 < limit < math.inf):
            raise ValueError(f"{name} {limit!r}: expected a number above 0")
        if not (is_number and math.isfinite(limit)):
            raise ValueError(f"{name} {limit!r}: expected a finite number")
        if any(row.value_of(name) is None for row in self.rows):
            raise ValueError(f"{name} {limit:g}: the card holds no {name}; {_remedy(name)}")
        if name == "macs":
            self._check_macs(limit)
        if metric is None:
            return Budget(name, limit, COSTS[name], is_minimum=False, too_far="too much")
        if metric.lower_is_better:
            return Budget(name, limit, metric.unit, is_minimum=False, too_far="too high")
        return Budget(name, limit, metric.unit, is_minimum=True, too_far="too low")

    def _check_macs(self, limit: float) -> None:
        """Refuse a budget of multiply-accumulates where a deeper depth does not take more of them.

        Its blocks compute something, so what they compute was not counted.
        """
        for before, after in pairwise(self.rows):
            problem = _not_more("macs", before, after)
            if problem is not None:
                raise ValueError(
                    f"macs {limit:g}: {problem}, so that they do not say what a depth costs; "
                    "give latency_ms or memory_mb"
                )

    def _no_fit(self, budgets: Sequence[Budget]) -> str:
        """Return what is said where no depth fits."""

        def largest_miss(row: DepthRow) -> float:
            return max(budget.missed_part(row) for budget in budgets)

        nearest = min(self.rows, key=largest_miss)
        asked: list[str] = []
        missed: list[str] = []
        for budget in budgets:
            sign = ">=" if budget.is_minimum else "<="
            asked.append(f"{budget.name} {sign} {budget.shown(budget.limit)}")
            excess = budget.excess(nearest)
            if excess > 0:
                value = budget.shown(nearest.value_of(budget.name) or 0.0)
                gap = budget.shown(float(f"{excess:.3g}"))
                missed.append(f"{budget.name} {value}, {gap} {budget.too_far}")
        return (
            f"no depth fits {' and '.join(asked)}: depth {nearest.depth} comes nearest, "
            f"with {' and '.join(missed)}"
        )


def not_rising(rows: Sequence[DepthRow], metrics: Sequence[Metric] = ()) -> list[str]:
    """Return a line for each number that should rise with depth and does not.

    Parameters and MACs have to rise from each depth to the next; a metric must not get worse;
    latency and peak memory must not fall by more than 3 %.

    Args:
        rows: Of a card, shallowest first.
        metrics: Of the same card.
    """
    found: list[str] = []
    for before, after in pairwise(rows):
        found += _not_rising(before, after, metrics)
    return found


def _not_rising(before: DepthRow, after: DepthRow, metrics: Sequence[Metric]) -> Iterator[str]:
    """Yield the lines of `not_rising` for two neighbouring depths."""
    for name in ("parameters", "macs"):
        problem = _not_more(name, before, after)
        if problem is not None:
            yield problem
    for name in ("latency_ms", "memory_mb"):
        low, high = before.value_of(name), after.value_of(name)
        if low is None or high is None:
            continue
        if high < low - NOISE * low:
            yield _line(f"{name} falls", before, low, after, high)
    for metric in metrics:
        low, high = before.quality[metric.name], after.quality[metric.name]
        if metric.is_worse(high, than=low):
            verb = "rises" if metric.lower_is_better else "falls"
            yield _line(f"{metric.name} {verb}", before, low, after, high)


def _not_more(name: str, before: DepthRow, after: DepthRow) -> str | None:
    """Return what is said if the deeper of two depths has no more of something; None if it has."""
    low, high = getattr(before, name), getattr(after, name)
    if high > low:
        return None
    verb = "falls" if high < low else "does not rise"
    return _line(f"{name} {verb}", before, low, after, high)


def _line(problem: str, before: DepthRow, low: float, after: DepthRow, high: float) -> str:
    return f"{problem} with depth: {low:.7g} at depth {before.depth}, {high:.7g} at {after.depth}"


def _remedy(name: str) -> str:
    """Return how a card comes to hold a number."""
    if name == "memory_mb":
        return (
            "measure it on Linux, macOS or CUDA, with memory=True (`elasticnet profile FILE` does)"
        )
    return (
        "give data to measure it on: `elasticnet profile FILE --data DIR`, "
        "or measure(..., quality=)"
    )


# --- JSON


def _card_from_json(value: Any) -> DepthCard:
    """Return the card in a JSON value; see `DepthCard.from_json`."""
    _check(isinstance(value, Mapping), "it", value, "a dict")
    value = upgraded(value)
    number = value.get("format")
    if number != FORMAT:
        raise ValueError(
            f"depth card: format {number!r}, and this version reads up to {FORMAT}: "
            "update elasticnet"
        )
    names = [field.name for field in fields(DepthCard)]
    _check_keys(value, ["format", *names], "it")
    _check_texts(value)
    _check(_is_positive(value["repeats"]), "repeats", value["repeats"], "a whole number above 0")
    for name, kind in (
        ("input_shape", int),
        ("warnings", str),
        ("rows", Mapping),
        ("metrics", Mapping),
    ):
        _check_list(name, value[name], kind)
    return DepthCard(
        machine=_machine_from_json(value["machine"]),
        input_shape=tuple(value["input_shape"]),
        repeats=value["repeats"],
        date=value["date"],
        rows=tuple(_row_from_json(row) for row in value["rows"]),
        per_pass=_numbers_from_json("per_pass", value["per_pass"]),
        metrics=tuple(_metric_from_json(metric) for metric in value["metrics"]),
        data=value["data"],
        warnings=tuple(value["warnings"]),
    )


def _check_texts(value: Mapping[str, Any]) -> None:
    """Refuse a date or data that are no text."""
    _check(isinstance(value["date"], str), "date", value["date"], "a string")
    data = value["data"]
    _check(data is None or isinstance(data, str), "data", data, "a string or null")


def _machine_from_json(value: Any) -> Machine:
    names = [field.name for field in fields(Machine)]
    _check_keys(value, names, "machine")
    threads = value["threads"]
    _check(
        threads is None or _is_positive(threads),
        "threads",
        threads,
        "a whole number above 0, or null",
    )
    for name in names:
        if name != "threads":
            _check(isinstance(value[name], str), name, value[name], "a string")
    return Machine(**value)


def _row_from_json(value: Any) -> DepthRow:
    _check_keys(value, [field.name for field in fields(DepthRow)], "a row")
    quality: Any = value["quality"]
    _check(isinstance(quality, Mapping), "quality", quality, "a dict")
    fields_of_row: dict[str, Any] = {**value, "quality": dict(quality)}
    return DepthRow(**fields_of_row)


def _metric_from_json(value: Any) -> Metric:
    _check_keys(value, [field.name for field in fields(Metric)], "a metric")
    for name in ("name", "title", "unit"):
        _check(isinstance(value[name], str), name, value[name], "a string")
    decimals = value["decimals"]
    is_count = type(decimals) is int and 0 <= decimals <= 20
    _check(decimals is None or is_count, "decimals", decimals, "a whole number to 20, or null")
    lower = value["lower_is_better"]
    _check(isinstance(lower, bool), "lower_is_better", lower, "true or false")
    return Metric(**value)


def _numbers_from_json(name: str, value: Any) -> dict[str, float]:
    _check(isinstance(value, Mapping), name, value, "a dict")
    for unit, number in value.items():
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
        fits = is_number and 0 < number <= LARGEST
        _check(fits, f"{name} {unit!r}", number, "a number above 0")
    return dict(value)


def _check_list(name: str, value: Any, kind: type) -> None:
    """Refuse what is not a list of values of one kind."""
    _check(isinstance(value, list), name, value, "a list")
    for entry in value:
        is_kind = isinstance(entry, kind) and not isinstance(entry, bool)
        _check(is_kind, name, entry, kind.__name__)


def _check_keys(value: Any, wanted: Sequence[str], name: str) -> None:
    """Refuse a dict that lacks a key or has one too many."""
    _check(isinstance(value, Mapping), name, value, "a dict")
    listed = ", ".join(sorted(wanted))
    for key in wanted:
        if key not in value:
            raise ValueError(f"depth card: {key!r} is missing: {name} has {listed}")
    for key in value:
        if key not in wanted:
            raise ValueError(f"depth card: {key!r} is unknown: {name} has {listed}")


def _check(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"depth card: {name} {value!r}: expected {expected}")


def _is_positive(value: Any) -> bool:
    return type(value) is int and value > 0
