"""Networks for super-resolution: ASRN, EDSR, RCAN, and the weights that come with the package."""
