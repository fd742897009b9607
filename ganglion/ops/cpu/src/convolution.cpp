// A depthwise convolution with bias, residual and activation in one pass over memory:
//
//     y[b][h][w][c] = act(bias[c] + x[b][h][w][c] + sum over i, j of weight[c][i][j] * x[b][h s + i - p][w s + j - p][c])
//
// Compiled once per instruction set, with CONVOLUTION naming the function that it exports.
//
// Channels are the vector axis. A band of rows is walked from its top down; the K rows that a row of y needs are kept in
// the cache as float32 with their padding, so that every element is read and converted once and no pixel is a special
// case.
//
// Every element is computed by itself, in the same order of operations whatever the number of threads.

#include "convolution.h"

#include "activation.h"
#include "elements.h"

namespace {

constexpr int64_t LINE = Convolution::LINE;
constexpr int PIXELS = (int)Convolution::TILE;

// Rows of one image, at the channels of one group.
struct Unit {
    int64_t image, first, end, channel;
    int64_t count;      // channels that exist
    int64_t step;       // from a pixel to the next in the kept rows
    const float* weights;
    Unit(const Convolution& call, int64_t index) : step(call.step()) {
        const int64_t bands = call.bands(), groups = call.groups();
        const int64_t band = index / groups % bands, place = index % groups;
        image = index / groups / bands;
        first = band * call.out_height() / bands;
        end = (band + 1) * call.out_height() / bands;
        channel = place * call.group();
        count = smaller(call.group(), call.channels - channel);
        weights = call.workspace + place * call.weights_size();
    }
};

// Weights and bias in the order in which they are used, zero in channels that do not exist.
void pack_weights(const Convolution& call, int64_t place) {
    const int64_t taps = call.taps(), channel = place * call.group();
    const int64_t count = smaller(call.group(), call.channels - channel);
    float* const to = call.workspace + place * call.weights_size();
    zero(to, call.weights_size());
    for (int64_t c = 0; c < count; ++c) {
        float* const line = to + c / LINE * LINE * (taps + 1) + c % LINE;
        for (int64_t t = 0; t < taps; ++t) line[t * LINE] = call.weight[(channel + c) * taps + t];
        if (call.bias) line[taps * LINE] = call.bias[channel + c];
    }
}

// Copies row `from` of x to `row`, whose padding is left alone.
void read_row(const Convolution& call, const Unit& unit, int64_t from, float* row) {
    float* to = row + call.padding * unit.step;
    if (from < 0 || from >= call.height) return zero(to, call.width * unit.step);
    const int64_t index = ((unit.image * call.height + from) * call.width) * call.channels + unit.channel;
    with_elements(call.element, call.x, [&](auto* x, auto decode, auto) {
        x += index;
        for (int64_t w = 0; w < call.width; ++w, x += call.channels, to += unit.step)
            for (int64_t c = 0; c < unit.count; ++c) to[c] = decode(x[c]);
    });
}

// The pixels of y that are computed together, at a vector of channels. `x` has the K rows of their taps, from the first
// tap of the first pixel on; `step` is from a pixel of x to the next, `stride` to that of the next pixel of y.
template <int K, int PIXELS, bool SLIDE>
SCAN_INLINE void convolve(const float* const (&x)[K], int64_t step, int64_t stride, const float* weight,
                          Vec (&acc)[PIXELS]) {
    SCAN_UNROLL for (int i = 0; i < K; ++i, weight += K * LINE) {
        if constexpr (SLIDE) {
            Vec taps[K];
            SCAN_UNROLL for (int j = 0; j < K; ++j) taps[j] = load(weight + j * LINE);
            SCAN_UNROLL for (int column = 0; column < PIXELS + K - 1; ++column) {
                const Vec pixel = load(x[i] + column * step);
                SCAN_UNROLL for (int j = 0; j < K; ++j)
                    if (column >= j && column - j < PIXELS) acc[column - j] = taps[j] * pixel + acc[column - j];
            }
        } else {
            SCAN_UNROLL for (int j = 0; j < K; ++j) {
                const Vec tap = load(weight + j * LINE);
                SCAN_UNROLL for (int p = 0; p < PIXELS; ++p) acc[p] = tap * load(x[i] + p * stride + j * step) + acc[p];
            }
        }
    }
}

// Pixels w to w + PIXELS of a row of y to `to`, channels up to a whole vector.
template <int K, int PIXELS, bool SLIDE, int64_t ACTIVATION>
void write_pixels(const Convolution& call, const Unit& unit, const float* const (&rows)[K], int64_t w, float* to,
                  int64_t to_step) {
    const int64_t step = unit.step, stride = SLIDE ? step : call.stride * step;
    for (int64_t c = 0; c < unit.count; c += WIDTH) {
        const float* x[K];
        for (int i = 0; i < K; ++i) x[i] = rows[i] + w * stride + c;
        const float* const weight = unit.weights + c / LINE * LINE * (K * K + 1) + c % LINE;
        Vec acc[PIXELS];
        SCAN_UNROLL for (int p = 0; p < PIXELS; ++p) acc[p] = load(weight + K * K * LINE);
        convolve<K, PIXELS, SLIDE>(x, step, stride, weight, acc);
        if (call.residual)
            SCAN_UNROLL for (int p = 0; p < PIXELS; ++p) acc[p] += load(x[K / 2] + p * stride + K / 2 * step);
        SCAN_UNROLL for (int p = 0; p < PIXELS; ++p) store(to + p * to_step + c, activate<ACTIVATION>(acc[p]));
    }
}

template <int K, int PIXELS, bool SLIDE, int64_t ACTIVATION>
void write_tile(const Convolution& call, const Unit& unit, const float* const (&rows)[K], int64_t h, int64_t w,
                float* tile) {
    const int64_t index = ((unit.image * call.out_height() + h) * call.out_width() + w) * call.channels + unit.channel;
    if (call.element == FLOAT32 && unit.count % WIDTH == 0)
        return write_pixels<K, PIXELS, SLIDE, ACTIVATION>(call, unit, rows, w, (float*)call.y + index, call.channels);
    write_pixels<K, PIXELS, SLIDE, ACTIVATION>(call, unit, rows, w, tile, unit.step);
    with_elements(call.element, call.y, [&](auto* y, auto, auto encode) {
        y += index;
        for (int p = 0; p < PIXELS; ++p, y += call.channels, tile += unit.step)
            for (int64_t c = 0; c < unit.count; ++c) y[c] = encode(tile[c]);
    });
}

template <int K, bool SLIDE, int64_t ACTIVATION>
void convolve_unit(const Convolution& call, const Unit& unit, float* kept, float* tile) {
    const int64_t width = call.out_width(), row_size = call.padded_width() * unit.step;
    zero(kept, K * row_size);
    int64_t next = unit.first * call.stride - call.padding;
    for (int64_t h = unit.first; h < unit.end; ++h) {
        const int64_t top = h * call.stride - call.padding;
        const auto slot = [&](int64_t row) { return kept + (row + call.padding) % K * row_size; };
        for (next = larger(next, top); next < top + K; ++next) read_row(call, unit, next, slot(next));
        const float* rows[K];
        for (int i = 0; i < K; ++i) rows[i] = slot(top + i);
        int64_t w = 0;
        for (; w + PIXELS <= width; w += PIXELS) write_tile<K, PIXELS, SLIDE, ACTIVATION>(call, unit, rows, h, w, tile);
        for (; w + 2 <= width; w += 2) write_tile<K, 2, SLIDE, ACTIVATION>(call, unit, rows, h, w, tile);
        if (w < width) write_tile<K, 1, SLIDE, ACTIVATION>(call, unit, rows, h, w, tile);
    }
}

template <int K, bool SLIDE, int64_t ACTIVATION>
void convolve_all(const Convolution& call) {
    const int64_t groups = call.groups(), units = call.batch * call.bands() * groups;
    const int64_t tile_size = PIXELS * call.step(), mine = call.rows_size() + tile_size;
    // Waking other threads takes as long as about a million products.
    const int64_t products = call.batch * call.out_height() * call.out_width() * call.channels * K * K;
    [[maybe_unused]] const int threads = products < (1 << 21) ? 1 : (int)smaller(call.threads, units);
#pragma omp parallel num_threads(threads)
    {
        const FlushSubnormals flush;
        float* const kept = call.workspace + groups * call.weights_size() + thread_number() * mine;
#pragma omp for
        for (int64_t place = 0; place < groups; ++place) pack_weights(call, place);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < units; ++unit)
            convolve_unit<K, SLIDE, ACTIVATION>(call, Unit(call, unit), kept, kept + call.rows_size());
    }
}

template <int K, bool SLIDE>
void convolve_with(const Convolution& call) {
    switch (call.activation) {
        case SILU: return convolve_all<K, SLIDE, SILU>(call);
        case GELU: return convolve_all<K, SLIDE, GELU>(call);
        default: return convolve_all<K, SLIDE, NONE>(call);
    }
}

}  // namespace

void CONVOLUTION(const Convolution& call) {
    const bool slide = call.stride == 1;
    switch (call.kernel) {
        case 3: return slide ? convolve_with<3, true>(call) : convolve_with<3, false>(call);
        case 5: return slide ? convolve_with<5, true>(call) : convolve_with<5, false>(call);
        case 7: return slide ? convolve_with<7, true>(call) : convolve_with<7, false>(call);
        case 9: return slide ? convolve_with<9, true>(call) : convolve_with<9, false>(call);
    }
}
