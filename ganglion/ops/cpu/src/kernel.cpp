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

#include "common.h"
#include "planes.h"
#include "scan.h"
#include "simd.h"
#include "workspace.h"

namespace {

constexpr int VECS = BLOCK / WIDTH;

// v = dt_weight @ dt_low + dt_bias of every step, in units of ln 2. proj: dt_low, B and C of the steps, (steps, P).
SCAN_INLINE void step_inputs(const Scan& scan, int steps, const Parameters& params, const float* proj, float* v) {
    const float* const bias = params.bias;
    const int64_t per_route = scan.per_route();
    multiply<VECS, true>(
        steps, (int)scan.rank, [=](int p, int r) { return proj[p * per_route + r]; }, params.weight, BLOCK,
        [=](int, int j) { return load(bias + j * WIDTH); },
        [=](int p, int j, Vec value) { store(v + p * BLOCK + j * WIDTH, value); });
}

inline float* carry_at(const Scan& scan, int64_t image, int64_t route, int64_t chunk, Channels channels) {
    return scan.carry + ((image * scan.routes + route) * scan.chunks() + chunk) * scan.state * scan.channels +
           channels.first;
}

// to = skip * from, or zero without D, at the pixels of a chunk.
inline void begin_with_skip(const Scan& scan, const Chunk& chunk, const float* skip, const float* from, float* to) {
    for (int p = 0; p < chunk.steps; ++p)
        for (int c = 0; c < BLOCK; c += WIDTH)
            store(to + chunk.plane[p] + c, scan.D ? load(skip + c) * load(from + chunk.plane[p] + c) : splat(0.0f));
}

// STATE is the state size, or 0 if it is only known at run time.
template <int STATE>
SCAN_INLINE void forward_chunk(const Scan& scan, const Chunk& chunk, const Parameters& params, const float* proj,
                               const ForwardSpace& space) {
    const int rank = (int)scan.rank, state = STATE ? STATE : (int)scan.state, per_route = rank + 2 * state;
    float *const d_ = space.d, *const h_ = space.h;
    const float *const A = params.A, *B = proj + rank, *const x = space.x;
    float* const y = space.y;
    for (int p = 0; p < chunk.steps; ++p) {
        prefetch(x + chunk.plane[p]);
        prefetch(y + chunk.plane[p]);
        for (int i = p * BLOCK; i < (p + 1) * BLOCK; i += WIDTH) {
            const Vec v = load(d_ + i);
            store(d_ + i, softplus2(v, exp2_of_minus_abs(v)));
        }
    }
    Vec kept[STATE * VECS + 1];    // the state, in registers if it is small
    for (int i = 0; i < STATE * VECS; ++i) kept[i] = load(h_ + i * WIDTH);
    for (int p = 0; p < chunk.steps; ++p, B += per_route) {
        const float *const C = B + state, *const x_p = x + chunk.plane[p];
        float* const y_p = y + chunk.plane[p];
        if (chunk.restart[p]) {
            for (int i = 0; i < STATE * VECS; ++i) kept[i] = splat(0.0f);
            if (!STATE) zero(h_, state * BLOCK);
        }
        for (int j = 0; j < VECS; ++j) {
            const int c = j * WIDTH;
            const Vec d = load(d_ + p * BLOCK + c), dx = d * load(x_p + c) * splat(LN2);
            Vec out = load(y_p + c);
            for (int n = 0; n < state; ++n) {
                const Vec decay = exp2_of(d * load(A + n * BLOCK + c));
                const Vec before = STATE ? kept[n * VECS + j] : load(h_ + n * BLOCK + c);
                const Vec h = decay * before + dx * splat(B[n]);
                if (STATE)
                    kept[n * VECS + j] = h;
                else
                    store(h_ + n * BLOCK + c, h);
                out += h * splat(C[n]);
            }
            store(y_p + c, out);
        }
    }
    for (int i = 0; i < STATE * VECS; ++i) store(h_ + i * WIDTH, kept[i]);
}

template <int STATE>
void forward_unit(const Scan& scan, int64_t image, Channels channels, const Shared& shared,
                  const ForwardSpace& space) {
    Chunk chunk;
    for (int64_t k = 0; k < scan.routes; ++k) {
        const Walk walk(scan, scan.codes[k]);
        const Parameters params = shared.parameters_of(scan, k, channels);
        zero(space.h, scan.state * BLOCK);
        for (int64_t i = 0; i < scan.chunks(); ++i) {
            const float* const proj = shared.proj + walked_index(scan, image, k, i);
            float* const carry = carry_at(scan, image, k, i, channels);
            for (int64_t n = 0; n < scan.state; ++n)
                for (int c = 0; c < channels.count; ++c) carry[n * scan.channels + c] = space.h[n * BLOCK + c];
            walk.chunk(i, chunk);
            if (k == 0) {
                read_chunk(scan, scan.x, image, channels, chunk, space.x);
                begin_with_skip(scan, chunk, params.skip, space.x, space.y);
            }
            step_inputs(scan, chunk.steps, params, proj, space.d);
            forward_chunk<STATE>(scan, chunk, params, proj, space);
            if (k == scan.routes - 1) write_chunk(scan, space.y, scan.y, image, channels, chunk);
        }
    }
}

template <int STATE>
SCAN_INLINE void recompute_chunk(const Scan& scan, const Chunk& chunk, const Parameters& params, const float* proj,
                                 const BackwardSpace& space) {
    const int rank = (int)scan.rank, state = STATE ? STATE : (int)scan.state, per_route = rank + 2 * state;
    float *const d_ = space.d, *const slope = space.slope, *const decay_ = space.decay, *const h_ = space.h;
    const float *const A = params.A, *B = proj + rank, *const x = space.x;
    for (int i = 0; i < chunk.steps * BLOCK; i += WIDTH) {
        const Vec v = load(d_ + i), e = exp2_of_minus_abs(v);
        store(d_ + i, softplus2(v, e));
        store(slope + i, softplus2_grad(v, e));
    }
    for (int p = 0; p < chunk.steps; ++p, B += per_route) {
        const float* const x_p = x + chunk.plane[p];
        prefetch(space.grad_y + chunk.plane[p]);    // for backward_chunk, like the next
        prefetch(space.grad_x + chunk.plane[p]);
        for (int j = 0; j < VECS; ++j) {
            const int c = j * WIDTH;
            const Vec d = load(d_ + p * BLOCK + c), dx = d * load(x_p + c) * splat(LN2);
            for (int n = 0; n < state; ++n) {
                const int at = (p * state + n) * BLOCK + c;
                const Vec decay = exp2_of(d * load(A + n * BLOCK + c));
                const Vec before = chunk.restart[p] ? splat(0.0f) : load(h_ + at);
                store(decay_ + at, decay);
                store(h_ + at + state * BLOCK, decay * before + dx * splat(B[n]));
            }
        }
    }
}

// a, but zero in the channels of a block that do not exist: 0 * infinity makes NaN there, which no sum may see. FULL
// says that all exist.
template <bool FULL>
SCAN_INLINE Vec existing(Vec a, int first_lane, int count) {
    return FULL ? a : select(lanes_below(count - first_lane), a, splat(0.0f));
}

template <int STATE, bool FULL>
SCAN_INLINE void backward_chunk(const Scan& scan, const Chunk& chunk, int channels, const Parameters& params,
                                const float* proj, const Sums& sums, const BackwardSpace& space) {
    const int rank = (int)scan.rank, state = STATE ? STATE : (int)scan.state, per_route = rank + 2 * state;
    const int row = (int)BackwardSpace::grad_proj_row(scan), padded_rank = row - 2 * state;
    const float *const d_ = space.d, *const decay = space.decay, *const h = space.h, *const A = params.A;
    const float *const x = space.x, *const grad_y = space.grad_y;
    float *const slope = space.slope, *const adjoint = space.adjoint, *const grad_x = space.grad_x;
    float *const grad_A = sums.A, *const grad_bias = sums.bias;
    for (int p = chunk.steps - 1; p >= 0; --p) {
        const float *const B = proj + p * per_route + rank, *const C = B + state;
        const float *const x_p = x + chunk.plane[p], *const grad_y_p = grad_y + chunk.plane[p];
        float* const grad_x_p = grad_x + chunk.plane[p];
        float *const grad_B = space.grad_proj + p * row + padded_rank, *const grad_C = grad_B + state;
        Vec grad_dt[VECS], grad_dx[VECS];    // of dt through the decay; of dt * x
        for (int j = 0; j < VECS; ++j) grad_dt[j] = grad_dx[j] = splat(0.0f);
        for (int n = 0; n < state; ++n) {
            Vec along_B = splat(0.0f), along_C = splat(0.0f);
            for (int j = 0; j < VECS; ++j) {
                const int c = j * WIDTH, at = (p * state + n) * BLOCK + c, of_n = n * BLOCK + c;
                const Vec g_y = load(grad_y_p + c), d = load(d_ + p * BLOCK + c);
                const Vec g = g_y * splat(C[n]) + load(adjoint + of_n);
                Vec passed = g * load(decay + at), grad_log_decay = passed * load(h + at);
                if (chunk.restart[p]) {    // the state before is zero, and times infinity that is NaN, as everywhere
                    grad_log_decay = passed * splat(0.0f);
                    passed = splat(0.0f);
                }
                along_C += existing<FULL>(g_y * load(h + at + state * BLOCK), c, channels);
                along_B += existing<FULL>(g * (d * load(x_p + c)), c, channels);
                grad_dx[j] += g * splat(B[n]);
                grad_dt[j] += grad_log_decay * load(A + of_n);
                store(adjoint + of_n, passed);
                store(grad_A + of_n, grad_log_decay * d + load(grad_A + of_n));
            }
            grad_B[n] = LN2 * sum(along_B);
            grad_C[n] = sum(along_C);
        }
        for (int j = 0; j < VECS; ++j) {
            const int c = j * WIDTH, at = p * BLOCK + c;
            const Vec grad_v = (grad_dt[j] + grad_dx[j] * load(x_p + c)) * load(slope + at);
            store(slope + at, grad_v);
            store(grad_bias + c, load(grad_bias + c) + grad_v);
            store(grad_x_p + c, grad_dx[j] * (load(d_ + at) * splat(LN2)) + load(grad_x_p + c));
        }
    }
}

// COLS vectors of the gradient of dt_low, from column r.
template <int COLS, bool FULL>
SCAN_INLINE void grad_low_columns(int steps, int channels, int row, const float* grad_v, const Parameters& params,
                                  int r, float* to) {
    multiply<COLS, false>(
        steps, FULL ? BLOCK : channels, [=](int p, int c) { return grad_v[p * BLOCK + c]; }, params.weight_rows + r, params.padded_rank,
        [](int, int) { return splat(0.0f); },
        [=](int p, int j, Vec value) { store(to + p * row + r + j * WIDTH, value); });
}

// Gradients of the matrix product that made v.
template <bool FULL>
SCAN_INLINE void backward_step_inputs(const Scan& scan, int steps, int channels, const Parameters& params,
                                      const float* proj, const Sums& sums, const BackwardSpace& space) {
    const int rank = (int)scan.rank;
    const int64_t per_route = scan.per_route();
    const int row = (int)BackwardSpace::grad_proj_row(scan);
    const float* const grad_v = space.slope;
    float* const grad_weight = sums.weight;
    multiply<VECS, false>(
        rank, steps, [=](int r, int p) { return proj[p * per_route + r]; }, grad_v, BLOCK,
        [=](int r, int j) { return load(grad_weight + r * BLOCK + j * WIDTH); },
        [=](int r, int j, Vec value) { store(grad_weight + r * BLOCK + j * WIDTH, value); });
    int r = 0;
    for (; r + WIDTH < rank; r += 2 * WIDTH)
        grad_low_columns<2, FULL>(steps, channels, row, grad_v, params, r, space.grad_proj);
    for (; r < rank; r += WIDTH) grad_low_columns<1, FULL>(steps, channels, row, grad_v, params, r, space.grad_proj);
}

// Writes (`first`) or adds the gradient of a chunk's projections to that of the image.
SCAN_INLINE void add_grad_proj(const Scan& scan, int steps, const BackwardSpace& space, float* to, bool first) {
    const int rank = (int)scan.rank, two_states = 2 * (int)scan.state, row = (int)BackwardSpace::grad_proj_row(scan);
    const float* low = space.grad_proj;
    for (int p = 0; p < steps; ++p, low += row, to += rank + two_states) {
        const float* const BC = low + row - two_states;
        for (int r = 0; r < rank; ++r) to[r] = first ? low[r] : to[r] + low[r];
        for (int n = 0; n < two_states; ++n) to[rank + n] = first ? BC[n] : to[rank + n] + BC[n];
    }
}

// total += a * b over the pixels of a chunk.
inline void add_products(const Chunk& chunk, const float* a, const float* b, float* total) {
    for (int p = 0; p < chunk.steps; ++p)
        for (int c = 0; c < BLOCK; c += WIDTH)
            store(total + c, load(a + chunk.plane[p] + c) * load(b + chunk.plane[p] + c) + load(total + c));
}

// Which partial sums a unit adds to, and whether it is the one that begins them.
struct Partial {
    int64_t group, slice;
    bool first_image, first_block;
};

template <int STATE>
void backward_unit(const Scan& scan, int64_t image, Channels channels, Partial partial, const Shared& shared,
                   const BackwardSpace& space) {
    Chunk chunk;
    for (int64_t k = 0; k < scan.routes; ++k) {
        const Walk walk(scan, scan.codes[k]);
        const Parameters params = shared.parameters_of(scan, k, channels);
        const Sums sums = shared.sums_of(scan, partial.group, k, channels);
        if (partial.first_image) zero(sums.memory, sums.used);
        zero(space.adjoint, scan.state * BLOCK);
        for (int64_t i = scan.chunks() - 1; i >= 0; --i) {
            const int64_t walked = walked_index(scan, image, k, i);
            const float *const proj = shared.proj + walked, *const carry = carry_at(scan, image, k, i, channels);
            float* const grad_proj = shared.grad_proj + partial.slice * walked_size(scan) + walked;
            for (int64_t n = 0; n < scan.state; ++n)
                for (int c = 0; c < BLOCK; ++c)
                    space.h[n * BLOCK + c] = c < channels.count ? carry[n * scan.channels + c] : 0.0f;
            walk.chunk(i, chunk);
            if (k == 0) {
                read_chunk(scan, scan.x, image, channels, chunk, space.x);
                read_chunk(scan, scan.grad_y, image, channels, chunk, space.grad_y);
                begin_with_skip(scan, chunk, params.skip, space.grad_y, space.grad_x);
                add_products(chunk, space.x, space.grad_y, sums.D);
            }
            step_inputs(scan, chunk.steps, params, proj, space.d);
            recompute_chunk<STATE>(scan, chunk, params, proj, space);
            if (channels.count == BLOCK) {
                backward_chunk<STATE, true>(scan, chunk, BLOCK, params, proj, sums, space);
                backward_step_inputs<true>(scan, chunk.steps, BLOCK, params, proj, sums, space);
            } else {
                backward_chunk<STATE, false>(scan, chunk, channels.count, params, proj, sums, space);
                backward_step_inputs<false>(scan, chunk.steps, channels.count, params, proj, sums, space);
            }
            add_grad_proj(scan, chunk.steps, space, grad_proj, partial.first_block);
            if (k == scan.routes - 1) write_chunk(scan, space.grad_x, scan.grad_x, image, channels, chunk);
        }
    }
}

// Prepares what is shared, then runs `work(unit, space)` for all units, on the threads.
template <class UnitSpace, class Work>
void run(const Scan& scan, const Shared& shared, int64_t units, Work work) {
    const int64_t floats = UnitSpace(scan, nullptr).used, blocks = scan.blocks(), chunks = scan.chunks();
    [[maybe_unused]] const int threads = (int)scan.threads;
#pragma omp parallel num_threads(threads)
    {
        [[maybe_unused]] const FlushSubnormals flush;
        const UnitSpace space(scan, scan.workspace + shared.used + thread_number() * floats);
#pragma omp for nowait
        for (int64_t i = 0; i < scan.routes * blocks; ++i) {
            const Channels channels(scan, i % blocks);
            shared.parameters_of(scan, i / blocks, channels).read(scan, i / blocks, channels);
        }
#pragma omp for
        for (int64_t i = 0; i < scan.batch * scan.routes * chunks; ++i)
            read_proj_chunk(scan, i / (scan.routes * chunks), i / chunks % scan.routes, i % chunks, shared.proj);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < units; ++unit) work(unit, space);
    }
}

template <int STATE>
void forward_all(const Scan& scan) {
    const int64_t blocks = scan.blocks();
    const Shared shared(scan);
    run<ForwardSpace>(scan, shared, scan.batch * blocks, [&](int64_t unit, const ForwardSpace& space) {
        forward_unit<STATE>(scan, unit / blocks, Channels(scan, unit % blocks), shared, space);
    });
}

template <int STATE>
void backward_all(const Scan& scan) {
    const Shared shared(scan);
    run<BackwardSpace>(scan, shared, scan.groups * scan.slices, [&](int64_t unit, const BackwardSpace& space) {
        const int64_t group = unit / scan.slices, slice = unit % scan.slices;
        const int64_t image = group * scan.batch / scan.groups, block = slice * scan.blocks() / scan.slices;
        for (int64_t i = image; i < (group + 1) * scan.batch / scan.groups; ++i)
            for (int64_t j = block; j < (slice + 1) * scan.blocks() / scan.slices; ++j)
                backward_unit<STATE>(scan, i, Channels(scan, j), {group, slice, i == image, j == block}, shared, space);
    });
    const int64_t blocks = scan.blocks(), chunks = scan.chunks();
    [[maybe_unused]] const int threads = (int)scan.threads;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for nowait
        for (int64_t i = 0; i < scan.routes * blocks; ++i) {
            const int64_t route = i / blocks;
            const Channels channels(scan, i % blocks);
            const Sums total = shared.sums_of(scan, 0, route, channels);
            for (int64_t group = 1; group < scan.groups; ++group)
                total.add(shared.sums_of(scan, group, route, channels));
            total.write(scan, route, channels);
        }
#pragma omp for
        for (int64_t i = 0; i < scan.batch * scan.routes * chunks; ++i)
            write_grad_proj_chunk(scan, i / (scan.routes * chunks), i / chunks % scan.routes, i % chunks,
                                  shared.grad_proj);
    }
}

int64_t workspace(const Scan& scan) {
    const int64_t per_thread = scan.backward() ? BackwardSpace(scan, nullptr).used : ForwardSpace(scan, nullptr).used;
    return Shared(scan).used + scan.threads * per_thread;
}
void forward(const Scan& scan) { scan.state == 1 ? forward_all<1>(scan) : forward_all<0>(scan); }
void backward(const Scan& scan) { scan.state == 1 ? backward_all<1>(scan) : backward_all<0>(scan); }

}  // namespace

extern const Kernels KERNELS = {workspace, forward, backward};
