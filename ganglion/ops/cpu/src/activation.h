// Activations of a vector.
#pragma once

#include "common.h"

enum Activation : int64_t { NONE = 0, SILU = 1, GELU = 2 };

namespace {

SCAN_INLINE Vec silu(Vec v) { return v / (splat(1.0f) + exp2_of(v * splat(-LOG2E))); }

// v / 2 * (1 + erf(v / sqrt(2))). erf by a quotient of polynomials, relative error below 4e-7; it is 1 from 5.4 on.
SCAN_INLINE Vec gelu(Vec v) {
    const Vec a = at_most(at_least(v, splat(-5.4f)), splat(5.4f)), square = a * a;
    Vec p = splat(4.718208046483596e-08f);
    p = p * square + splat(1.2647437870327849e-05f);
    p = p * square + splat(0.0003213896416127682f);
    p = p * square + splat(0.009257925674319267f);
    p = p * square + splat(0.06605871021747589f);
    p = p * square + splat(0.7978845238685608f);
    Vec q = splat(1.2198249805805972e-06f);
    q = q * square + splat(7.117284985724837e-05f);
    q = q * square + splat(0.0018386536976322532f);
    q = q * square + splat(0.028180086985230446f);
    q = q * square + splat(0.24945877492427826f);
    q = q * square + splat(1.0f);
    const Vec half = splat(0.5f) * v;
    return half * (a * p / q) + half;
}

template <int64_t ACTIVATION>
SCAN_INLINE Vec activate(Vec v) {
    return ACTIVATION == GELU ? gelu(v) : ACTIVATION == SILU ? silu(v) : v;
}

}  // namespace
