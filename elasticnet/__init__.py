"""Train one network, run it at any depth: deep supervision with one shared head and progressive
self-distillation.
"""

from elasticnet.checkpoint import load, load_into, save
from elasticnet.checkpoint.hub import push_to_hub
from elasticnet.losses import ElasticObjective, LossTerms
from elasticnet.wrapper import ElasticWrapper, Taps

__version__ = "0.1.0"
__all__ = [
    "ElasticObjective",
    "ElasticWrapper",
    "LossTerms",
    "Taps",
    "load",
    "load_into",
    "push_to_hub",
    "save",
]
