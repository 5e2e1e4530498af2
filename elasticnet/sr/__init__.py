"""Super-resolution on the elastic core: models, data, degradations, metrics."""

from elasticnet.sr.models.asrn import asrn

__all__ = ["asrn"]
