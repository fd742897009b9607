"""An image as a network takes it: with pillow and numpy alone."""

import numpy as np
from PIL import Image


def prepared(path, said):
    """An image (1, 3, H, W) as the network was evaluated with: scaled, its centre, normalised.

    said: what an exported file says of its network.
    """
    height, width = said["size"]
    image = Image.open(path).convert("RGB")
    # Of a side that the image is scaled to, the centre is taken: crop_pct of it.
    scaled = [int(side / said["crop_pct"]) for side in (width, height)]
    scale = max(scaled[0] / image.width, scaled[1] / image.height)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    sides = [int(side * scale + 1e-6) for side in image.size]
    image = image.resize(sides, filters[said["interpolation"]])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
    pixels = (pixels - np.float32(said["mean"])) / np.float32(said["std"])
    return pixels.transpose(2, 0, 1)[None]
