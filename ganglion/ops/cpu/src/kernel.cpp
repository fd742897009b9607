// The fused 2-D selective scan. Compiled once per instruction set, with KERNELS naming the table that it exports.
//
// Channels are the vector axis and the recurrence walks the pixels. One unit of work is a block of channels of an
// image with all routes, chunk by chunk: the step sizes of a chunk (a small matrix product), their softplus, then
// the recurrence. Nothing of the size of all routes exists in memory.
//
// Step sizes are kept in units of ln 2, d = softplus(v) / ln 2, so that softplus and decay are base-two functions
// without conversions: decay = exp(dt * A) = 2 ** (d * A), and B takes the factor ln 2 that remains.
//
// No result depends on the number of threads: a unit writes memory of its own, and partial sums over units that the
// shapes alone determine are added in a fixed order.

#include "elements.h"
#include "scan.h"
#include "simd.h"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__SSE__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace {

constexpr int VECS = BLOCK / WIDTH;
constexpr float LN2 = 0.693147180559945309f;
constexpr float LOG2E = 1.44269504088896340f;
enum RouteBit { TRANSPOSE = 1, FLIP_ROWS = 2, FLIP_COLS = 4, RESTART = 8 };

inline int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// States decay through the subnormal numbers, which cost some processors a hundred cycles each. They are zero here.
struct FlushSubnormals {
#if defined(__SSE__) || defined(_M_X64)
    unsigned saved = _mm_getcsr();
    FlushSubnormals() { _mm_setcsr(saved | 0x8040); }
    ~FlushSubnormals() { _mm_setcsr(saved); }
#endif
};

inline int thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// The steps of one chunk of a walk.
struct Chunk {
    int steps;
    int64_t pixel[CHUNK + 8];        // padded with copies, so that whole panels of rows can be read
    const float* proj[CHUNK + 8];    // this route's dt, B and C of the pixel
    bool restart[CHUNK];             // the state is zero before this step
};

struct Walk {
    int64_t offset, outer, inner, line, length;
    bool restart;

    Walk(const Scan& scan, int64_t code) {
        const int64_t height = scan.height, width = scan.width;
        const int64_t row = code & FLIP_ROWS ? -width : width, col = code & FLIP_COLS ? -1 : 1;
        offset = (code & FLIP_ROWS ? (height - 1) * width : 0) + (code & FLIP_COLS ? width - 1 : 0);
        outer = code & TRANSPOSE ? col : row;
        inner = code & TRANSPOSE ? row : col;
        line = code & TRANSPOSE ? height : width;
        length = height * width;
        restart = code & RESTART;
    }

    // proj: this image's and route's dt, B and C at pixel 0, `stride` floats from one pixel to the next.
    void chunk(int64_t index, const float* proj, int64_t stride, Chunk& out) const {
        const int64_t first = index * CHUNK;
        int64_t at_line = first / line, at = first % line;
        out.steps = (int)smaller(CHUNK, length - first);
        for (int i = 0; i < out.steps; ++i) {
            out.pixel[i] = offset + outer * at_line + inner * at;
            out.restart[i] = restart && at == 0;
            if (++at == line) {
                at = 0;
                ++at_line;
            }
        }
        for (int i = out.steps; i < up(out.steps, 8); ++i) out.pixel[i] = out.pixel[out.steps - 1];
        for (int i = 0; i < up(out.steps, 8); ++i) out.proj[i] = proj + out.pixel[i] * stride;
    }
};

// Hands out pieces of a thread's workspace; without memory it only counts.
struct Space {
    float* memory;
    int64_t used = 0;
    float* take(int64_t floats) {
        float* piece = memory ? memory + used : nullptr;
        used += up(floats, BLOCK);
        return piece;
    }
};

// The channels that one unit works on.
struct Channels {
    int64_t first;
    int count;
    Channels(const Scan& scan, int64_t block)
        : first(block * BLOCK), count((int)smaller(BLOCK, scan.channels - block * BLOCK)) {}
};

// One block of channels of an image as float32, in place or as a copy: pixel p starts at data + p * stride.
struct Plane {
    float* data;
    int64_t stride;
};

inline bool in_place(const Scan& scan, Channels channels) {
    return scan.element == FLOAT32 && channels.count == BLOCK;
}

inline int64_t element_index(const Scan& scan, int64_t image, Channels channels) {
    return image * scan.height * scan.width * scan.channels + channels.first;
}

inline Plane read_plane(const Scan& scan, const void* from, int64_t image, Channels channels, float* copy) {
    const int64_t start = element_index(scan, image, channels), length = scan.height * scan.width;
    if (in_place(scan, channels)) return {(float*)from + start, scan.channels};
    for (int64_t p = 0; p < length; ++p) {
        const int64_t at = start + p * scan.channels;
        float* to = copy + p * BLOCK;
        const int n = channels.count;
        const uint16_t* half = (const uint16_t*)from + at;
        if (scan.element == FLOAT32) {
            for (int c = 0; c < n; ++c) to[c] = ((const float*)from)[at + c];
        } else if (scan.element == BFLOAT16) {
            for (int c = 0; c < n; ++c) to[c] = from_bfloat16(half[c]);
        } else {
            for (int c = 0; c < n; ++c) to[c] = from_float16(half[c]);
        }
        for (int c = n; c < BLOCK; ++c) to[c] = 0.0f;
    }
    return {copy, BLOCK};
}

// Where the result of a plane is built up: in place or in `copy`, which write_plane then stores.
inline Plane result_plane(const Scan& scan, void* to, int64_t image, Channels channels, float* copy) {
    if (in_place(scan, channels)) return {(float*)to + element_index(scan, image, channels), scan.channels};
    return {copy, BLOCK};
}

inline void write_plane(const Scan& scan, Plane plane, void* to, int64_t image, Channels channels) {
    if (in_place(scan, channels)) return;
    const int64_t start = element_index(scan, image, channels), length = scan.height * scan.width;
    for (int64_t p = 0; p < length; ++p) {
        const int64_t at = start + p * scan.channels;
        const float* from = plane.data + p * BLOCK;
        const int n = channels.count;
        uint16_t* half = (uint16_t*)to + at;
        if (scan.element == FLOAT32) {
            for (int c = 0; c < n; ++c) ((float*)to)[at + c] = from[c];
        } else if (scan.element == BFLOAT16) {
            for (int c = 0; c < n; ++c) half[c] = to_bfloat16(from[c]);
        } else {
            for (int c = 0; c < n; ++c) half[c] = to_float16(from[c]);
        }
    }
}

inline void copy_row(float* to, const float* from, int count) {
    for (int c = 0; c < count; ++c) to[c] = from[c];
    for (int c = count; c < BLOCK; ++c) to[c] = 0.0f;
}

// The parameters of one route for a block of channels, channels innermost, zero where the block is not full.
struct Parameters {
    float* weight;      // (R, BLOCK), times log2(e)
    float* bias;        // (BLOCK,), times log2(e)
    float* A;           // (N, BLOCK)

    Parameters(Space& space, const Scan& scan)
        : weight(space.take(scan.rank * BLOCK)), bias(space.take(BLOCK)), A(space.take(scan.state * BLOCK)) {}

    void read(const Scan& scan, int64_t route, Channels channels) const {
        const int64_t rank = scan.rank, state = scan.state;
        for (int64_t c = 0; c < BLOCK; ++c) {
            const int64_t at = route * scan.channels + channels.first + c;
            const bool real = c < channels.count;
            for (int64_t r = 0; r < rank; ++r)
                weight[r * BLOCK + c] = real ? scan.dt_weight[at * rank + r] * LOG2E : 0.0f;
            for (int64_t n = 0; n < state; ++n) A[n * BLOCK + c] = real ? scan.A[at * state + n] : 0.0f;
            bias[c] = real ? scan.dt_bias[at] * LOG2E : 0.0f;
        }
    }
};

// c[m][:] = start(m, :) + sum over k of a(m, k) * b[k][:] for m < rows; c and b are COLS vectors wide. Rows are taken
// eight accumulators at a time; with PADDED rows up to the next multiple of eight may be read and written.
template <int COLS, bool PADDED, class A, class Start, class Finish>
SCAN_INLINE void multiply(int rows, int inner, A a, const float* b, int64_t b_stride, Start start, Finish finish) {
    constexpr int ROWS = 8 / COLS > 0 ? 8 / COLS : 1;
    int m = 0;
    for (; PADDED ? m < rows : m + ROWS <= rows; m += ROWS)
        multiply_panel<ROWS, COLS>(m, inner, a, b, b_stride, start, finish);
    for (; m < rows; ++m) multiply_panel<1, COLS>(m, inner, a, b, b_stride, start, finish);
}

// v = dt_weight @ dt_low + dt_bias of every step, in units of ln 2.
SCAN_INLINE void step_inputs(const Scan& scan, const Chunk& chunk, const Parameters& params, float* v) {
    multiply<VECS, true>(
        chunk.steps, (int)scan.rank, [&](int p, int r) { return chunk.proj[p][r]; }, params.weight, BLOCK,
        [&](int, int j) { return load(params.bias + j * WIDTH); },
        [&](int p, int j, Vec value) { store(v + p * BLOCK + j * WIDTH, value); });
}

inline void sum_of_D(const Scan& scan, Channels channels, float* total) {
    for (int c = 0; c < BLOCK; ++c) total[c] = 0.0f;
    for (int64_t k = 0; scan.D && k < scan.routes; ++k)
        for (int c = 0; c < channels.count; ++c) total[c] += scan.D[k * scan.channels + channels.first + c];
}

inline float* carry_at(const Scan& scan, int64_t image, int64_t route, int64_t chunk, Channels channels) {
    const int64_t chunks = (scan.height * scan.width + CHUNK - 1) / CHUNK;
    return scan.carry + ((image * scan.routes + route) * chunks + chunk) * scan.state * scan.channels +
           channels.first;
}

struct ForwardSpace : Space {
    Parameters params;
    float *skip, *d, *h, *x, *y;

    ForwardSpace(const Scan& scan, float* memory)
        : Space{memory},
          params(*this, scan),
          skip(take(BLOCK)),
          d(take((CHUNK + 8) * BLOCK)),
          h(take(scan.state * BLOCK)),
          x(take(scan.height * scan.width * BLOCK)),
          y(take(scan.height * scan.width * BLOCK)) {}
};

// STATE is the state size, or 0 if it is only known at run time.
template <int STATE>
SCAN_INLINE void forward_chunk(const Scan& scan, const Chunk& chunk, const ForwardSpace& space, Plane x, Plane y) {
    const int rank = (int)scan.rank, state = STATE ? STATE : (int)scan.state;
    for (int i = 0; i < chunk.steps * BLOCK; i += WIDTH) {
        const Vec v = load(space.d + i);
        store(space.d + i, softplus2(v, exp2_of_minus_abs(v)));
    }
    for (int p = 0; p < chunk.steps; ++p) {
        const float *B = chunk.proj[p] + rank, *C = B + state;
        const float* x_p = x.data + chunk.pixel[p] * x.stride;
        float* y_p = y.data + chunk.pixel[p] * y.stride;
        if (chunk.restart[p])
            for (int i = 0; i < state * BLOCK; i += WIDTH) store(space.h + i, splat(0.0f));
        for (int c = 0; c < BLOCK; c += WIDTH) {
            const Vec d = load(space.d + p * BLOCK + c);
            const Vec dx = d * load(x_p + c) * splat(LN2);
            Vec out = load(y_p + c);
            for (int n = 0; n < state; ++n) {
                float* h_n = space.h + n * BLOCK + c;
                const Vec decay = exp2_of(d * load(space.params.A + n * BLOCK + c));
                const Vec h = decay * load(h_n) + dx * splat(B[n]);
                store(h_n, h);
                out += h * splat(C[n]);
            }
            store(y_p + c, out);
        }
    }
}

template <int STATE>
void forward_unit(const Scan& scan, int64_t image, Channels channels, const ForwardSpace& space) {
    const int64_t length = scan.height * scan.width, per_route = scan.rank + 2 * scan.state;
    const int64_t chunks = (length + CHUNK - 1) / CHUNK, stride = scan.routes * per_route;
    const Plane x = read_plane(scan, scan.x, image, channels, space.x);
    const Plane y = result_plane(scan, scan.y, image, channels, space.y);
    sum_of_D(scan, channels, space.skip);
    for (int64_t p = 0; p < length; ++p)
        for (int c = 0; c < BLOCK; c += WIDTH)
            store(y.data + p * y.stride + c,
                  scan.D ? load(space.skip + c) * load(x.data + p * x.stride + c) : splat(0.0f));
    Chunk chunk;
    for (int64_t k = 0; k < scan.routes; ++k) {
        const Walk walk(scan, scan.codes[k]);
        const float* proj = scan.proj + image * length * stride + k * per_route;
        space.params.read(scan, k, channels);
        for (int i = 0; i < scan.state * BLOCK; i += WIDTH) store(space.h + i, splat(0.0f));
        for (int64_t i = 0; i < chunks; ++i) {
            float* carry = carry_at(scan, image, k, i, channels);
            for (int64_t n = 0; n < scan.state; ++n)
                for (int c = 0; c < channels.count; ++c) carry[n * scan.channels + c] = space.h[n * BLOCK + c];
            walk.chunk(i, proj, stride, chunk);
            step_inputs(scan, chunk, space.params, space.d);
            forward_chunk<STATE>(scan, chunk, space, x, y);
        }
    }
    write_plane(scan, y, scan.y, image, channels);
}

struct BackwardSpace : Space {
    Parameters params;
    int64_t padded_rank;
    float *skip, *weight, *d, *slope, *decay, *h, *adjoint, *low, *grad_BC;
    float *grad_weight, *grad_bias, *grad_A, *grad_D, *x, *grad_y, *grad_x;

    BackwardSpace(const Scan& scan, float* memory)
        : Space{memory}, params(*this, scan), padded_rank(up(scan.rank, WIDTH)) {
        const int64_t plane = scan.height * scan.width * BLOCK, tile = (CHUNK + 8) * BLOCK;
        skip = take(BLOCK);
        weight = take(BLOCK * padded_rank);                // dt_weight, (BLOCK, padded_rank)
        d = take(tile);
        slope = take(tile);                                // derivative of softplus, then the gradient of v
        decay = take(CHUNK * scan.state * BLOCK);          // (CHUNK, N, BLOCK)
        h = take((CHUNK + 1) * scan.state * BLOCK);        // before the chunk, then after each step
        adjoint = take(scan.state * BLOCK);                // gradient that reaches the state from later steps
        low = take((CHUNK + 8) * padded_rank);             // gradient of dt_low
        grad_BC = take(CHUNK * 2 * scan.state);
        grad_weight = take(scan.rank * BLOCK);
        grad_bias = take(BLOCK);
        grad_A = take(scan.state * BLOCK);
        grad_D = take(BLOCK);
        x = take(plane);
        grad_y = take(plane);
        grad_x = take(plane);
    }
};

template <int STATE>
SCAN_INLINE void recompute_chunk(const Scan& scan, const Chunk& chunk, const BackwardSpace& space, Plane x) {
    const int rank = (int)scan.rank, state = STATE ? STATE : (int)scan.state;
    for (int i = 0; i < chunk.steps * BLOCK; i += WIDTH) {
        const Vec v = load(space.d + i), e = exp2_of_minus_abs(v);
        store(space.d + i, softplus2(v, e));
        store(space.slope + i, softplus2_grad(v, e));
    }
    for (int p = 0; p < chunk.steps; ++p) {
        const float* B = chunk.proj[p] + rank;
        const float* x_p = x.data + chunk.pixel[p] * x.stride;
        for (int c = 0; c < BLOCK; c += WIDTH) {
            const Vec d = load(space.d + p * BLOCK + c);
            const Vec dx = d * load(x_p + c) * splat(LN2);
            for (int n = 0; n < state; ++n) {
                const int at = (p * state + n) * BLOCK + c;
                const Vec decay = exp2_of(d * load(space.params.A + n * BLOCK + c));
                const Vec before = chunk.restart[p] ? splat(0.0f) : load(space.h + at);
                store(space.decay + at, decay);
                store(space.h + at + state * BLOCK, decay * before + dx * splat(B[n]));
            }
        }
    }
}

template <int STATE>
SCAN_INLINE void backward_chunk(const Scan& scan, const Chunk& chunk, const BackwardSpace& space, Plane x,
                                Plane grad_y, Plane grad_x) {
    const int rank = (int)scan.rank, state = STATE ? STATE : (int)scan.state;
    for (int p = chunk.steps - 1; p >= 0; --p) {
        const float *B = chunk.proj[p] + rank, *C = B + state;
        const float* x_p = x.data + chunk.pixel[p] * x.stride;
        const float* grad_y_p = grad_y.data + chunk.pixel[p] * grad_y.stride;
        float* grad_x_p = grad_x.data + chunk.pixel[p] * grad_x.stride;
        float* grad_BC = space.grad_BC + p * 2 * state;
        Vec grad_dt[VECS], grad_dx[VECS];    // of dt through the decay; of dt * x
        for (int j = 0; j < VECS; ++j) grad_dt[j] = grad_dx[j] = splat(0.0f);
        for (int n = 0; n < state; ++n) {
            Vec grad_B = splat(0.0f), grad_C = splat(0.0f);
            for (int j = 0; j < VECS; ++j) {
                const int c = j * WIDTH, at = (p * state + n) * BLOCK + c, of_n = n * BLOCK + c;
                const Vec g_y = load(grad_y_p + c), d = load(space.d + p * BLOCK + c);
                const Vec g = g_y * splat(C[n]) + load(space.adjoint + of_n);
                Vec passed = g * load(space.decay + at);
                grad_C += g_y * load(space.h + at + state * BLOCK);
                grad_B += g * (d * load(x_p + c));
                grad_dx[j] += g * splat(B[n]);
                Vec grad_log_decay = passed * load(space.h + at);
                if (chunk.restart[p]) grad_log_decay = passed = splat(0.0f);
                store(space.adjoint + of_n, passed);
                grad_dt[j] += grad_log_decay * load(space.params.A + of_n);
                store(space.grad_A + of_n, grad_log_decay * d + load(space.grad_A + of_n));
            }
            grad_BC[n] = LN2 * sum(grad_B);
            grad_BC[state + n] = sum(grad_C);
        }
        for (int j = 0; j < VECS; ++j) {
            const int c = j * WIDTH, at = p * BLOCK + c;
            const Vec grad_v = (grad_dt[j] + grad_dx[j] * load(x_p + c)) * load(space.slope + at);
            store(space.slope + at, grad_v);
            store(space.grad_bias + c, load(space.grad_bias + c) + grad_v);
            store(grad_x_p + c, grad_dx[j] * (load(space.d + at) * splat(LN2)) + load(grad_x_p + c));
        }
    }
}

// Gradients of the matrix product that made v; `first`: grad_proj is written, not added to.
SCAN_INLINE void backward_step_inputs(const Scan& scan, const Chunk& chunk, const BackwardSpace& space,
                                      float* grad_proj, int64_t stride, bool first) {
    const int rank = (int)scan.rank, state = (int)scan.state;
    multiply<VECS, false>(
        rank, chunk.steps, [&](int r, int p) { return chunk.proj[p][r]; }, space.slope, BLOCK,
        [&](int r, int j) { return load(space.grad_weight + r * BLOCK + j * WIDTH); },
        [&](int r, int j, Vec value) { store(space.grad_weight + r * BLOCK + j * WIDTH, value); });
    for (int r = 0; r < rank; r += WIDTH)
        multiply<1, true>(
            chunk.steps, BLOCK, [&](int p, int c) { return space.slope[p * BLOCK + c]; }, space.weight + r,
            space.padded_rank, [&](int, int) { return splat(0.0f); },
            [&](int p, int, Vec value) { store(space.low + p * space.padded_rank + r, value); });
    for (int p = 0; p < chunk.steps; ++p) {
        float* to = grad_proj + chunk.pixel[p] * stride;
        const float *low = space.low + p * space.padded_rank, *grad_BC = space.grad_BC + p * 2 * state;
        if (first) {
            for (int r = 0; r < rank; ++r) to[r] = low[r];
            for (int n = 0; n < 2 * state; ++n) to[rank + n] = grad_BC[n];
        } else {
            for (int r = 0; r < rank; ++r) to[r] += low[r];
            for (int n = 0; n < 2 * state; ++n) to[rank + n] += grad_BC[n];
        }
    }
}

// to[c * rows + r] = or += from[r][c]
inline void add_transposed(float* to, const float* from, int64_t rows, int columns, float scale, bool first) {
    for (int64_t c = 0; c < columns; ++c)
        for (int64_t r = 0; r < rows; ++r)
            to[c * rows + r] = from[r * BLOCK + c] * scale + (first ? 0.0f : to[c * rows + r]);
}

template <int STATE>
void backward_unit(const Scan& scan, int64_t image, Channels channels, int64_t group, int64_t slice, bool first_image,
                   bool first_block, const BackwardSpace& space) {
    const int64_t length = scan.height * scan.width, per_route = scan.rank + 2 * scan.state;
    const int64_t chunks = (length + CHUNK - 1) / CHUNK, stride = scan.routes * per_route;
    const Plane x = read_plane(scan, scan.x, image, channels, space.x);
    const Plane grad_y = read_plane(scan, scan.grad_y, image, channels, space.grad_y);
    const Plane grad_x = result_plane(scan, scan.grad_x, image, channels, space.grad_x);
    sum_of_D(scan, channels, space.skip);
    for (int c = 0; c < BLOCK; c += WIDTH) store(space.grad_D + c, splat(0.0f));
    for (int64_t p = 0; p < length; ++p)
        for (int c = 0; c < BLOCK; c += WIDTH) {
            const Vec g = load(grad_y.data + p * grad_y.stride + c);
            store(grad_x.data + p * grad_x.stride + c, scan.D ? g * load(space.skip + c) : splat(0.0f));
            store(space.grad_D + c, g * load(x.data + p * x.stride + c) + load(space.grad_D + c));
        }
    if (scan.D)
        add_transposed(scan.grad_D + group * scan.channels + channels.first, space.grad_D, 1, channels.count, 1.0f,
                       first_image);

    Chunk chunk;
    for (int64_t k = 0; k < scan.routes; ++k) {
        const Walk walk(scan, scan.codes[k]);
        const float* proj = scan.proj + image * length * stride + k * per_route;
        float* grad_proj = scan.grad_proj + (slice * scan.batch + image) * length * stride + k * per_route;
        const int64_t first_channel = k * scan.channels + channels.first;
        space.params.read(scan, k, channels);
        for (int64_t c = 0; c < BLOCK; ++c)
            for (int64_t r = 0; r < space.padded_rank; ++r)
                space.weight[c * space.padded_rank + r] =
                    c < channels.count && r < scan.rank ? scan.dt_weight[(first_channel + c) * scan.rank + r] : 0.0f;
        for (int i = 0; i < scan.state * BLOCK; i += WIDTH) {
            store(space.adjoint + i, splat(0.0f));
            store(space.grad_A + i, splat(0.0f));
        }
        for (int i = 0; i < scan.rank * BLOCK; i += WIDTH) store(space.grad_weight + i, splat(0.0f));
        for (int c = 0; c < BLOCK; c += WIDTH) store(space.grad_bias + c, splat(0.0f));

        for (int64_t i = chunks - 1; i >= 0; --i) {
            const float* carry = carry_at(scan, image, k, i, channels);
            for (int64_t n = 0; n < scan.state; ++n)
                copy_row(space.h + n * BLOCK, carry + n * scan.channels, channels.count);
            walk.chunk(i, proj, stride, chunk);
            step_inputs(scan, chunk, space.params, space.d);
            recompute_chunk<STATE>(scan, chunk, space, x);
            backward_chunk<STATE>(scan, chunk, space, x, grad_y, grad_x);
            backward_step_inputs(scan, chunk, space, grad_proj, stride, first_block);
        }
        const int64_t at = group * scan.routes * scan.channels + first_channel;
        add_transposed(scan.grad_dt_weight + at * scan.rank, space.grad_weight, scan.rank, channels.count, 1.0f,
                       first_image);
        add_transposed(scan.grad_dt_bias + at, space.grad_bias, 1, channels.count, 1.0f, first_image);
        add_transposed(scan.grad_A + at * scan.state, space.grad_A, scan.state, channels.count, LN2, first_image);
    }
    write_plane(scan, grad_x, scan.grad_x, image, channels);
}

// Adds copies 1, 2, ... of `size` floats to the first, in this order.
void add_up(float* data, int64_t copies, int64_t size, int threads) {
    const int64_t pieces = (size + 4095) / 4096;
    if (copies < 2) return;
#pragma omp parallel for num_threads(threads)
    for (int64_t piece = 0; piece < pieces; ++piece)
        for (int64_t copy = 1; copy < copies; ++copy)
            for (int64_t i = piece * 4096; i < smaller(size, piece * 4096 + 4096); ++i)
                data[i] += data[copy * size + i];
}

template <int STATE>
void forward_all(const Scan& scan) {
    const int64_t blocks = (scan.channels + BLOCK - 1) / BLOCK, units = scan.batch * blocks;
    const int64_t floats = ForwardSpace(scan, nullptr).used;
    const int threads = (int)scan.threads;
#pragma omp parallel num_threads(threads)
    {
        const FlushSubnormals flush;
        const ForwardSpace space(scan, scan.workspace + thread_number() * floats);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < units; ++unit)
            forward_unit<STATE>(scan, unit / blocks, Channels(scan, unit % blocks), space);
    }
}

template <int STATE>
void backward_all(const Scan& scan) {
    const int64_t blocks = (scan.channels + BLOCK - 1) / BLOCK, units = scan.groups * scan.slices;
    const int64_t floats = BackwardSpace(scan, nullptr).used;
    const int threads = (int)scan.threads;
#pragma omp parallel num_threads(threads)
    {
        const FlushSubnormals flush;
        const BackwardSpace space(scan, scan.workspace + thread_number() * floats);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < units; ++unit) {
            const int64_t group = unit / scan.slices, slice = unit % scan.slices;
            const int64_t first_image = group * scan.batch / scan.groups, first_block = slice * blocks / scan.slices;
            for (int64_t image = first_image; image < (group + 1) * scan.batch / scan.groups; ++image)
                for (int64_t block = first_block; block < (slice + 1) * blocks / scan.slices; ++block)
                    backward_unit<STATE>(scan, image, Channels(scan, block), group, slice, image == first_image,
                                         block == first_block, space);
        }
    }
    const int64_t parameters = scan.routes * scan.channels;
    const int64_t pixels = scan.batch * scan.height * scan.width;
    add_up(scan.grad_proj, scan.slices, pixels * scan.routes * (scan.rank + 2 * scan.state), threads);
    add_up(scan.grad_dt_weight, scan.groups, parameters * scan.rank, threads);
    add_up(scan.grad_dt_bias, scan.groups, parameters, threads);
    add_up(scan.grad_A, scan.groups, parameters * scan.state, threads);
    if (scan.D) add_up(scan.grad_D, scan.groups, scan.channels, threads);
}

int64_t forward_workspace(const Scan& scan) { return ForwardSpace(scan, nullptr).used; }
int64_t backward_workspace(const Scan& scan) { return BackwardSpace(scan, nullptr).used; }
void forward(const Scan& scan) { scan.state == 1 ? forward_all<1>(scan) : forward_all<0>(scan); }
void backward(const Scan& scan) { scan.state == 1 ? backward_all<1>(scan) : backward_all<0>(scan); }

}  // namespace

extern const Kernels KERNELS = {forward_workspace, backward_workspace, forward, backward};
