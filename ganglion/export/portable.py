"""A program as a file of torch.export, `.pt2`, without an operator of this library."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .program import Traced
from .quiet import quiet
from .scan_by_lines import scan_by_lines

#: Under which name a file of torch.export has what is said of the model, for `extra_files` of torch.export.load.
EXTRA = "ganglion.json"


def without_own_operators(
    program: torch.export.ExportedProgram, *, loop_free: bool = False
) -> torch.export.ExportedProgram:
    """The program with the scan in PyTorch's own operators. loop_free: without loops; of one size."""
    form = functools.partial(scan_by_lines, loop_free=loop_free)
    with torch.no_grad():
        return program.run_decompositions({torch.ops.ganglion.scan2d.default: form})


def write_pt2(traced: Traced, path: Path, *, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Write the program so that `torch.export.load` runs it where this library is not. Returns what a report says."""
    program = without_own_operators(traced.program)
    _forget_sources(program)
    # Of lists that are empty, such as what a loop captures.
    with quiet("torch._export.serde.serialize"):
        torch.export.save(program, path, extra_files={EXTRA: json.dumps(dict(metadata))})
    return {"nodes": len(program.graph.nodes)}


def _forget_sources(program: torch.export.ExportedProgram) -> None:
    """Take out which line of which file on this machine each node came from: a quarter of a small network's file."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
                    node.meta.pop(key, None)


def write_aoti(traced: Traced, path: Path, *, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Compile the program for the processor at hand, for `torch._inductor.aoti_load_package`."""
    program = without_own_operators(traced.program, loop_free=True)
    with quiet("torch._inductor"), torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(path),
            inductor_configs={
                "aot_inductor.metadata": {key: json.dumps(value) for key, value in metadata.items()}
            },
        )
    return {"nodes": len(program.graph.nodes)}
