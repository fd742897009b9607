// The 1-D selective scan. Compiled once per instruction set, with SELECTIVE_SCAN naming the table that it exports.
//
// Channels are the vector axis: the recurrence then needs no shuffles, B and C are one number for all lanes, and any
// state size costs the same a state. Sequences lie channel by channel, so blocks of them are turned on the way in and
// out, once for all states. A block walks the sequence a few steps after the other; a few states at a time go through
// them, so that states are in registers and what the states share is read for several of them at once.
//
// The backward pass takes chunks, from the last to the first. It computes a chunk's states again from the recorded one
// and keeps them for a few states at a time. The gradients of B and C are sums over channels, that is over lanes, and
// are taken for WIDTH steps together.
//
// A is kept times log2(e), so that the decay is a base-two function without conversion: exp(dt * A) = 2 ** (dt * A2).
//
// No result depends on the number of threads: a unit of work writes memory of its own, and partial sums over units that
// the shapes alone determine are added in a fixed order.

#include "selective_scan.h"

#include "common.h"
#include "simd.h"
#include "tiles.h"

namespace {

// States that go through a chunk together: as many as the registers hold.
constexpr int FORWARD_STATES = 4;
// Steps that are read, prepared and written together: a cache line of each row.
constexpr int STEPS = 16;
// How many steps ahead the forward pass asks for memory.
constexpr int AHEAD = 8 * STEPS;
constexpr int BACKWARD_STATES = 2;

// The parameters of a block, and memory for its state.
struct Parameters : Space {
    float *A2, *B, *C;      // (N, WIDTH); A times log2(e); B and C if they are constant
    float *bias, *skip;     // (WIDTH,); skip is D
    float *state;           // (N, WIDTH)

    Parameters(const SelectiveScan& scan, float* memory) : Space{memory} {
        const int64_t states = scan.state * WIDTH;
        A2 = take(states);
        B = take(scan.B.constant ? states : 0);
        C = take(scan.C.constant ? states : 0);
        bias = take(WIDTH);
        skip = take(WIDTH);
        state = take(states);
    }

    void read(const SelectiveScan& scan, const Block& block) const {
        const int64_t states = block.channel * scan.state;
        read_lanes(scan.A + states, scan.state, block.count, A2);
        for (int64_t i = 0; i < scan.state * WIDTH; ++i) A2[i] *= LOG2E;
        if (scan.B.constant) read_lanes(scan.B.data + states, scan.state, block.count, B);
        if (scan.C.constant) read_lanes(scan.C.data + states, scan.state, block.count, C);
        read_lanes(scan.delta_bias ? scan.delta_bias + block.channel : nullptr, 1, block.count, bias);
        read_lanes(scan.D ? scan.D + block.channel : nullptr, 1, block.count, skip);
    }
};

inline Rows rows_of(const Weights& weights, const float* constant, const Block& block, int64_t first) {
    if (weights.constant) return {constant, WIDTH};
    return {weights.data + block.image * weights.batch + block.group * weights.group + first, weights.state};
}

inline int64_t state_index(const SelectiveScan& scan, const Block& block) {
    return (block.image * scan.channels + block.channel) * scan.state;
}

inline float* carry_at(const SelectiveScan& scan, const Block& block, int64_t chunk) {
    return scan.carry + (block.image * scan.chunks() + chunk) * scan.state * scan.channels + block.channel;
}

// B or C at a step, for all channels of a block.
template <bool CONSTANT>
SCAN_INLINE Vec weight(const float* row, int step) {
    return CONSTANT ? load(row) : splat(row[step]);
}

// Calls `work` with the constants of B and C as types.
template <class Work>
void with_constants(const SelectiveScan& scan, Work work) {
    using std::bool_constant;
    if (scan.B.constant)
        scan.C.constant ? work(bool_constant<true>(), bool_constant<true>())
                        : work(bool_constant<true>(), bool_constant<false>());
    else
        scan.C.constant ? work(bool_constant<false>(), bool_constant<true>())
                        : work(bool_constant<false>(), bool_constant<false>());
}

// silu(z) = z * slope and the slope.
SCAN_INLINE Vec logistic(Vec z) {
    const Vec v = z * splat(LOG2E);
    return softplus2_grad(v, exp2_of_minus_abs(v));
}

// A step size and its derivative by `v`, delta + delta_bias.
struct StepSize {
    Vec dt, slope;
};
SCAN_INLINE StepSize step_size(const SelectiveScan& scan, Vec v) {
    if (!scan.softplus) return {v, splat(1.0f)};
    const Vec v2 = v * splat(LOG2E), e = exp2_of_minus_abs(v2);
    return {softplus2(v2, e) * splat(LN2), softplus2_grad(v2, e)};
}

struct ForwardSpace : Parameters {
    float *rows, *x, *dt, *y;    // tiles

    ForwardSpace(const SelectiveScan& scan, float* memory) : Parameters(scan, memory) {
        for (float** tile : {&rows, &x, &dt, &y}) *tile = take(TILE);
    }
};

// COUNT states from state n through some steps.
template <int COUNT, bool CONSTANT_B, bool CONSTANT_C>
SCAN_INLINE void forward_states(int steps, int64_t n, Rows B, Rows C, const ForwardSpace& space) {
    const float *b[COUNT], *c[COUNT];
    Vec h[COUNT], A2[COUNT];
    for (int i = 0; i < COUNT; ++i) {
        b[i] = B[n + i], c[i] = C[n + i];
        h[i] = load(space.state + (n + i) * WIDTH), A2[i] = load(space.A2 + (n + i) * WIDTH);
    }
    const float *const x = space.x, *const dt_ = space.dt;
    float* const y = space.y;
    for (int t = 0; t < steps; ++t) {
        const Vec dt = load(dt_ + t * WIDTH), dx = dt * load(x + t * WIDTH);
        Vec out = load(y + t * WIDTH);
        for (int i = 0; i < COUNT; ++i) {
            h[i] = exp2_of(dt * A2[i]) * h[i] + dx * weight<CONSTANT_B>(b[i], t);
            out += h[i] * weight<CONSTANT_C>(c[i], t);
        }
        store(y + t * WIDTH, out);
    }
    for (int i = 0; i < COUNT; ++i) store(space.state + (n + i) * WIDTH, h[i]);
}

template <bool CONSTANT_B, bool CONSTANT_C>
void forward_block(const SelectiveScan& scan, const Block& block, const ForwardSpace& space) {
    space.read(scan, block);
    read_lanes(scan.initial_state ? scan.initial_state + state_index(scan, block) : nullptr, scan.state, block.count,
               space.state);
    const Vec bias = load(space.bias), skip = load(space.skip);
    for (int64_t first = 0; first < scan.length; first += STEPS) {
        const int steps = (int)smaller(STEPS, scan.length - first);
        if (first % CHUNK == 0) {
            float* const carry = carry_at(scan, block, first / CHUNK);
            for (int64_t n = 0; n < scan.state; ++n)
                for (int c = 0; c < block.count; ++c) carry[n * scan.channels + c] = space.state[n * WIDTH + c];
        }
        read_tile(scan.u, block, first, steps, space.rows, space.x);
        read_tile(scan.delta, block, first, steps, space.rows, space.dt);
        const int64_t later = first + AHEAD;
        Ahead u(scan, scan.u, block, later), delta(scan, scan.delta, block, later), y(scan, scan.y, block, later);
        for (int i = 0; i < steps * WIDTH; i += WIDTH) {
            u(i / WIDTH), delta(i / WIDTH), y(i / WIDTH);
            store(space.dt + i, step_size(scan, load(space.dt + i) + bias).dt);
            store(space.y + i, skip * load(space.x + i));
        }
        const Rows B = rows_of(scan.B, space.B, block, first), C = rows_of(scan.C, space.C, block, first);
        int64_t n = 0;
        for (; n + FORWARD_STATES <= scan.state; n += FORWARD_STATES)
            forward_states<FORWARD_STATES, CONSTANT_B, CONSTANT_C>(steps, n, B, C, space);
        for (; n < scan.state; ++n) forward_states<1, CONSTANT_B, CONSTANT_C>(steps, n, B, C, space);
        if (scan.z.data) {
            read_tile(scan.z, block, first, steps, space.rows, space.x);
            for (int i = 0; i < steps * WIDTH; i += WIDTH) {
                const Vec z = load(space.x + i);
                store(space.y + i, load(space.y + i) * (z * logistic(z)));
            }
        }
        write_tile(space.y, scan.y, block, first, steps, space.rows);
    }
    write_lanes(space.state, scan.state, block.count, scan.last_state + state_index(scan, block));
}

// Gradients of the parameters of a block, summed over the images of a piece.
struct Sums : Space {
    float *A, *B, *C;      // (N, WIDTH); of B and C if they are constant
    float *bias, *skip;    // (WIDTH,)

    Sums(const SelectiveScan& scan, float* memory) : Space{memory} {
        const int64_t states = scan.state * WIDTH;
        A = take(states);
        B = take(scan.B.constant ? states : 0);
        C = take(scan.C.constant ? states : 0);
        bias = take(WIDTH);
        skip = take(WIDTH);
    }
    void add(const Sums& other) const {
        for (int64_t i = 0; i < used; ++i) memory[i] += other.memory[i];
    }
    void write(const SelectiveScan& scan, const Block& block) const {
        const int64_t states = block.channel * scan.state;
        write_lanes(A, scan.state, block.count, scan.grad_A + states);
        if (scan.B.constant) write_lanes(B, scan.state, block.count, scan.grad_B + states);
        if (scan.C.constant) write_lanes(C, scan.state, block.count, scan.grad_C + states);
        write_lanes(bias, 1, block.count, scan.grad_delta_bias ? scan.grad_delta_bias + block.channel : nullptr);
        write_lanes(skip, 1, block.count, scan.grad_D ? scan.grad_D + block.channel : nullptr);
    }
};

// How backward divides its work: images into pieces, each with sums of the parameters' gradients, and the blocks of a
// group into slices, each with sums of the gradients of B and C. The latter take no more memory than u or twice the
// carries.
struct Division {
    int64_t pieces, slices;

    explicit Division(const SelectiveScan& scan) {
        constexpr int64_t units = 64;
        const int64_t channels = scan.group_channels();
        pieces = smaller(scan.batch, units);
        slices = smaller(blocks_of_group(scan), (units + pieces * scan.groups - 1) / (pieces * scan.groups));
        slices = smaller(slices, larger(1, larger(channels / (2 * scan.state), channels / CHUNK)));
    }
};

struct BackwardShared : Space {
    Division division;
    float* sums;               // of every piece and block
    float *grad_B, *grad_C;    // of every slice but the first, whose are scan's

    explicit BackwardShared(const SelectiveScan& scan) : Space{scan.workspace}, division(scan) {
        const int64_t blocks = scan.groups * blocks_of_group(scan);
        sums = take(division.pieces * blocks * Sums(scan, nullptr).used);
        grad_B = take(scan.B.constant ? 0 : (division.slices - 1) * weights_size(scan));
        grad_C = take(scan.C.constant ? 0 : (division.slices - 1) * weights_size(scan));
    }
    static int64_t weights_size(const SelectiveScan& scan) {
        return scan.batch * scan.groups * scan.state * scan.length;
    }
    Sums sums_of(const SelectiveScan& scan, int64_t piece, int64_t group, int64_t block) const {
        const int64_t index = (piece * scan.groups + group) * blocks_of_group(scan) + block;
        return Sums(scan, sums + index * Sums(scan, nullptr).used);
    }
    float* slice_of(const SelectiveScan& scan, float* first, float* others, int64_t slice) const {
        return slice == 0 ? first : others + (slice - 1) * weights_size(scan);
    }
};

struct BackwardSpace : Parameters {
    float *rows, *x, *dt, *slope, *grad_y;    // tiles
    float *grad_dt, *grad_dx;                 // tiles: of dt through the decay, in units of ln 2; of dt * x
    float *z, *grad_out, *y;                                      // tiles, if there is a gate
    float *decay, *states;                                        // (CHUNK + 1, WIDTH) for some states
    float *along_B, *along_C;                                     // (WIDTH, WIDTH), for some states

    BackwardSpace(const SelectiveScan& scan, float* memory) : Parameters(scan, memory) {
        for (float** tile : {&rows, &x, &dt, &slope, &grad_y, &grad_dt, &grad_dx}) *tile = take(TILE);
        for (float** tile : {&z, &grad_out, &y}) *tile = take(scan.z.data ? TILE : 0);
        decay = take(BACKWARD_STATES * TILE);
        states = take(BACKWARD_STATES * (TILE + WIDTH));
        along_B = take(BACKWARD_STATES * WIDTH * WIDTH);
        along_C = take(BACKWARD_STATES * WIDTH * WIDTH);
    }
};

// The gradients of B and C that a block adds to.
struct WeightGradients {
    float *B, *C;    // (N, L) from a chunk's first step on
    int64_t length;
    bool first;      // nothing was added yet
};

// Sums over the lanes of WIDTH steps, of which the first `steps` exist.
SCAN_INLINE void add_sums(const float* along, int steps, float* to, bool first) {
    Vec rows[WIDTH];
    SCAN_UNROLL for (int i = 0; i < WIDTH; ++i) rows[i] = load(along + i * WIDTH);
    const Vec total = sums(rows);
    if (steps == WIDTH) {
        store(to, first ? total : total + load(to));
    } else {
        float lane[WIDTH];
        store(lane, total);
        for (int i = 0; i < steps; ++i) to[i] = first ? lane[i] : to[i] + lane[i];
    }
}

// COUNT states from state n through a chunk and back; space.state is the gradient that later steps give to the state.
template <int COUNT, bool CONSTANT_B, bool CONSTANT_C, bool GATED>
SCAN_INLINE void backward_states(const SelectiveScan& scan, int steps, int64_t n, Rows B, Rows C, Bits lanes,
                                 const float* carry, int count, const WeightGradients& grads, const Sums& sums,
                                 const BackwardSpace& space) {
    const float *b[COUNT], *c[COUNT];
    float *decay[COUNT], *states[COUNT];
    Vec h[COUNT], A2[COUNT];
    for (int i = 0; i < COUNT; ++i) {
        b[i] = B[n + i], c[i] = C[n + i];
        decay[i] = space.decay + i * TILE, states[i] = space.states + i * (TILE + WIDTH);
        for (int j = 0; j < WIDTH; ++j) states[i][j] = j < count ? carry[(n + i) * scan.channels + j] : 0.0f;
        h[i] = load(states[i]), A2[i] = load(space.A2 + (n + i) * WIDTH);
    }
    const float *const x = space.x, *const dt_ = space.dt;
    for (int t = 0; t < steps; ++t) {
        const Vec dt = load(dt_ + t * WIDTH), dx = dt * load(x + t * WIDTH);
        Vec out = GATED ? load(space.y + t * WIDTH) : splat(0.0f);
        for (int i = 0; i < COUNT; ++i) {
            const Vec a = exp2_of(dt * A2[i]);
            h[i] = a * h[i] + dx * weight<CONSTANT_B>(b[i], t);
            store(decay[i] + t * WIDTH, a);
            store(states[i] + (t + 1) * WIDTH, h[i]);
            if (GATED) out += h[i] * weight<CONSTANT_C>(c[i], t);
        }
        if (GATED) store(space.y + t * WIDTH, out);
    }
    Vec adjoint[COUNT], grad_A[COUNT], grad_B[COUNT], grad_C[COUNT];
    for (int i = 0; i < COUNT; ++i) {
        adjoint[i] = load(space.state + (n + i) * WIDTH), grad_A[i] = load(sums.A + (n + i) * WIDTH);
        if (CONSTANT_B) grad_B[i] = load(sums.B + (n + i) * WIDTH);
        if (CONSTANT_C) grad_C[i] = load(sums.C + (n + i) * WIDTH);
    }
    for (int part = (steps - 1) / WIDTH * WIDTH; part >= 0; part -= WIDTH) {
        const int there = (int)smaller(WIDTH, steps - part);
        for (int t = part + there - 1; t >= part; --t) {
            const Vec dt = load(dt_ + t * WIDTH), dx = dt * load(x + t * WIDTH);
            const Vec grad_y = load(space.grad_y + t * WIDTH);
            Vec grad_dt = load(space.grad_dt + t * WIDTH), grad_dx = load(space.grad_dx + t * WIDTH);
            for (int i = 0; i < COUNT; ++i) {
                const Vec before = load(states[i] + t * WIDTH);
                const Vec g = grad_y * weight<CONSTANT_C>(c[i], t) + adjoint[i];
                const Vec of_B = g * dx, of_C = grad_y * h[i];
                const int along = (i * WIDTH + t - part) * WIDTH;
                if (CONSTANT_B)
                    grad_B[i] += of_B;
                else
                    store(space.along_B + along, as_floats(as_bits(of_B) & lanes));
                if (CONSTANT_C)
                    grad_C[i] += of_C;
                else
                    store(space.along_C + along, as_floats(as_bits(of_C) & lanes));
                adjoint[i] = g * load(decay[i] + t * WIDTH);
                const Vec grad_log_decay = adjoint[i] * before;
                grad_A[i] += grad_log_decay * dt;
                grad_dt += grad_log_decay * A2[i];
                grad_dx += g * weight<CONSTANT_B>(b[i], t);
                h[i] = before;
            }
            store(space.grad_dt + t * WIDTH, grad_dt);
            store(space.grad_dx + t * WIDTH, grad_dx);
        }
        for (int i = 0; i < COUNT; ++i) {
            const int64_t row = (n + i) * grads.length + part;
            const int along = i * WIDTH * WIDTH, missing = there * WIDTH;
            zero(space.along_B + along + missing, WIDTH * WIDTH - missing);
            zero(space.along_C + along + missing, WIDTH * WIDTH - missing);
            if (!CONSTANT_B) add_sums(space.along_B + along, there, grads.B + row, grads.first);
            if (!CONSTANT_C) add_sums(space.along_C + along, there, grads.C + row, grads.first);
        }
    }
    for (int i = 0; i < COUNT; ++i) {
        store(space.state + (n + i) * WIDTH, adjoint[i]), store(sums.A + (n + i) * WIDTH, grad_A[i]);
        if (CONSTANT_B) store(sums.B + (n + i) * WIDTH, grad_B[i]);
        if (CONSTANT_C) store(sums.C + (n + i) * WIDTH, grad_C[i]);
    }
}

template <bool CONSTANT_B, bool CONSTANT_C, bool GATED>
void backward_chunk(const SelectiveScan& scan, const Block& block, int64_t chunk, WeightGradients grads,
                    const Sums& sums, const BackwardSpace& space) {
    const int64_t first = chunk * CHUNK;
    const int steps = (int)smaller(CHUNK, scan.length - first);
    const Vec bias = load(space.bias), skip = load(space.skip);
    Vec grad_skip = load(sums.skip), grad_bias = load(sums.bias);
    for (int part = 0; part < steps; part += STEPS) {
        const int there = (int)smaller(STEPS, steps - part), at = part * WIDTH;
        const int64_t now = first + part, later = now - CHUNK;
        read_tile(scan.u, block, now, there, space.rows, space.x + at);
        read_tile(scan.delta, block, now, there, space.rows, space.dt + at);
        read_tile(scan.grad_y, block, now, there, space.rows, (GATED ? space.grad_out : space.grad_y) + at);
        if (GATED) read_tile(scan.z, block, now, there, space.rows, space.z + at);
        Ahead u(scan, scan.u, block, later), delta(scan, scan.delta, block, later), y(scan, scan.grad_y, block, later);
        for (int i = at; i < at + there * WIDTH; i += WIDTH) {
            u(i / WIDTH - part), delta(i / WIDTH - part), y(i / WIDTH - part);
            const StepSize size = step_size(scan, load(space.dt + i) + bias);
            const Vec x = load(space.x + i);
            if (GATED) {
                const Vec z = load(space.z + i);
                store(space.grad_y + i, load(space.grad_out + i) * (z * logistic(z)));
                store(space.y + i, skip * x);
            }
            store(space.dt + i, size.dt);
            store(space.slope + i, size.slope);
            store(space.grad_dt + i, splat(0.0f));
            store(space.grad_dx + i, splat(0.0f));
            grad_skip += load(space.grad_y + i) * x;
        }
    }
    const Rows B = rows_of(scan.B, space.B, block, first), C = rows_of(scan.C, space.C, block, first);
    const Bits lanes = lanes_below(block.count);
    const float* const carry = carry_at(scan, block, chunk);
    grads.B += first, grads.C += first;
    int64_t n = 0;
    for (; n + BACKWARD_STATES <= scan.state; n += BACKWARD_STATES)
        backward_states<BACKWARD_STATES, CONSTANT_B, CONSTANT_C, GATED>(scan, steps, n, B, C, lanes, carry, block.count,
                                                                        grads, sums, space);
    for (; n < scan.state; ++n)
        backward_states<1, CONSTANT_B, CONSTANT_C, GATED>(scan, steps, n, B, C, lanes, carry, block.count, grads, sums,
                                                          space);
    for (int part = 0; part < steps; part += STEPS) {
        const int there = (int)smaller(STEPS, steps - part), at = part * WIDTH;
        const int64_t now = first + part;
        Ahead u(scan, scan.grad_u, block, now - CHUNK), delta(scan, scan.grad_delta, block, now - CHUNK);
        for (int i = at; i < at + there * WIDTH; i += WIDTH) {
            u(i / WIDTH - part), delta(i / WIDTH - part);
            const Vec grad_dx = load(space.grad_dx + i), grad_decay = load(space.grad_dt + i) * splat(LN2);
            const Vec grad_v = (grad_decay + grad_dx * load(space.x + i)) * load(space.slope + i);
            store(space.grad_dx + i, skip * load(space.grad_y + i) + grad_dx * load(space.dt + i));
            store(space.grad_dt + i, grad_v);
            grad_bias += grad_v;
            if (GATED) {
                const Vec z = load(space.z + i), slope = logistic(z);
                const Vec grad_gate = load(space.grad_out + i) * load(space.y + i);
                store(space.y + i, grad_gate * (slope * (splat(1.0f) + z * (splat(1.0f) - slope))));
            }
        }
        write_tile(space.grad_dx + at, scan.grad_u, block, now, there, space.rows);
        write_tile(space.grad_dt + at, scan.grad_delta, block, now, there, space.rows);
        if (GATED) write_tile(space.y + at, scan.grad_z, block, now, there, space.rows);
    }
    store(sums.skip, grad_skip);
    store(sums.bias, grad_bias);
}

template <bool CONSTANT_B, bool CONSTANT_C, bool GATED>
void backward_block(const SelectiveScan& scan, const Block& block, WeightGradients grads, const Sums& sums,
                    const BackwardSpace& space) {
    space.read(scan, block);
    const int64_t states = state_index(scan, block), row = (block.image * scan.groups + block.group) * scan.state;
    read_lanes(scan.grad_last_state + states, scan.state, block.count, space.state);
    grads.B += row * scan.length, grads.C += row * scan.length;
    for (int64_t chunk = scan.chunks() - 1; chunk >= 0; --chunk)
        backward_chunk<CONSTANT_B, CONSTANT_C, GATED>(scan, block, chunk, grads, sums, space);
    write_lanes(space.state, scan.state, block.count,
                scan.grad_initial_state ? scan.grad_initial_state + states : nullptr);
}

// Runs `work(unit, space)` for all units, on the threads. shared: the floats of the workspace that threads share.
template <class UnitSpace, class Work>
void run(const SelectiveScan& scan, int64_t shared, int64_t units, Work work) {
    const int64_t floats = UnitSpace(scan, nullptr).used;
    [[maybe_unused]] const int threads = (int)scan.threads;
#pragma omp parallel num_threads(threads)
    {
        [[maybe_unused]] const FlushSubnormals flush;
        const UnitSpace space(scan, scan.workspace + shared + thread_number() * floats);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < units; ++unit) work(unit, space);
    }
}

void forward(const SelectiveScan& scan) {
    const int64_t blocks = blocks_of_group(scan);
    with_constants(scan, [&](auto constant_B, auto constant_C) {
        run<ForwardSpace>(scan, 0, scan.batch * scan.groups * blocks, [&](int64_t unit, const ForwardSpace& space) {
            const Block block(scan, unit / (scan.groups * blocks), unit / blocks % scan.groups, unit % blocks);
            forward_block<constant_B.value, constant_C.value>(scan, block, space);
        });
    });
}

template <bool CONSTANT_B, bool CONSTANT_C, bool GATED>
void backward_all(const SelectiveScan& scan) {
    const BackwardShared shared(scan);
    const auto [pieces, slices] = shared.division;
    const int64_t blocks = blocks_of_group(scan), groups = scan.groups;
    run<BackwardSpace>(scan, shared.used, pieces * groups * slices, [&](int64_t unit, const BackwardSpace& space) {
        const int64_t piece = unit / (groups * slices), group = unit / slices % groups, slice = unit % slices;
        const int64_t image = piece * scan.batch / pieces, block = slice * blocks / slices;
        float* const grad_B = shared.slice_of(scan, scan.grad_B, shared.grad_B, slice);
        float* const grad_C = shared.slice_of(scan, scan.grad_C, shared.grad_C, slice);
        for (int64_t j = block; j < (slice + 1) * blocks / slices; ++j) {
            const Sums sums = shared.sums_of(scan, piece, group, j);
            zero(sums.memory, sums.used);
            for (int64_t i = image; i < (piece + 1) * scan.batch / pieces; ++i)
                backward_block<CONSTANT_B, CONSTANT_C, GATED>(scan, Block(scan, i, group, j),
                                                              {grad_B, grad_C, scan.length, j == block}, sums, space);
        }
    });
    const int64_t size = shared.weights_size(scan);
    [[maybe_unused]] const int threads = (int)scan.threads;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for nowait
        for (int64_t i = 0; i < groups * blocks; ++i) {
            const Sums total = shared.sums_of(scan, 0, i / blocks, i % blocks);
            for (int64_t piece = 1; piece < pieces; ++piece)
                total.add(shared.sums_of(scan, piece, i / blocks, i % blocks));
            total.write(scan, Block(scan, 0, i / blocks, i % blocks));
        }
        for (int64_t slice = 1; slice < slices; ++slice) {
            const float* const more_B = shared.slice_of(scan, scan.grad_B, shared.grad_B, slice);
            const float* const more_C = shared.slice_of(scan, scan.grad_C, shared.grad_C, slice);
#pragma omp for
            for (int64_t i = 0; i < size; ++i) {
                if (!CONSTANT_B) scan.grad_B[i] += more_B[i];
                if (!CONSTANT_C) scan.grad_C[i] += more_C[i];
            }
        }
    }
}

void backward(const SelectiveScan& scan) {
    with_constants(scan, [&](auto constant_B, auto constant_C) {
        if (scan.z.data)
            backward_all<constant_B.value, constant_C.value, true>(scan);
        else
            backward_all<constant_B.value, constant_C.value, false>(scan);
    });
}

int64_t workspace(const SelectiveScan& scan) {
    if (!scan.backward()) return scan.threads * ForwardSpace(scan, nullptr).used;
    return BackwardShared(scan).used + scan.threads * BackwardSpace(scan, nullptr).used;
}

}  // namespace

extern const SelectiveScanKernels SELECTIVE_SCAN = {workspace, forward, backward};
