"""The colours of images, and a picture of one."""

from PIL import ImageOps
from torch import nn
from torchvision.transforms.v2 import functional as F

from ganglion.tasks.prediction import entries

HEADER = "red green blue"


def build(description):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))


def pixels(image):
    return F.pil_to_tensor(image.resize((16, 16))).float() / 255


def predictions(model, images, *, batch_size=16):
    return entries(model, images, pixels, lambda y, file: {"colour": y.tolist()}, batch_size=batch_size)


def draw(image, entry):
    colour = tuple(round(255 * max(0.0, min(1.0, value))) for value in entry["colour"])
    return ImageOps.expand(image, border=10, fill=colour)


def lines(entry):
    return [" ".join(f"{value:.3f}" for value in entry["colour"])]
