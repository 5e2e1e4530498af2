"""Networks run on images of any size: how far they see, the plan, the tiles, `Upscaler`."""
