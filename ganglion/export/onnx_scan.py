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
                p = g(
                    "Exp",
                    g(
                        "Mul",
                        g("CumSum", term.dt, g.int(0), reverse=int(walk.back)),
                        g.pick(decay, walk.index),
                    ),
                )
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
        """An input."""
        return ir.Value(name=self._name())

    def _name(self) -> str:
        self._values += 1
        return f"{self._prefix}v{self._values}"

    def ints(self, *values: int) -> ir.Value:
        return self("Constant", value=ir.tensor(np.array(values, np.int64)))

    def slice(self, x: ir.Value, axis: int, start: int, end: int, step: int = 1) -> ir.Value:
        return self("Slice", x, self.ints(start), self.ints(end), self.ints(axis), self.ints(step))

    def reversed(self, x: ir.Value) -> ir.Value:
        """Along axis 0."""
        return self.slice(x, 0, -1, -(2**31), -1)

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
        ends.append(body("Add", body("Mul", a, h), b))
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
        after = _halved(g, p, h, back, lines)
        zero = g.filled(g("Shape", g.slice(h, 0, 0, 1)), 0.0)
        rest = g.slice(after, 0, 1, lines) if back else g.slice(after, 0, 0, lines - 1)
        before = g("Concat", *((rest, zero) if back else (zero, rest)), axis=0)
    else:
        body = g.body()
        c, p_i, h_i = (body.value() for _ in range(3))
        outs = [body("Add", body("Mul", p_i, c), h_i), body("Identity", c)]
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
    if not back:
        return _prefix(g, a, b, length)
    return g.reversed(_prefix(g, g.reversed(a), g.reversed(b), length))


def _prefix(g: _Nodes, a: ir.Value, b: ir.Value, length: int) -> ir.Value:
    """h at every step: neighbours are combined, the half is solved, and what lies between is filled in
    (`ops.recurrence.linear_recurrence`)."""
    if length == 1:
        return b
    (a_1, b_1), (a_2, b_2), (a_3, b_3) = (
        (g.slice(a, 0, start, length - (start == 0), 2), g.slice(b, 0, start, length - (start == 0), 2))
        for start in (0, 1, 2)
    )
    h_2 = _prefix(g, g("Mul", a_2, a_1), g("Add", g("Mul", a_2, b_1), b_2), length // 2)
    h_3 = g("Add", g("Mul", a_3, g.slice(h_2, 0, 0, (length - 1) // 2)), b_3)
    h_1 = g("Concat", g.slice(b, 0, 0, 1), h_3, axis=0)
    pairs = [g("Unsqueeze", t, g.ints(1)) for t in (g.slice(h_1, 0, 0, length // 2), h_2)]
    shape = g("Concat", g.ints(length // 2 * 2), g("Shape", b, start=1), axis=0)
    h = g("Reshape", g("Concat", *pairs, axis=1), shape)
    return g("Concat", h, g.slice(h_1, 0, length // 2, length), axis=0) if length % 2 else h
