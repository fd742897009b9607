"""A program as an ONNX model, in which every scan is one node: a call of a function that the model brings along."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxscript
import onnxscript.optimizer
import torch
from onnxscript import values

from .onnx_scan import DOMAIN, scan_function
from .program import Traced
from .quiet import quiet

#: The oldest that has all that is used, Gelu among it: runtimes of before 2024 read no newer one.
OPSET = 20


def write_onnx(
    traced: Traced,
    path: Path,
    *,
    metadata: Mapping[str, Any],
    loop_free: bool = False,
    native: bool = False,
) -> dict[str, Any]:
    """Write the program as an ONNX model. metadata: goes into it, as JSON. loop_free: without ONNX's Scan. native:
    scans are nodes of the native library's operator, see `onnxruntime_library`.

    Returns what a report says of it. Raises ValueError for a loop-free form of dynamic sizes.
    """
    if loop_free and "size" in traced.dynamic:
        raise ValueError(
            "loop_free: a program of dynamic sizes needs loops. Expected it without 'size' in dynamic"
        )
    functions: dict[tuple, ir.Function] = {}
    axes: dict[int, str] = {0: "batch"} if "batch" in traced.dynamic else {}
    if "size" in traced.dynamic:
        axes |= {2: "height", 3: "width"}
    with quiet("torch.onnx"), torch.no_grad():
        made = torch.onnx.export(
            traced.program,
            (traced.example,),
            dynamo=True,
            input_names=["images"],
            output_names=traced.outputs,
            opset_version=OPSET,
            custom_translation_table={
                torch.ops.ganglion.scan2d.default: _translation(functions, loop_free, native),
                torch.ops.aten.roll.default: _roll,
                torch.ops.aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
            },
            optimize=False,
            verbose=False,
        )
    assert made is not None
    model = made.model
    # Not all that torch.onnx would do: its patterns find nothing here, in most of the time.
    onnxscript.optimizer.fold_constants(model, should_fold=_kept_small)
    for clean in (
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
    ):
        clean(model)
    for function in functions.values():
        model.functions[function.identifier()] = function
    if functions or native:
        model.graph.opset_imports[DOMAIN] = 1
    # Which line of which file on this machine each node came from.
    passes.ClearMetadataAndDocStringPass()(model)
    _name_axes(model.graph, axes)
    for value, name in zip(model.graph.outputs, traced.outputs, strict=True):
        value.name = name
    model.producer_name, model.producer_version = "ganglion", str(metadata["version"])
    model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    proto = ir.to_proto(model)
    onnx.save_model(proto, path)
    return {"nodes": len(proto.graph.node), "opset": OPSET, "functions": len(functions)}


def _kept_small(node: ir.Node) -> bool | None:
    """False for what makes float32 of eight bits, which a file would grow by; None leaves it to the optimizer."""
    return False if any(v is not None and v.dtype == ir.DataType.INT8 for v in node.inputs) else None


def _name_axes(graph: ir.Graph, axes: Mapping[int, str]) -> None:
    """Call dynamic axes what they are, wherever torch.export's symbol for one stands."""
    shape = graph.inputs[0].shape
    names = {str(shape[axis]): name for axis, name in axes.items()} if shape is not None else {}
    for value in [*graph.inputs, *(v for node in graph for v in node.outputs)]:
        if value.shape is not None and not value.shape.frozen:
            for axis, dim in enumerate(value.shape):
                if (name := names.get(str(dim))) is not None:
                    value.shape[axis] = name


def _translation(made: dict[tuple, ir.Function], loop_free: bool, native: bool) -> Callable[..., Any]:
    """What torch.onnx puts in the place of the operator. made: the functions so far, one for all scans of one form.
    native: a node of src/onnxruntime.cpp in place of a function's call."""

    def function(routes: Any, rank: int, state: int, log_A: bool, size: Any) -> str:
        form = (tuple(routes), rank, state, log_A, tuple(size) if loop_free else None)
        if form not in made:
            made[form] = scan_function(
                f"scan2d_{len(made)}",
                routes,
                dt_rank=rank,
                d_state=state,
                log_A=log_A,
                size=form[-1],
                opset=OPSET,
            )
        return made[form].name

    def scan2d(
        x: Any,
        proj: Any,
        dt_weight: Any,
        dt_bias: Any,
        A: Any,
        D: Any,
        routes: Any,
        backend: Any,
        size: Any = None,
        log_A: Any = False,
    ) -> Any:
        op: Any = onnxscript.opset20
        if native:
            decay, codes = op.Neg(op.Exp(A)) if log_A else A, op.Constant(value_ints=list(routes))
            scan = _node("scan2d", "size", "routes")
            y = scan(x, proj, dt_weight, dt_bias, decay, D, _sides(size), codes)
        else:
            scan = _node(function(routes, dt_weight.shape[2], A.shape[2], log_A, size), "size")
            y = scan(x, proj, dt_weight, dt_bias, A, D, _sides(size))
        return y, op.Reshape(y, op.Constant(value_ints=[1, -1]))  # nothing reads the carries

    return scan2d


def _sides(size: Any) -> Any:
    """Height and width, known or not, as int64 (2,)."""
    op: Any = onnxscript.opset20
    if all(isinstance(side, int) for side in size):
        return op.Constant(value_ints=list(size))
    one = op.Constant(value_ints=[1])
    return op.Concat(*(op.Reshape(side, one) for side in size), axis=0)


def _roll(x: Any, shifts: Any, dims: Any = ()) -> Any:
    """torch.roll along axes; torch.onnx has it for shifts that are known only."""
    op: Any = onnxscript.opset20
    end = op.Constant(value_ints=[2**62])
    zero = op.Constant(value_ints=[0])
    for shift, dim in zip(shifts, dims, strict=True):
        axis = op.Constant(value_ints=[dim])
        if isinstance(shift, int):
            start = op.Constant(value_ints=[-shift])
        else:
            start = op.Neg(op.Reshape(shift, op.Constant(value_ints=[1])))
        x = op.Concat(op.Slice(x, start, end, axis), op.Slice(x, zero, start, axis), axis=dim)
    return x


def _adaptive_avg_pool2d(x: Any, output_size: Any) -> Any:
    """Means over windows that divide a map, as two products with their weights. torch.onnx would take the windows of
    the size that was traced for those of every size."""
    op: Any = onnxscript.opset20
    if list(output_size) == [1, 1]:
        return op.ReduceMean(x, op.Constant(value_ints=[2, 3]), keepdims=1)
    rows, columns = (_windows(x, axis, count) for axis, count in zip((2, 3), output_size, strict=True))
    return op.MatMul(op.MatMul(rows, x), op.Transpose(columns, perm=[1, 0]))


def _windows(x: Any, axis: int, count: int) -> Any:
    """Weights (count, side) of the pixels along an axis in each of `count` means."""
    op: Any = onnxscript.opset20
    side = op.Shape(x, start=axis, end=axis + 1)
    i = op.Constant(value=onnx.numpy_helper.from_array(np.arange(count)[:, None]))
    one, n = op.Constant(value_ints=[1]), op.Constant(value_ints=[count])
    first = op.Div(op.Mul(i, side), n)
    end = op.Div(op.Add(op.Mul(op.Add(i, one), side), op.Sub(n, one)), n)
    pixel = op.Range(op.Constant(value_int=0), op.Squeeze(side), op.Constant(value_int=1))
    inside = op.And(op.GreaterOrEqual(pixel, first), op.Less(pixel, end))
    return op.Div(op.CastLike(inside, x), op.CastLike(op.Sub(end, first), x))


def _node(name: str, *integers: str) -> Callable[..., Any]:
    """A node of our domain, as onnxscript wants it: with a schema. integers: inputs behind the tensors of float32."""
    of = onnx.defs.OpSchema.FormalParameter
    floats = ("x", "proj", "dt_weight", "dt_bias", "A", "D")
    schema = onnx.defs.OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[*(of(n, "tensor(float)") for n in floats), *(of(n, "tensor(int64)") for n in integers)],
        outputs=[of("y", "tensor(float)")],
    )
    return values.Op(values.Opset(DOMAIN, 1), name, schema)
