"""Train one network, run it at any depth: deep supervision with one shared head and progressive
self-distillation.

The names below are imported when they are first used, so that `import elasticnet` costs nothing
and sets nothing.
"""

from typing import TYPE_CHECKING

from elasticnet._lazy import lazy_names

if TYPE_CHECKING:
    from elasticnet.checkpoint import load, load_into, save
    from elasticnet.checkpoint.hub import push_to_hub
    from elasticnet.distillation import Distillation
    from elasticnet.losses import ElasticObjective, LossTerms
    from elasticnet.taps import Taps
    from elasticnet.wrapper import ElasticWrapper

__version__ = "0.1.0"
__all__ = [
    "Distillation",
    "ElasticObjective",
    "ElasticWrapper",
    "LossTerms",
    "Taps",
    "load",
    "load_into",
    "push_to_hub",
    "save",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Distillation": "elasticnet.distillation",
        "ElasticObjective": "elasticnet.losses",
        "ElasticWrapper": "elasticnet.wrapper",
        "LossTerms": "elasticnet.losses",
        "Taps": "elasticnet.taps",
        "load": "elasticnet.checkpoint",
        "load_into": "elasticnet.checkpoint",
        "push_to_hub": "elasticnet.checkpoint.hub",
        "save": "elasticnet.checkpoint",
    },
)
