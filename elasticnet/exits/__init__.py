"""The depth chosen at run time, input by input: for classifiers and heads that classify tokens.

An easy input leaves at a shallow tap, where the net is sure of its prediction; a hard one goes on.
`calibrate` chooses the thresholds, `ExitRunner` runs the net by them, and `write_stages` writes a
folder of ONNX files that runs without PyTorch.
"""

from elasticnet.exits.calibration import (
    Calibration,
    Outcome,
    TapLogits,
    calibrate,
    choose_rule,
    collect_logits,
    fit_temperatures,
    outcome,
)
from elasticnet.exits.policies import POLICIES, Policy, confidence, entropy, margin, patience
from elasticnet.exits.rule import ExitRule
from elasticnet.exits.running import ExitRunner, Exits
from elasticnet.exits.splits import check_apart
from elasticnet.exits.stages import Staged, StagedFile, write_stages

__all__ = [
    "POLICIES",
    "Calibration",
    "ExitRule",
    "ExitRunner",
    "Exits",
    "Outcome",
    "Policy",
    "Staged",
    "StagedFile",
    "TapLogits",
    "calibrate",
    "check_apart",
    "choose_rule",
    "collect_logits",
    "confidence",
    "entropy",
    "fit_temperatures",
    "margin",
    "outcome",
    "patience",
    "write_stages",
]
