"""One safetensors file, every depth in it: save, load whole or cut, read the description.

The names below are imported when they are first used; reading a description imports no torch.
"""

from typing import TYPE_CHECKING

from elasticnet._lazy import lazy_names

if TYPE_CHECKING:
    from elasticnet.checkpoint.header import read_header, read_sizes, write_header
    from elasticnet.checkpoint.loading import load, load_into
    from elasticnet.checkpoint.saving import save

__all__ = ["load", "load_into", "read_header", "read_sizes", "save", "write_header"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "load": "elasticnet.checkpoint.loading",
        "load_into": "elasticnet.checkpoint.loading",
        "read_header": "elasticnet.checkpoint.header",
        "read_sizes": "elasticnet.checkpoint.header",
        "save": "elasticnet.checkpoint.saving",
        "write_header": "elasticnet.checkpoint.header",
    },
)
