"""Classify images with an exported network: python openvino_image.py NET.xml IMAGE [IMAGE ...]

Needs openvino, numpy, pillow and the image.py beside it, nothing else. What the network expects of an image
travels in its file.
"""

import json
import sys

import numpy as np
import openvino
from image import prepared

core = openvino.Core()
model = core.read_model(sys.argv[1])
said = {key: json.loads(value) for key, value in model.get_rt_info("ganglion").value.items()}
# float32 as it was exported: on some processors OpenVINO would round to bfloat16 on its own.
run = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
names = said.get("class_names")
for path in sys.argv[2:]:
    logits = run(prepared(path, said))[0][0]
    best = np.argsort(-logits)[:3]
    print(path, *(f"{names[i] if names else i} {logits[i]:.3f}" for i in best), sep="  ")
