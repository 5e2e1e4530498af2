"""PSNR and SSIM per depth on sets of image pairs, beside bicubic interpolation.

`scores` holds what is done with one image, `sets` loads the data, `others` finds the images of
other methods, `contestants` are what is scored, `costs` measures them, `evaluation` scores whole
sets; `kept_scores` lets a benchmark that was killed go on; `report` and `figures` show the result.
"""

from elasticnet.sr.benchmark.costs import OUTPUT_SIZE
from elasticnet.sr.benchmark.evaluation import benchmark, evaluate, evaluate_bicubic
from elasticnet.sr.benchmark.kept_scores import KeptScores
from elasticnet.sr.benchmark.others import OtherMethod, find_others
from elasticnet.sr.benchmark.records import Benchmark, ImageScore, Row, Skipped
from elasticnet.sr.benchmark.scores import (
    BASELINES,
    FULL,
    Scores,
    baseline_name,
    bicubic,
    predict_depths,
    to_image,
    to_tensor,
)
from elasticnet.sr.benchmark.sets import (
    distinct_names,
    load_sets,
    lr_line,
    lr_lines,
    scorable,
    with_compressed,
    without_unscorable,
)
from elasticnet.sr.inference.scale import scale_of

__all__ = [
    "BASELINES",
    "FULL",
    "OUTPUT_SIZE",
    "Benchmark",
    "ImageScore",
    "KeptScores",
    "OtherMethod",
    "Row",
    "Scores",
    "Skipped",
    "baseline_name",
    "benchmark",
    "bicubic",
    "distinct_names",
    "evaluate",
    "evaluate_bicubic",
    "find_others",
    "load_sets",
    "lr_line",
    "lr_lines",
    "predict_depths",
    "scale_of",
    "scorable",
    "to_image",
    "to_tensor",
    "with_compressed",
    "without_unscorable",
]
