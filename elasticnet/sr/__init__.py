"""Super-resolution on the elastic core: models, data, degradations, metrics."""

from elasticnet.sr.models.asrn import asrn
from elasticnet.sr.models.edsr import edsr
from elasticnet.sr.models.rcan import rcan

__all__ = ["asrn", "edsr", "rcan"]
