"""The colours of images, and a picture of one."""

from PIL import ImageOps
from torch import nn
from torchvision.transforms.v2 import functional as F

from ganglion.tasks.prediction import outputs

SIDE, HEADER = 16, "red green blue"


def build(description):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))


def pixels(image):
    return F.pil_to_tensor(image.convert("RGB").resize((SIDE, SIDE))).float() / 255


def predictions(model, images, *, batch_size=16):
    for file, output in outputs(model, images, pixels, batch_size=batch_size):
        yield {
            "file": file,
            **({"error": output} if isinstance(output, str) else {"colour": output.tolist()}),
        }


def draw(image, entry):
    colour = tuple(round(255 * max(0.0, min(1.0, value))) for value in entry["colour"])
    return ImageOps.expand(image.convert("RGB"), border=10, fill=colour)


def lines(entry):
    return [" ".join(f"{value:.3f}" for value in entry["colour"])]
