"""Elastic networks from models nobody edited: split one into stem, blocks and head.

`elasticnet.retrofit.timm`, `.torchvision` and `.transformers` know these libraries' models; `split`
takes any other. `to_model` makes an ordinary model of one depth again.
"""

from elasticnet.retrofit.parts import Split, TapAdapter, split
from elasticnet.retrofit.to_model import to_model

__all__ = ["Split", "TapAdapter", "split", "to_model"]
