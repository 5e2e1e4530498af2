"""Choose temperatures and thresholds of an exit rule on inputs that were not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from elasticnet.exits.policies import Policy, confidence, entropy, margin
from elasticnet.exits.rule import ExitRule, OverTokens
from elasticnet.exits.splits import check_apart
from elasticnet.taps import resolve_depths
from elasticnet.wrapper import ElasticWrapper

# How many scores are tried as the threshold of a tap, evenly spread over those that occur.
NUM_CANDIDATES = 64
# How often the threshold of each tap is tried anew, given those of the others.
NUM_ROUNDS = 2
# Between these a temperature is sought.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0
# What sums of shares may differ by, though they are equal.
ROUNDING = 1e-9
# Targets that do not count, as in torch.nn.functional.cross_entropy.
IGNORED = -100


class TapLogits(NamedTuple):
    """The logits of every input of a set at every tap.

    Attributes:
        depths: The taps, shallowest first.
        logits: The logits (n, ..., classes) at each of them, on the CPU.
        targets: The right classes (n, ...), on the CPU.
    """

    depths: tuple[int, ...]
    logits: tuple[Tensor, ...]
    targets: Tensor


class Outcome(NamedTuple):
    """What a rule comes to on a set of inputs.

    Attributes:
        accuracy: The share of right predictions, 0 to 1.
        full_accuracy: That of the deepest tap.
        mean_depth: The mean over the inputs of the depth where each leaves.
        mean_cost: The same of the costs.
        shares: Which share of the inputs leaves at each depth, by depth.
    """

    accuracy: float
    full_accuracy: float
    mean_depth: float
    mean_cost: float
    shares: dict[int, float]


class Calibration(NamedTuple):
    """A rule that was chosen, and what it comes to on the inputs that it was chosen on.

    Attributes:
        rule: For `ExitRunner`.
        outcome: On these inputs. On others it is something near it; how near depends on their
            number.
    """

    rule: ExitRule
    outcome: Outcome


def collect_logits(
    net: ElasticWrapper, batches: Iterable[tuple[Any, ...]], depths: Sequence[int] | None = None
) -> TapLogits:
    """Run a net over a set, and keep its predictions at every tap.

    Args:
        net: In eval mode.
        batches: Pairs of inputs (b, ...) and right classes (b, ...), on the net's device; or
            triples, with the net's keyword arguments as a mapping.
        depths: The taps whose predictions are kept. None: all.

    Returns:
        The logits, on the CPU.

    Raises:
        ValueError: The net is in training mode, there is no batch, or targets do not fit the
            logits.

    Example:
        `collect_logits(net, validation_loader)`
    """
    if net.training:
        raise ValueError("the net is in training mode, where dropout acts: call net.eval()")
    chosen = resolve_depths(depths, net.taps)
    by_batch: list[tuple[Tensor, ...]] = []
    targets: list[Tensor] = []
    for x, target, *rest in batches:
        keywords: Mapping[str, Any] = rest[0] if rest else {}
        with torch.no_grad():
            taps = net.forward_taps(x, chosen, **keywords)
        for depth, logits in zip(chosen, taps.predictions, strict=True):
            if logits.shape[:-1] != target.shape:
                raise ValueError(
                    f"targets of shape {tuple(target.shape)} for logits of shape "
                    f"{tuple(logits.shape)} at depth {depth}: expected a class for each prediction"
                )
        by_batch.append(tuple(logits.cpu() for logits in taps.predictions))
        targets.append(target.cpu())
    if not by_batch:
        raise ValueError("batches is empty: expected pairs of inputs and right classes")
    logits_by_tap = zip(*by_batch, strict=True)
    return TapLogits(
        depths=chosen,
        logits=tuple(torch.cat(batches_of_tap) for batches_of_tap in logits_by_tap),
        targets=torch.cat(targets),
    )


def fit_temperatures(collected: TapLogits) -> dict[int, float]:
    """Return what the logits of each tap must be divided by to give the likeliest probabilities.

    Each tap is a classifier of its own, and the shallow ones are as a rule less sure than the deep
    ones are. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".

    Args:
        collected: The logits of inputs that were not trained on.

    Returns:
        The temperature at each depth that makes the mean cross-entropy smallest, from 1/100 to 100.
    """
    temperatures: dict[int, float] = {}
    for depth, logits in zip(collected.depths, collected.logits, strict=True):
        classes = logits.flatten(0, -2).double()  # (predictions, classes)
        targets = collected.targets.flatten()
        temperatures[depth] = _best_temperature(classes, targets)
    return temperatures


def _best_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature with the smallest cross-entropy, by golden-section search.

    The cross-entropy is convex in the inverse temperature, so it falls and then rises in the
    logarithm of the temperature, too.
    """

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        return F.cross_entropy(scaled, targets, ignore_index=IGNORED).item()

    lowest, highest = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    return math.exp(_lowest(loss, low=lowest, high=highest))


def _lowest(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function that falls and then rises is lowest, to 1e-6 of the interval."""
    ratio = (5**0.5 - 1) / 2
    inner_low = high - ratio * (high - low)
    inner_high = low + ratio * (high - low)
    value_low, value_high = function(inner_low), function(inner_high)
    for _ in range(30):  # 0.618 ** 30 is 5e-7
        if value_low <= value_high:
            high, inner_high, value_high = inner_high, inner_low, value_low
            inner_low = high - ratio * (high - low)
            value_low = function(inner_low)
        else:
            low, inner_low, value_low = inner_low, inner_high, value_high
            inner_high = low + ratio * (high - low)
            value_high = function(inner_high)
    return (low + high) / 2


def calibrate(
    net: ElasticWrapper,
    batches: Iterable[tuple[Any, ...]],
    *,
    max_loss: float | None = None,
    max_mean_cost: float | None = None,
    costs: Mapping[int, float] | None = None,
    policy: Policy = confidence,
    over_tokens: OverTokens = "least",
    apart_from: Mapping[str, Iterable[Any]] | None = None,
) -> Calibration:
    """Choose the rule that keeps a budget, on inputs that are neither training nor test.

    Give one of the two budgets.

    Args:
        net: In eval mode.
        batches: The inputs to choose on, as for `collect_logits`. They are gone through twice if
            `apart_from` is given.
        max_loss: How much accuracy may be lost against the deepest tap, as a share of the inputs:
            0.005 is half a point. The rule with the smallest mean cost is chosen.
        max_mean_cost: The largest mean cost of an input. The rule with the best accuracy is chosen.
        costs: What a pass to each tap costs, by depth, in any unit, such as multiply-accumulates.
            Default: the depth, so that the mean cost is the mean depth.
        policy: How sure the net is of a prediction.
        over_tokens: As in `ExitRule`.
        apart_from: Sets of inputs by name, such as those of training and test. It is an error if
            one of their inputs is among `batches`.

    Returns:
        The rule, and what it comes to on these inputs.

    Raises:
        ValueError: Not exactly one budget is given, it is out of range or below the cost of the
            shallowest tap, a cost is missing, `apart_from` has an input in common, or as in
            `collect_logits`.

    Example:
        `calibrate(net, held_out, max_loss=0.005, apart_from={"test": test_loader}).rule`
    """
    if apart_from is not None:
        if isinstance(batches, Iterator):
            raise ValueError(
                f"batches is a {type(batches).__name__}, an iterator, and apart_from= goes through "
                "it once more: pass a list or a DataLoader"
            )
        check_apart(**apart_from, calibration=batches)
    collected = collect_logits(net, batches)
    return choose_rule(
        collected,
        temperatures=fit_temperatures(collected),
        max_loss=max_loss,
        max_mean_cost=max_mean_cost,
        costs=costs,
        policy=policy,
        over_tokens=over_tokens,
    )


def choose_rule(
    collected: TapLogits,
    *,
    temperatures: Mapping[int, float] | None = None,
    max_loss: float | None = None,
    max_mean_cost: float | None = None,
    costs: Mapping[int, float] | None = None,
    policy: Policy = confidence,
    over_tokens: OverTokens = "least",
) -> Calibration:
    """Choose a threshold for each tap: `calibrate` on logits that are there already.

    First one threshold for all taps is chosen, then that of each tap, given those of the others.
    That is a search by steps: there may be a better rule.

    Args:
        collected: The logits to choose on.
        temperatures: By depth, from `fit_temperatures`. None: 1 everywhere.
        max_loss: As in `calibrate`.
        max_mean_cost: As in `calibrate`.
        costs: As in `calibrate`.
        policy: As in `calibrate`.
        over_tokens: As in `calibrate`.

    Returns:
        The rule, and what it comes to on these inputs.

    Raises:
        ValueError: As in `calibrate`.
    """
    every_tap = ExitRule(
        thresholds=dict.fromkeys(collected.depths, math.inf),
        policy=policy,
        temperatures=temperatures or {},
        over_tokens=over_tokens,
    )
    replay = _Replay(collected, every_tap, costs)
    budget = _budget(replay, max_loss, max_mean_cost)

    # One threshold for all taps. Nobody leaves early at infinity, which no loss forbids.
    chosen = [math.inf] * replay.num_early
    for threshold in _candidates(replay.scores[: replay.num_early]):
        chosen = _better(budget, replay, chosen, [threshold] * replay.num_early)

    # Then that of each tap in turn.
    for _ in range(NUM_ROUNDS):
        for tap in range(replay.num_early):
            for threshold in _candidates(replay.scores[tap : tap + 1]):
                tried = [*chosen]
                tried[tap] = threshold
                chosen = _better(budget, replay, chosen, tried)

    rule = replace(every_tap, thresholds=_thresholds_by_depth(chosen, collected.depths, policy))
    return Calibration(rule, replay.outcome(chosen))


def outcome(
    collected: TapLogits, rule: ExitRule, costs: Mapping[int, float] | None = None
) -> Outcome:
    """Return what a rule comes to on a set whose logits are there already.

    It is what `ExitRunner` would come to, input by input, without running the net again.

    Args:
        collected: The logits of the set, at the rule's depths at least, and at the deepest tap.
        rule: The rule.
        costs: As in `calibrate`.

    Raises:
        ValueError: The rule has a threshold at a depth whose logits were not collected, or a cost
            is missing.

    Example:
        `outcome(collect_logits(net, test_loader), rule)`
    """
    missing = set(rule.thresholds) - set(collected.depths)
    if missing:
        raise ValueError(
            f"the rule has thresholds at depths {sorted(missing)}, and logits were collected at "
            f"depths {list(collected.depths)} alone"
        )
    deepest = collected.depths[-1]
    depths = [depth for depth in collected.depths if depth in rule.thresholds or depth == deepest]
    at_depths = TapLogits(
        depths=tuple(depths),
        logits=tuple(collected.logits[collected.depths.index(depth)] for depth in depths),
        targets=collected.targets,
    )
    replay = _Replay(at_depths, rule, costs)
    return replay.outcome([rule.thresholds[depth] for depth in depths[:-1]])


class _Replay:
    """Says for any thresholds what they come to, from the scores of all inputs at all taps.

    Args:
        collected: The logits.
        rule: Policy and temperatures; its thresholds do not count.
        costs: By depth; None: the depth.

    Attributes:
        num_early: How many taps there are before the deepest.
        scores: The score of every input at every tap, (taps, n).
    """

    def __init__(
        self, collected: TapLogits, rule: ExitRule, costs: Mapping[int, float] | None
    ) -> None:
        self._depths = collected.depths
        self._costs = _costs_at(collected.depths, costs)
        self.num_early = len(collected.depths) - 1

        scaled_so_far: list[Tensor] = []
        scores: list[Tensor] = []
        shares_right: list[Tensor] = []
        for depth, logits in zip(collected.depths, collected.logits, strict=True):
            scaled_so_far.append(rule.scaled(logits, depth))
            scores.append(rule.scores(scaled_so_far))
            shares_right.append(_share_right(logits, collected.targets))
        self.scores = torch.stack(scores)  # (taps, n)
        self._shares_right = torch.stack(shares_right)  # (taps, n)
        self.full_accuracy = self._shares_right[-1].mean().item()

    @property
    def lowest_cost(self) -> float:
        """What it costs if all inputs leave at the shallowest tap."""
        return self._costs[0].item()

    def taps_of_inputs(self, thresholds: Sequence[float]) -> Tensor:
        """Return at which tap each input leaves, (n,), counted from 0.

        Args:
            thresholds: Those of all taps but the deepest.
        """
        last_tap = self.num_early
        num_inputs = self.scores.shape[1]
        chosen = torch.full((num_inputs,), last_tap)
        # From the deepest to the shallowest: an input leaves at the first tap that is sure.
        for tap in reversed(range(last_tap)):
            chosen[self.scores[tap] >= thresholds[tap]] = tap
        return chosen

    def accuracy_and_cost(self, thresholds: Sequence[float]) -> tuple[float, float]:
        """Return the share of right predictions, and the mean cost."""
        taps = self.taps_of_inputs(thresholds)
        right = self._shares_right.gather(0, taps[None]).mean()  # of (1, n)
        return right.item(), self._costs[taps].mean().item()

    def outcome(self, thresholds: Sequence[float]) -> Outcome:
        """Return all that is said of some thresholds."""
        accuracy, mean_cost = self.accuracy_and_cost(thresholds)
        taps = self.taps_of_inputs(thresholds)
        depths = torch.tensor(self._depths)
        shares: dict[int, float] = {}
        for tap, depth in enumerate(self._depths):
            shares[depth] = (taps == tap).double().mean().item()
        return Outcome(
            accuracy=accuracy,
            full_accuracy=self.full_accuracy,
            mean_depth=depths[taps].double().mean().item(),
            mean_cost=mean_cost,
            shares=shares,
        )


def _costs_at(depths: Sequence[int], costs: Mapping[int, float] | None) -> Tensor:
    """Return the cost at each depth, (taps,)."""
    if costs is None:
        return torch.tensor(depths, dtype=torch.float64)
    missing = [depth for depth in depths if depth not in costs]
    if missing:
        raise ValueError(f"costs has none for depths {missing}: give one for each tap")
    return torch.tensor([costs[depth] for depth in depths], dtype=torch.float64)


def _share_right(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the share of right predictions of each input, (n,), of those that count."""
    counts = (targets != IGNORED).reshape(len(targets), -1)  # (n, predictions of an input)
    right = (logits.argmax(dim=-1) == targets).reshape(len(targets), -1) & counts
    return right.sum(dim=1).double() / counts.sum(dim=1).clamp(min=1)


# A budget says how good a rule is by what it comes to: the smaller, the better.
_Budget = Callable[[float, float], tuple[float, float]]


def _budget(replay: _Replay, max_loss: float | None, max_mean_cost: float | None) -> _Budget:
    """Return the order of rules: by cost, if the loss is allowed, or by accuracy, if the cost is.

    A rule that does not keep the budget is worse than each that does.
    """
    if (max_loss is None) == (max_mean_cost is None):
        raise ValueError(
            f"max_loss {max_loss}, max_mean_cost {max_mean_cost}: expected exactly one budget"
        )
    if max_loss is not None:
        if not 0 <= max_loss <= 1:
            raise ValueError(f"max_loss {max_loss}: expected a share of the inputs, from 0 to 1")
        least_accuracy = replay.full_accuracy - max_loss - ROUNDING

        def by_cost(accuracy: float, cost: float) -> tuple[float, float]:
            if accuracy < least_accuracy:
                return math.inf, -accuracy
            return cost, -accuracy

        return by_cost

    assert max_mean_cost is not None
    if not max_mean_cost >= replay.lowest_cost:
        raise ValueError(
            f"max_mean_cost {max_mean_cost}: the shallowest tap alone costs "
            f"{replay.lowest_cost:g}; give a larger budget"
        )
    most_cost = max_mean_cost * (1 + ROUNDING)

    def by_accuracy(accuracy: float, cost: float) -> tuple[float, float]:
        if cost > most_cost:
            return math.inf, cost
        return -accuracy, cost

    return by_accuracy


def _better(
    budget: _Budget, replay: _Replay, chosen: list[float], tried: list[float]
) -> list[float]:
    """Return the better one of two lists of thresholds, the first one if they are equal."""
    before = budget(*replay.accuracy_and_cost(chosen))
    return tried if budget(*replay.accuracy_and_cost(tried)) < before else chosen


def _candidates(scores: Tensor) -> list[float]:
    """Return thresholds to try: infinity, and scores that occur, the largest first."""
    values: list[float] = scores.flatten().double().numpy().tolist()
    occurring = sorted(set(values), reverse=True)
    if len(occurring) <= NUM_CANDIDATES:
        return [math.inf, *occurring]
    # evenly spread, the first and the last one included
    step = (len(occurring) - 1) / (NUM_CANDIDATES - 1)
    return [math.inf, *(occurring[round(index * step)] for index in range(NUM_CANDIDATES))]


def _thresholds_by_depth(
    thresholds: Sequence[float], depths: Sequence[int], policy: Policy
) -> dict[int, float]:
    """Return thresholds by depth.

    A tap where nobody leaves is left out, so that the runner need not predict there. A policy that
    looks at earlier taps as well needs it.
    """
    looks_at_last_alone = policy in (confidence, entropy, margin)
    by_depth: dict[int, float] = {}
    for depth, threshold in zip(depths[:-1], thresholds, strict=True):
        if threshold < math.inf or not looks_at_last_alone:
            by_depth[depth] = threshold
    return by_depth
