// The gradient of the weight of a depthwise convolution with stride 1 and zero padding that keeps the size:
//
//     grad_weight[c][i][j] = sum over b, h, w of grad_y[b][h][w][c] * x[b][h + i - K / 2][w + j - K / 2][c]
//
// Compiled once per instruction set, with DEPTHWISE naming the function that it exports.
//
// Channels are the vector axis. A row of taps has its sums in registers while a band of rows is walked; the ranges of
// the walk are clipped so that padding is never read. Sums are short: of a band, then of a piece, then of all.
//
// No result depends on the number of threads: the shapes alone determine the pieces, which are added in a fixed order.

#include "depthwise.h"
#include "simd.h"

namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// A vector, or the first `count` lanes of one and zeros.
template <bool PARTIAL>
SCAN_INLINE Vec load_lanes(const float* from, [[maybe_unused]] int count) {
    if (!PARTIAL) return load(from);
#if defined(__AVX512F__) && defined(__GNUC__)
    return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
#else
    float lane[WIDTH] = {};
    for (int i = 0; i < count; ++i) lane[i] = from[i];
    return load(lane);
#endif
}

SCAN_INLINE void prefetch([[maybe_unused]] const float* from) {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch(from, 0, 2);
#endif
}

// Matching rows of x and grad_y, at a block of channels, for one row of taps.
struct Rows {
    const float *x, *grad_y;
    int64_t count, width, channels;
    int64_t ahead;    // from here to the same place in the next band
    int lanes;        // of a partial vector
};

// acc[j] += grad_y[w] * x[w + j - K / 2] for FIRST <= j < END.
template <int K, int VECS, bool PARTIAL, int FIRST, int END>
SCAN_INLINE void add_pixel(const Rows& rows, int64_t at, Vec (&acc)[K][VECS]) {
    for (int v = 0; v < VECS; ++v) {
        const float* const x = rows.x + at + v * WIDTH;
        const float* const g = rows.grad_y + at + v * WIDTH;
        // Processors foresee no walk in such long steps.
        if (FIRST == 0 && END == K) {
            prefetch(x + rows.ahead);
            prefetch(g + rows.ahead);
        }
        const Vec grad_y = load_lanes<PARTIAL>(g, rows.lanes);
        for (int j = FIRST; j < END; ++j)
            acc[j][v] = grad_y * load_lanes<PARTIAL>(x + (j - K / 2) * rows.channels, rows.lanes) + acc[j][v];
    }
}

// The pixels at the left border, from the W-th: their first taps are padding.
template <int K, int VECS, bool PARTIAL, int W = 0>
SCAN_INLINE void add_left(const Rows& rows, int64_t at, Vec (&acc)[K][VECS]) {
    if constexpr (W < K / 2) {
        add_pixel<K, VECS, PARTIAL, K / 2 - W, K>(rows, at, acc);
        add_left<K, VECS, PARTIAL, W + 1>(rows, at + rows.channels, acc);
    }
}

// The pixels at the right border, from the LEFT-th last.
template <int K, int VECS, bool PARTIAL, int LEFT = K / 2>
SCAN_INLINE void add_right(const Rows& rows, int64_t at, Vec (&acc)[K][VECS]) {
    if constexpr (LEFT > 0) {
        add_pixel<K, VECS, PARTIAL, 0, K / 2 + LEFT>(rows, at, acc);
        add_right<K, VECS, PARTIAL, LEFT - 1>(rows, at + rows.channels, acc);
    }
}

// Adds a row of taps to `sums`. Rows have at least K - 1 pixels, so that no pixel is at both borders.
template <int K, int VECS, bool PARTIAL>
SCAN_INLINE void add_wide(const Rows& rows, float* sums) {
    const int64_t step = rows.channels, row = rows.width * step;
    Vec acc[K][VECS];
    for (int j = 0; j < K; ++j)
        for (int v = 0; v < VECS; ++v) acc[j][v] = splat(0.0f);
    for (int64_t start = 0; start < rows.count * row; start += row) {
        const int64_t right = start + row - K / 2 * step;
        add_left<K, VECS, PARTIAL>(rows, start, acc);
        for (int64_t at = start + K / 2 * step; at < right; at += step)
            add_pixel<K, VECS, PARTIAL, 0, K>(rows, at, acc);
        add_right<K, VECS, PARTIAL>(rows, right, acc);
    }
    for (int j = 0; j < K; ++j)
        for (int v = 0; v < VECS; ++v) {
            float* const sum = sums + j * Depthwise::GROUP + v * WIDTH;
            store(sum, load(sum) + acc[j][v]);
        }
}

// The same tap by tap, for rows of any length.
template <int K, int VECS, bool PARTIAL>
SCAN_INLINE void add_narrow(const Rows& rows, float* sums) {
    for (int64_t j = larger(0, K / 2 + 1 - rows.width); j < smaller(K, K / 2 + rows.width); ++j) {
        const int64_t shift = j - K / 2, first = larger(0, -shift), end = smaller(rows.width, rows.width - shift);
        for (int v = 0; v < VECS; ++v) {
            Vec acc = splat(0.0f);
            for (int64_t r = 0; r < rows.count; ++r)
                for (int64_t w = first; w < end; ++w) {
                    const int64_t at = (r * rows.width + w) * rows.channels + v * WIDTH;
                    acc = load_lanes<PARTIAL>(rows.grad_y + at, rows.lanes) *
                              load_lanes<PARTIAL>(rows.x + at + shift * rows.channels, rows.lanes) +
                          acc;
                }
            float* const sum = sums + j * Depthwise::GROUP + v * WIDTH;
            store(sum, load(sum) + acc);
        }
    }
}

// Rows [first, end) of an image.
struct Band {
    int64_t image, first, end;
    Band(const Depthwise& call, int64_t index)
        : image(index / call.bands()),
          first(index % call.bands() * call.band()),
          end(smaller(first + call.band(), call.height)) {}
};

// Adds all taps over a band to the sums of the VECS vectors of channels from `channel`.
template <int K, int VECS, bool PARTIAL>
void add_band(const Depthwise& call, Band band, int64_t channel, float* sums) {
    for (int64_t i = 0; i < K; ++i) {
        const int64_t shift = i - K / 2;
        const int64_t first = larger(band.first, -shift), end = smaller(band.end, call.height - shift);
        if (first >= end) continue;
        const int64_t pixel = (band.image * call.height + first) * call.width;
        const float* const x = call.x + channel + (pixel + shift * call.width) * call.channels;
        const float* const grad_y = call.grad_y + channel + pixel * call.channels;
        const int64_t ahead = call.band() * call.width * call.channels;
        const Rows rows{x, grad_y, end - first, call.width, call.channels, ahead, (int)(call.channels - channel)};
        if (call.width >= K - 1)
            add_wide<K, VECS, PARTIAL>(rows, sums + i * K * Depthwise::GROUP);
        else
            add_narrow<K, VECS, PARTIAL>(rows, sums + i * K * Depthwise::GROUP);
    }
}

// One unit of work: the bands of a piece, at the channels of a slice.
template <int K>
void add_piece(const Depthwise& call, int64_t piece, int64_t slice) {
    // Vectors that are walked together: as many as there are registers for the sums of a row of taps.
    constexpr int VECS = K <= 5 || WIDTH == 16 ? 2 : 1;
    const int64_t group_size = call.taps() * Depthwise::GROUP, groups = call.groups();
    const int64_t group = slice * groups / call.slices(), group_end = (slice + 1) * groups / call.slices();
    float* const sums = call.workspace + piece * groups * group_size;
    for (int64_t i = group * group_size; i < group_end * group_size; ++i) sums[i] = 0.0f;
    const int64_t bands = call.batch * call.bands(), pieces = call.pieces();
    for (int64_t b = piece * bands / pieces; b < (piece + 1) * bands / pieces; ++b) {
        const Band band(call, b);
        const int64_t end = smaller(call.channels, group_end * Depthwise::GROUP);
        for (int64_t c = group * Depthwise::GROUP; c < end;) {
            float* const to = sums + c / Depthwise::GROUP * group_size + c % Depthwise::GROUP;
            if (c + VECS * WIDTH <= end) {
                add_band<K, VECS, false>(call, band, c, to);
                c += VECS * WIDTH;
            } else {
                c + WIDTH <= end ? add_band<K, 1, false>(call, band, c, to) : add_band<K, 1, true>(call, band, c, to);
                c += WIDTH;
            }
        }
    }
}

// Adds up the pieces of a group of channels.
void write_group(const Depthwise& call, int64_t group) {
    const int64_t taps = call.taps(), group_size = taps * Depthwise::GROUP, channel = group * Depthwise::GROUP;
    const int64_t count = smaller(Depthwise::GROUP, call.channels - channel);
    float* const total = call.workspace + group * group_size;
    for (int64_t piece = 1; piece < call.pieces(); ++piece) {
        const float* const sums = total + piece * call.groups() * group_size;
        for (int64_t i = 0; i < group_size; ++i) total[i] += sums[i];
    }
    for (int64_t c = 0; c < count; ++c)
        for (int64_t t = 0; t < taps; ++t)
            call.grad_weight[(channel + c) * taps + t] = total[t * Depthwise::GROUP + c];
}

template <int K>
void add_all(const Depthwise& call) {
    const int64_t slices = call.slices(), units = call.pieces() * slices, groups = call.groups();
    // Waking other threads takes as long as about a million products.
    const int64_t products = call.batch * call.height * call.width * call.channels * K * K;
    [[maybe_unused]] const int threads = products < (1 << 21) ? 1 : (int)smaller(call.threads, units);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < units; ++unit) add_piece<K>(call, unit / slices, unit % slices);
#pragma omp for
        for (int64_t group = 0; group < groups; ++group) write_group(call, group);
    }
}

}  // namespace

void DEPTHWISE(const Depthwise& call) {
    switch (call.kernel) {
        case 1: return add_all<1>(call);
        case 3: return add_all<3>(call);
        case 5: return add_all<5>(call);
        case 7: return add_all<7>(call);
        case 9: return add_all<9>(call);
    }
}
