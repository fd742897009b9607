// Bias and activation of the rows of a matrix product, in place or into another type:
//
//     y[r][c] = act(x[r][c] + bias[c])
//
// Compiled once per instruction set, with POINTWISE naming the function that it exports.

#include "pointwise.h"

#include "activation.h"
#include "elements.h"

namespace {

template <int64_t ACTIVATION, class X, class Decode, class Y, class Encode>
SCAN_INLINE void change_row(const X* x, Decode decode, Y* y, Encode encode, const float* bias, int64_t channels) {
    int64_t c = 0;
    if (bias)
        for (; c + WIDTH <= channels; c += WIDTH)
            store_as(y + c, activate<ACTIVATION>(load_as(x + c, decode) + load(bias + c)), encode);
    else
        for (; c + WIDTH <= channels; c += WIDTH) store_as(y + c, activate<ACTIVATION>(load_as(x + c, decode)), encode);
    if (const int64_t rest = channels - c) {
        Vec v = load_as(x + c, decode, rest, 0.0f);
        if (bias) v += load_as(bias + c, Same(), rest, 0.0f);
        store_as(y + c, activate<ACTIVATION>(v), encode, rest);
    }
}

template <int64_t ACTIVATION>
void change_rows(const Pointwise& call) {
    // Waking other threads takes as long as some ten thousand elements.
    [[maybe_unused]] const int threads = call.rows * call.channels < (1 << 15) ? 1 : (int)smaller(call.threads, call.rows);
    with_elements(call.x_type, call.x, [&](auto* x, auto decode, auto) {
        with_elements(call.y_type, call.y, [&](auto* y, auto, auto encode) {
            const int64_t rows = call.rows, channels = call.channels;
            const float* const bias = call.bias;
#pragma omp parallel for schedule(static) num_threads(threads)
            for (int64_t r = 0; r < rows; ++r)
                change_row<ACTIVATION>(x + r * channels, decode, y + r * channels, encode, bias, channels);
        });
    });
}

}  // namespace

void POINTWISE(const Pointwise& call) {
    switch (call.activation) {
        case SILU: return change_rows<SILU>(call);
        case GELU: return change_rows<GELU>(call);
        default: return change_rows<NONE>(call);
    }
}
