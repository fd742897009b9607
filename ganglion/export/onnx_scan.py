"""`scan2d` as one function of an ONNX model, in ONNX's own operators.

A walk is cut into its lines, rows or columns of the map, which takes it to two short scans in place of one of H * W
steps: all lines of an image at once, and then from line to line.

    within a line    h_t = a_t * h_(t-1) + b_t   and   p_t = a_t * p_(t-1),   from h = 0 and p = 1
    across lines     c_(i+1) = p_last,i * c_i + h_last,i
    together         h_t + p_t * c_i

Nothing is divided, so a decay that underflows to zero is exact. With ONNX's Scan, height and width may be dynamic.
Without it (`size`), the steps of a line are combined by doubling: log2(W) rounds of whole-map operations.

Shape letters: B batch, H W height and width, L = H * W, D channels, K routes, R dt_rank, N d_state; T steps of a line,
M lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from ..ops.routes import Route

DOMAIN = "ganglion"


def scan_function(
    name: str,
    routes: Sequence[int],
    *,
    dt_rank: int,
    d_state: int,
    log_A: bool,
    size: tuple[int, int] | None,
    opset: int,
) -> ir.Function:
    """The function `ganglion::<name>` of (x, proj, dt_weight, dt_bias, A, D, size) -> y, as networks call `scan2d`: x,
    proj and y as tokens (B, L, ...), D of (K, D), size int64 (2,) of H and W. float32.

    routes: as codes. log_A: A holds log(-A). size: of the maps, for a function without loops; None for any size.
    """
    inputs = [ir.Value(name=n) for n in ("x", "proj", "dt_weight", "dt_bias", "A", "D", "size")]
    x, proj, dt_weight, dt_bias, A, D, hw = inputs
    g = _Nodes()
    decay = g("Transpose", g("Neg", g("Exp", A)) if log_A else A, perm=[0, 2, 1])  # (K, N, D)
    map_shape = g("Concat", g.ints(0), hw, g.ints(-1), axis=0)
    x_BHWD = g("Reshape", x, map_shape)
    proj_BHWC = g("Reshape", proj, map_shape)
    y = g("Mul", g("ReduceSum", D, g.ints(0), keepdims=0), x_BHWD)
    for transpose in (False, True):
        walks = [
            _Walk(k, route)
            for k, code in enumerate(routes)
            if (route := Route.from_code(code)).transpose is transpose
        ]
        if not walks:
            continue
        steps_first = [2, 0, 1, 3] if not transpose else [1, 0, 2, 3]  # (T, B, M, C)
        x_TBMD = g("Transpose", x_BHWD, perm=steps_first)
        proj_TBMC = g("Transpose", proj_BHWC, perm=steps_first)
        x_TBM1D = g("Unsqueeze", x_TBMD, g.ints(3))
        parameters = dt_weight, dt_bias, decay
        terms = [_terms(g, w.index, x_TBM1D, proj_TBMC, parameters, dt_rank, d_state) for w in walks]
        line = None if size is None else size[not transpose]
        lines = None if size is None else size[transpose]
        found: Any = None
        states = _scan(g, [(t.a, t.b) for t in terms], [w.back for w in walks], line)
        for walk, term, h in zip(walks, terms, states, strict=True):
            if not walk.route.restart:
                # Decays multiply: those of all steps up to here.
                p = g("Exp", g("Mul", _summed(g, term.dt, walk.back, size), g.pick(decay, walk.index)))
                last = 0 if walk.back else -1
                before = _across(g, g.pick(p, last), g.pick(h, last), walk.lines_back, lines)  # (B, M, N, D)
                h = g("Add", h, g("Mul", p, before))
            y_k = g("ReduceSum", g("Mul", term.C, h), g.ints(3), keepdims=0)
            found = y_k if found is None else g("Add", found, y_k)
        y = g("Add", y, g("Transpose", found, perm=[1, 2, 0, 3] if not transpose else [1, 0, 2, 3]))
    out = g("Reshape", y, g("Shape", x))
    return ir.Function(
        DOMAIN,
        name,
        graph=ir.Graph(inputs, [out], nodes=g.tape.nodes, opset_imports={"": opset}),
        attributes=(),
    )


class _Walk(NamedTuple):
    """A route, as lines of steps."""

    index: int
    route: Route

    @property
    def back(self) -> bool:
        """Whether the steps of a line run backwards."""
        return self.route.flip_rows if self.route.transpose else self.route.flip_cols

    @property
    def lines_back(self) -> bool:
        """Whether the lines follow each other backwards."""
        return self.route.flip_cols if self.route.transpose else self.route.flip_rows


class _Nodes:
    """The nodes of a function or of a loop's body, as they are made. No name is used twice, whatever is nested."""

    def __init__(self, prefix: str = ""):
        self.tape, self._prefix, self._values = ir.tape.Tape(), prefix, 0

    def __call__(self, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.all(op, *inputs, outputs=1, **attributes)[0]

    def all(self, op: str, *inputs: ir.Value, outputs: int, **attributes: Any) -> Sequence[ir.Value]:
        """Every output of a node."""
        found = self.tape.op_multi_out(op, inputs, attributes, num_outputs=outputs)
        for value in found:
            value.name = self._name()
        return found

    def body(self) -> _Nodes:
        return _Nodes(f"{self._name()}_")

    def value(self) -> ir.Value:
        """An input of a loop's body; OpenVINO needs its type."""
        return ir.Value(name=self._name(), type=ir.TensorType(ir.DataType.FLOAT))

    def _name(self) -> str:
        self._values += 1
        return f"{self._prefix}v{self._values}"

    def ints(self, *values: int) -> ir.Value:
        return self("Constant", value=ir.tensor(np.array(values, np.int64)))

    def slice(self, x: ir.Value, axis: int, start: int, end: int, step: int = 1) -> ir.Value:
        return self("Slice", x, self.ints(start), self.ints(end), self.ints(axis), self.ints(step))

    def int(self, value: int) -> ir.Value:
        return self("Constant", value=ir.tensor(np.int64(value)))

    def pick(self, x: ir.Value, index: int) -> ir.Value:
        """x[index]"""
        return self("Gather", x, self.int(index), axis=0)

    def float(self, value: float) -> ir.Value:
        return self("Constant", value=ir.tensor(np.float32(value)))

    def filled(self, shape: ir.Value, value: float) -> ir.Value:
        return self("ConstantOfShape", shape, value=ir.tensor(np.array([value], np.float32)))


class _Terms(NamedTuple):
    """Of one walk: step sizes (T, B, M, 1, D), a and b of the recurrence (T, B, M, N, D), and C (T, B, M, N, 1)."""

    dt: ir.Value
    a: ir.Value
    b: ir.Value
    C: ir.Value


def _terms(
    g: _Nodes,
    k: int,
    x_TBM1D: ir.Value,
    proj_TBMC: ir.Value,
    parameters: tuple[ir.Value, ir.Value, ir.Value],
    rank: int,
    state: int,
) -> _Terms:
    dt_weight, dt_bias, decay = parameters
    first = k * (rank + 2 * state)
    low = g.slice(proj_TBMC, 3, first, first + rank)
    B, C = (
        g("Unsqueeze", g.slice(proj_TBMC, 3, start, start + state), g.ints(4))
        for start in (first + rank, first + rank + state)
    )
    v = g("Add", g("MatMul", low, g("Transpose", g.pick(dt_weight, k), perm=[1, 0])), g.pick(dt_bias, k))
    dt = g("Unsqueeze", _softplus(g, v), g.ints(3))
    a = g("Exp", g("Mul", dt, g.pick(decay, k)))
    return _Terms(dt, a, g("Mul", g("Mul", dt, x_TBM1D), B), C)


def _softplus(g: _Nodes, v: ir.Value) -> ir.Value:
    """max(v, 0) + log(1 + u), u = exp(-|v|), to 1e-7 of itself however small it is.

    ONNX's own Softplus took half of a scan's time in onnxruntime, and 2.5 times what this takes. The logarithm is that
    of (1 + s) / (1 - s), s = u / (2 + u): an odd function of s, whose series in s * s ends soon, as s is below 1 / 3.
    """
    u = g("Exp", g("Neg", g("Abs", v)))
    s = g("Div", u, g("Add", u, g.float(2.0)))
    squared, *rest = g("Mul", s, s), *_LOG_SERIES[::-1]
    series = g.float(rest[0])
    for coefficient in rest[1:]:
        series = g("Add", g("Mul", series, squared), g.float(coefficient))
    return g("Add", g("Relu", v), g("Mul", s, series))


def _log_series(terms: int = 5) -> list[float]:
    """Coefficients of log((1 + s) / (1 - s)) / s in powers of s * s, lowest first: nearly the best for s <= 1 / 3."""
    nodes = (1 + np.cos(np.pi * (np.arange(64) + 0.5) / 64)) / 18  # of s * s
    s = np.sqrt(nodes)
    fitted = np.polynomial.Chebyshev.fit(nodes, np.log((1 + s) / (1 - s)) / s, terms - 1, domain=[0, 1 / 9])
    return fitted.convert(kind=np.polynomial.Polynomial).coef.tolist()


_LOG_SERIES = _log_series()


def _summed(g: _Nodes, dt_TBM1D: ir.Value, back: bool, size: tuple[int, int] | None) -> ir.Value:
    """The sum of all steps up to each. Of a known size as a product with a triangle of ones: a quarter of OpenVINO's
    time for a scan was its CumSum."""
    if size is None:
        return g("CumSum", dt_TBM1D, g.int(0), reverse=int(back))
    shape = g("Shape", dt_TBM1D)
    steps = g("Shape", dt_TBM1D, start=0, end=1)
    triangle = g("Trilu", g.filled(g("Concat", steps, steps, axis=0), 1.0), upper=int(back))
    flat = g("Reshape", dt_TBM1D, g("Concat", steps, g.ints(-1), axis=0))
    return g("Reshape", g("MatMul", triangle, flat), shape)


def _scan(
    g: _Nodes, pairs: Sequence[tuple[ir.Value, ir.Value]], back: Sequence[bool], length: int | None
) -> list[ir.Value]:
    """h for every pair (a, b); along axis 0."""
    if length is not None:
        return [_halved(g, a, b, flip, length) for (a, b), flip in zip(pairs, back, strict=True)]
    body, states, steps, ends, outs = g.body(), [], [], [], []
    for _ in pairs:
        h, a, b = body.value(), body.value(), body.value()
        states.append(h)
        steps += [a, b]
        ends.append(body("Add", body("Mul", h, a), b))
        outs.append(body("Identity", ends[-1]))  # one value may not stand for a state and for a step
    zeros = g.filled(g("Shape", pairs[0][0], start=1), 0.0)
    found = g.all(
        "Scan",
        *[zeros] * len(pairs),
        *(v for pair in pairs for v in pair),
        outputs=2 * len(pairs),
        body=ir.Graph(states + steps, ends + outs, nodes=body.tape.nodes, name="line"),
        num_scan_inputs=len(steps),
        scan_input_directions=[int(flip) for flip in back for _ in range(2)],
        scan_output_directions=[int(flip) for flip in back],
    )
    return list(found[len(pairs) :])


def _across(g: _Nodes, p_BMND: ir.Value, h_BMND: ir.Value, back: bool, lines: int | None) -> ir.Value:
    """The state before each line (B, M, N, D), from what each line makes of it."""
    p, h = (g("Transpose", t, perm=[1, 0, 2, 3]) for t in (p_BMND, h_BMND))
    if lines is not None:
        before = _before(g, _halved(g, p, h, back, lines), back, lines, rank=4)
    else:
        body = g.body()
        c, p_i, h_i = (body.value() for _ in range(3))
        outs = [body("Add", body("Mul", c, p_i), h_i), body("Identity", c)]
        _, before = g.all(
            "Scan",
            g.filled(g("Shape", p, start=1), 0.0),
            p,
            h,
            outputs=2,
            body=ir.Graph([c, p_i, h_i], outs, nodes=body.tape.nodes, name="lines"),
            num_scan_inputs=2,
            scan_input_directions=[int(back)] * 2,
            scan_output_directions=[int(back)],
        )
    return g("Transpose", before, perm=[1, 0, 2, 3])


def _halved(g: _Nodes, a: ir.Value, b: ir.Value, back: bool, length: int) -> ir.Value:
    """As `_scan`, of one pair and without a loop."""
    steps = 1 << (length - 1).bit_length()
    a_TX, b_TX = (g("Reshape", t, g.ints(length, -1)) for t in (a, b))
    if steps > length:
        # Steps that change nothing, behind the walk's end or before its start.
        a_TX, b_TX = (
            g("Pad", t, g.ints(0, 0, steps - length, 0), g.float(value))
            for t, value in ((a_TX, 1.0), (b_TX, 0.0))
        )
    h_TX = _combined(g, a_TX, b_TX, back, steps)
    if steps > length:
        h_TX = g.slice(h_TX, 0, 0, length)
    return g("Reshape", h_TX, g("Shape", b))


def _before(g: _Nodes, h: ir.Value, back: bool, length: int, *, rank: int) -> ir.Value:
    """The states that steps along axis 0 start from: zero, and all but the last."""
    left = g.slice(h, 0, 1, length) if back else g.slice(h, 0, 0, length - 1)
    ends = (0, 1) if back else (1, 0)
    return g(
        "Pad", left, g.ints(*(end for first in ends for end in (first, *[0] * (rank - 1)))), g.float(0.0)
    )


def _combined(g: _Nodes, a_TX: ir.Value, b_TX: ir.Value, back: bool, length: int) -> ir.Value:
    """h at every one of `length` steps, a power of two: pairs are combined to one step each, half the walk is solved,
    and the states between are filled in (`ops.recurrence.linear_recurrence`)."""
    if length == 1:
        return b_TX
    half = length // 2
    pairs = g.ints(half, 2, -1)
    (a_0, a_1), (b_0, b_1) = (
        g.all("Split", g("Reshape", t, pairs), outputs=2, axis=1, num_outputs=2) for t in (a_TX, b_TX)
    )
    # Of a pair the first that the walk meets, and the second.
    (a_first, b_first), (a_next, b_next) = ((a_1, b_1), (a_0, b_0)) if back else ((a_0, b_0), (a_1, b_1))
    a_both, b_both = g("Mul", a_next, a_first), g("Add", g("Mul", a_next, b_first), b_next)
    flat = g.ints(half, -1)
    h_next = _combined(g, g("Reshape", a_both, flat), g("Reshape", b_both, flat), back, half)
    h_next = g("Unsqueeze", h_next, g.ints(1))
    if half > 1:
        b_first = g("Add", g("Mul", a_first, _before(g, h_next, back, half, rank=3)), b_first)
    both = (h_next, b_first) if back else (b_first, h_next)
    return g("Reshape", g("Concat", *both, axis=1), g.ints(length, -1))
