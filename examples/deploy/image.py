"""An image as a network takes it: with pillow and numpy alone."""

import numpy as np
from PIL import Image


def prepared(path, said):
    """An image (1, 3, H, W) as the network was evaluated with: scaled, its centre, normalised.

    said: what an exported file says of its network.
    """
    height, width = said["size"]
    image = Image.open(path).convert("RGB")
    scale = max(height / image.height, width / image.width) / said["crop_pct"]
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    sides = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    image = image.resize(sides, filters[said["interpolation"]])
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
    pixels = (pixels - np.float32(said["mean"])) / np.float32(said["std"])
    return pixels.transpose(2, 0, 1)[None]
