"""Super-resolution on the elastic core: models, upscaling, data, degradations, metrics."""

from elasticnet.sr.inference.upscaler import Upscaler
from elasticnet.sr.models.asrn import asrn
from elasticnet.sr.models.edsr import edsr
from elasticnet.sr.models.rcan import rcan

__all__ = ["Upscaler", "asrn", "edsr", "rcan"]
