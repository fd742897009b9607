"""A program as an OpenVINO model: a pair of .xml and .bin.

OpenVINO reads no function of an ONNX model, so each scan is written out where it is called. Of one size it is the form
without loops, which OpenVINO runs faster; of dynamic sizes the one with Scan.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import openvino

from .onnx_model import write_onnx
from .onnx_scan import DOMAIN
from .program import Traced


def write_openvino(traced: Traced, path: Path, *, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Write the program to `path` (.xml) and its weights, in float32, beside it (.bin). metadata: goes into it, as JSON
    under `ganglion` of the model's runtime information.

    Returns what a report says of it.
    """
    with tempfile.TemporaryDirectory(prefix="ganglion-openvino-") as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(traced, file, metadata=metadata, loop_free="size" not in traced.dynamic)
        model = ir.from_proto(onnx.load(file))
        passes.InlinePass()(model)
        model.opset_imports.pop(DOMAIN, None)
        onnx.save_model(ir.to_proto(model), file)
        found = openvino.Core().read_model(file)
    for key, value in metadata.items():
        found.set_rt_info(json.dumps(value), ["ganglion", key])
    openvino.save_model(found, path, compress_to_fp16=False)
    return {"nodes": len(found.get_ops())}
