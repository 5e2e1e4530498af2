"""Elastic networks from models nobody edited: split one into stem, blocks and head.

`elasticnet.retrofit.timm`, `.torchvision` and `.transformers` know these libraries' models; `split`
takes any other.
"""

from elasticnet.retrofit.parts import Split, TapAdapter, split

__all__ = ["Split", "TapAdapter", "split"]
