"""The `cpu` backend: operators as native code, for float32, bfloat16 and float16 with a float32 state.

The library `ganglion_scan`, built from `src/` by CMake, lies beside this file. It is compiled for several
instruction sets and uses the best one that the processor has; the environment variable GANGLION_CPU_ISA names another.
It runs on torch's threads, as many as `torch.get_num_threads()` says, and no result depends on their number.
"""

from . import depthwise, pointwise, scan2d, selective_scan
from .library import ISA_ENV, instruction_sets, unavailable

DEVICES = ("cpu",)

__all__ = ["DEVICES", "ISA_ENV", "depthwise", "instruction_sets", "pointwise", "scan2d", "selective_scan"]
__all__ += ["unavailable"]
