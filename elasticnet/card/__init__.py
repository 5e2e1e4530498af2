"""The depth card: what each depth of a net costs here, and the deepest that fits a budget.

The names below are imported when they are first used; reading and showing a card imports no torch.
"""

from typing import TYPE_CHECKING

from elasticnet._lazy import lazy_names

if TYPE_CHECKING:
    from elasticnet.card.counting import count_parameters
    from elasticnet.card.depth_card import DepthCard, DepthRow, Metric, not_rising
    from elasticnet.card.in_checkpoint import card_of, store_card
    from elasticnet.card.machine import Machine
    from elasticnet.card.measuring import DepthCost, depth_costs, measure

__all__ = [
    "DepthCard",
    "DepthCost",
    "DepthRow",
    "Machine",
    "Metric",
    "card_of",
    "count_parameters",
    "depth_costs",
    "measure",
    "not_rising",
    "store_card",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DepthCard": "elasticnet.card.depth_card",
        "DepthCost": "elasticnet.card.measuring",
        "DepthRow": "elasticnet.card.depth_card",
        "Machine": "elasticnet.card.machine",
        "Metric": "elasticnet.card.depth_card",
        "card_of": "elasticnet.card.in_checkpoint",
        "count_parameters": "elasticnet.card.counting",
        "depth_costs": "elasticnet.card.measuring",
        "measure": "elasticnet.card.measuring",
        "not_rising": "elasticnet.card.depth_card",
        "store_card": "elasticnet.card.in_checkpoint",
    },
)
