"""Networks as files that run where neither this library nor its kernels are: written, then proven."""

from .model import FORMATS, export_model, onnxruntime_library
from .proof import ExportError

__all__ = ["FORMATS", "ExportError", "export_model", "onnxruntime_library"]
