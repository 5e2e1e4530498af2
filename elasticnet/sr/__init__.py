"""Super-resolution on the elastic core: models, upscaling, data, degradations, metrics."""

from typing import TYPE_CHECKING

from elasticnet._lazy import lazy_names
from elasticnet.sr.architectures import register_all

if TYPE_CHECKING:
    from elasticnet.sr.inference.upscaler import Upscaler
    from elasticnet.sr.models.asrn import asrn
    from elasticnet.sr.models.edsr import edsr
    from elasticnet.sr.models.rcan import rcan

__all__ = ["Upscaler", "asrn", "edsr", "rcan"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Upscaler": "elasticnet.sr.inference.upscaler",
        "asrn": "elasticnet.sr.models.asrn",
        "edsr": "elasticnet.sr.models.edsr",
        "rcan": "elasticnet.sr.models.rcan",
    },
)

register_all()
