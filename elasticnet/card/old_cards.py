"""Cards of earlier formats as cards of the present one, the third.

The first format, which had no number, had no list of metrics: each metric was a number of the row,
null where it was not measured, and so was each throughput, `UNIT_per_second`. Memory was in 2**20
bytes. The second format had no spread of the times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

MB_PER_OLD_MB = 2**20 / 10**6
PER_SECOND = "_per_second"
NOT_METRICS = ("depth", "parameters", "macs", "latency_ms", "latency_p95_ms", "memory_mb")


def upgraded(card: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the JSON of a card as the present format writes it.

    What is damaged, or of a newer format, stays as it is: whoever reads the result refuses it.

    Args:
        card: The JSON of a card of any format.
    """
    if card.get("format") is None:
        card = _from_first_to_second(card)
    if card.get("format") == 2:
        card = _from_second_to_third(card)
    return card


def _from_second_to_third(old: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card whose rows have no spread of the times as cards have it where it is unknown."""
    card: dict[str, Any] = {**old, "format": 3}
    rows = old.get("rows")
    if _are_objects(rows):
        card["rows"] = [{"latency_spread_ms": None, **row} for row in rows]
    return card


def _from_first_to_second(old: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card with a list of metrics and with memory in 10**6 bytes."""
    card: dict[str, Any] = {**old, "format": 2, "per_pass": {}, "metrics": []}
    rows = old.get("rows")
    if _are_objects(rows) and rows:
        names = _metrics_of(rows)
        card["metrics"] = [_plain_metric(name) for name in names]
        card["per_pass"] = _per_pass(rows[0])
        card["rows"] = [_upgraded_row(row, names) for row in rows]
    warnings = old.get("warnings")
    if _is_list(warnings):
        card["warnings"] = [_upgraded_warning(warning) for warning in warnings]
    return card


def _metrics_of(rows: list[dict[str, Any]]) -> list[str]:
    """Return the names of what was measured at every depth and is no cost and no throughput."""
    names: list[str] = []
    for name in rows[0]:
        is_metric = name not in NOT_METRICS and not name.endswith(PER_SECOND)
        if is_metric and all(row.get(name) is not None for row in rows):
            names.append(name)
    return names


def _plain_metric(name: str) -> dict[str, Any]:
    """Return the JSON of a metric that has nothing but a name."""
    return {"name": name, "title": "", "unit": "", "decimals": None, "lower_is_better": False}


def _per_pass(row: dict[str, Any]) -> dict[str, float]:
    """Return what one pass takes in, by unit, from the throughputs of a row."""
    amounts: dict[str, float] = {}
    latency_ms = row.get("latency_ms")
    for name, per_second in row.items():
        if name.endswith(PER_SECOND) and _is_number(per_second) and _is_number(latency_ms):
            amount = per_second * latency_ms / 1e3
            amounts[name.removesuffix(PER_SECOND)] = float(f"{amount:.12g}")  # 0.99...9 is 1
    return amounts


def _upgraded_row(row: dict[str, Any], metrics: list[str]) -> dict[str, Any]:
    """Return a row with its metrics apart, without throughputs, and with memory in 10**6 bytes."""
    upgraded_row = {name: row[name] for name in NOT_METRICS if name in row}
    memory = upgraded_row.get("memory_mb")
    if _is_number(memory):
        upgraded_row["memory_mb"] = memory * MB_PER_OLD_MB
    upgraded_row["quality"] = {name: row[name] for name in metrics}
    return upgraded_row


def _upgraded_warning(warning: Any) -> Any:
    """Return a warning; one of memory has its numbers in it, and says of what they are."""
    if isinstance(warning, str) and warning.startswith("memory_mb "):
        return f"{warning} (in 2**20 bytes)"
    return warning


def _are_objects(values: Any) -> TypeGuard[list[dict[str, Any]]]:
    return _is_list(values) and all(isinstance(value, dict) for value in values)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
