"""PSNR and SSIM per depth on sets of image pairs, beside bicubic interpolation.

`scores` holds what is done with one image, `sets` loads the data, `evaluation` scores whole sets;
`report` and `figures` show the result.
"""

from elasticnet.sr.benchmark.evaluation import (
    OUTPUT_SIZE,
    Benchmark,
    ImageScore,
    Row,
    Skipped,
    benchmark,
    evaluate,
    evaluate_bicubic,
)
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
    scorable,
    without_unscorable,
)
from elasticnet.sr.inference.scale import scale_of

__all__ = [
    "BASELINES",
    "FULL",
    "OUTPUT_SIZE",
    "Benchmark",
    "ImageScore",
    "Row",
    "Scores",
    "Skipped",
    "baseline_name",
    "benchmark",
    "bicubic",
    "distinct_names",
    "evaluate",
    "evaluate_bicubic",
    "load_sets",
    "lr_line",
    "predict_depths",
    "scale_of",
    "scorable",
    "to_image",
    "to_tensor",
    "without_unscorable",
]
