"""Image pairs for super-resolution: from folders of photographs to batches of patches.

`load_pairs` finds the image files of a data set (`folder_layouts`, `lr_folders`), reads them
(`decoding`, `read_rgb`), fits LR to HR or makes it (`alignment`), keeps what it decoded
(`decoded_cache`), and returns a `PairSet`. `splits` divides pairs into training and validation,
`patches` cuts training patches from them, and `download` fetches DIV2K.
"""

from elasticnet.sr.data.alignment import noise_seed
from elasticnet.sr.data.builtin_photos import scikit_image_photos
from elasticnet.sr.data.folder_layouts import Pair, find_pairs
from elasticnet.sr.data.loading import load_pairs, pairs_from_arrays
from elasticnet.sr.data.pair_set import PairSet
from elasticnet.sr.data.read_rgb import read_rgb

__all__ = [
    "Pair",
    "PairSet",
    "find_pairs",
    "load_pairs",
    "noise_seed",
    "pairs_from_arrays",
    "read_rgb",
    "scikit_image_photos",
]
