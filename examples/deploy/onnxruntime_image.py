"""Classify images with an exported network: python onnxruntime_image.py NET.onnx IMAGE [IMAGE ...]

Needs onnxruntime, numpy, pillow and the image.py beside it, nothing else. What the network expects of an image
travels in its file.
"""

import json
import sys

import numpy as np
import onnxruntime
from image import prepared

session = onnxruntime.InferenceSession(sys.argv[1])
said = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
names = said.get("class_names")
for path in sys.argv[2:]:
    logits = session.run(None, {"images": prepared(path, said)})[0][0]
    best = np.argsort(-logits)[:3]
    print(path, *(f"{names[i] if names else i} {logits[i]:.3f}" for i in best), sep="  ")
